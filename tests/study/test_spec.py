"""The spec: what is accepted, what it becomes, and the one line that says what is wrong."""

import math
import subprocess
import sys
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fula_fast.errors import FulaError
from fula_fast.files.sealed import digest_of
from fula_fast.methods import METHODS
from fula_fast.pipelines.draws.frame import Frame
from fula_fast.study.donor_spec import Adversarial, DataSpec, DonorSpec, InputSpec, ShortcutSpec
from fula_fast.study.grid_spec import GridSpec, Mixture
from fula_fast.study.protocol import PRESETS, Protocol
from fula_fast.study.spec import load_spec
from fula_fast.study.spec_keys import keys
from fula_fast.study.toml import apply_overrides, parse_override, recipe_names

MINIMAL = {
    "donors": {"a": {"model": "resnet18"}, "b": {"model": "resnet18", "seed": 1}},
    "grid": {"front": ["a"], "end": ["b"], "seeds": [0]},
}


def refusal(*overrides: str, spec=MINIMAL) -> str:
    """The message with which a spec is refused; always one line."""
    with pytest.raises(FulaError) as error:
        load_spec(spec, overrides)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_defaults():
    spec = load_spec(MINIMAL)
    assert spec.grid.methods == METHODS
    assert spec.base_protocol == PRESETS["fula-v2"]
    assert spec.data.source == "digits"
    assert spec.engine.executor == "wave"
    assert load_spec(MINIMAL, {"engine.memory": None}) == spec


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load_and_survive_a_round_trip(name):
    spec = load_spec(name)
    assert load_spec(spec.dump()) == spec


def test_a_dump_is_plain_and_has_no_nulls():
    spec = load_spec(MINIMAL, ['grid.subset=[3,"all"]', 'grid.shortcut=["none","aruco+class"]'])
    tomli_w = pytest.importorskip("tomli_w")
    assert load_spec(tomllib.loads(tomli_w.dumps(spec.dump()))) == spec


def test_donors_inherit_the_runs_data_and_augmentation():
    spec = load_spec(
        MINIMAL,
        ["data.size=16", "protocol.crop_padding=1", "protocol.flip=false", "donors.b.flip=true"],
    )
    a, b = spec.donors["a"], spec.donors["b"]
    assert (a.name, a.data.size, a.crop_padding, a.flip) == ("a", 16, 1, False)
    assert (b.crop_padding, b.flip) == (1, True)


def test_a_donor_may_have_its_own_data():
    spec = load_spec(MINIMAL, ["donors.b.data.source=mnist"])
    assert spec.donors["b"].data.source == "mnist"
    assert spec.donors["a"].data.source == "digits"


@pytest.mark.parametrize(
    "override, parts",
    [
        ("grid.sedes=[1]", ["[grid]", "'sedes'", "'seeds'"]),
        ("donors.a.modle=x", ["[donors.a]", "'modle'", "'model'"]),
        ("donors.a.data.sorce=x", ["[donors.a.data]", "'sorce'", "'source'"]),
        ("protocol.ephocs=3", ["[protocol]", "'ephocs'", "'epochs'"]),
        ("protocol.attack.epz=1", ["[protocol.attack]", "'epz'", "'eps'"]),
        ("engine.devise=cpu", ["[engine]", "'devise'", "'device'"]),
        ("evaluation.mesures=[]", ["[evaluation]", "'mesures'", "'measures'"]),
        ("grdi.front=a", ["unknown key 'grdi'", "'grid'"]),
        ("grid.axes.dm_sampels=[1]", ["[grid]", "'dm_sampels'", "'dm_samples'"]),
        ("grid.methods=[{name='m',fula=1,tml=1}]", ["[grid.methods[0]]", "'tml'", "'tlm'"]),
        (
            "grid.methods=[{name='m',stages=[{tlm=1},{hint=1,epoch=2}]}]",
            ["[grid.methods[0].stages[1]]", "'epoch'", "'epochs'"],
        ),
        ("grid.methods=[{name='m',stages=[{tml=1}]}]", ["stages[0]]", "'tml'", "'tlm'"]),
        ("donors.a.adversarial.alhpa=1", ["[donors.a.adversarial]", "'alhpa'", "'alpha'"]),
        ("donors.data={modle='resnet18'}", ["[donors.data]", "'modle'", "'model'"]),
        ("grid.axes={optimizer=['sgd']}", ["[grid]", "'optimizer'", "'optimiser'"]),
    ],
)
def test_unknown_keys_are_refused_with_table_and_nearest_key(override, parts):
    message = refusal(override)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    "override, parts",
    [
        ("grid.methods=['hnt']", ["methods[0]", "unknown method 'hnt'", "'hint'"]),
        ("grid.methods=['fula','fula']", ["'fula' twice"]),
        ("grid.methods=[]", ["methods is empty"]),
        ("grid.methods=[{name='hint',fula=1}]", ["a method's own name"]),
        ("grid.methods=[{name='none'}]", ["positive weight"]),
        ("grid.methods=[{name='m',fula=-1}]", ["fula = -1", "non-negative"]),
        ("grid.methods=[{name='m',stages=[]}]", ["mixture 'm'", "stages is empty"]),
        ("grid.methods=[{name='m',stages=[{epochs=3}]}]", ["stages[0]]", "positive weight"]),
        ("grid.methods=[{name='m',stages=[{tlm=1,epochs=0}]}]", ["stages[0]]", "epochs = 0"]),
        ("grid.methods=[{name='m',stages=[{tlm=1,epochs=true}]}]", ["epochs", "for switches"]),
        (
            "grid.methods=[{name='m',stages=[{fula=1,weighting='frist'}]}]",
            ["stages[0]] weighting", "'frist'", "cutoff=N"],
        ),
        (
            "grid.methods=[{name='m',fula=1,stages=[{tlm=1}]}]",
            ["mixture 'm' has stages, and fula beside them"],
        ),
        ("grid.methods=[{name='m',fula=1,combine='pcgard'}]", ["combine = 'pcgard'", "'pcgrad'"]),
        ("grid.protocols=['fula-v3']", ["unknown protocol 'fula-v3'", "'fula-v"]),
        ("grid.front=z", ["donor 'z'", "[donors.z]"]),
        ("grid.pairs=[['a','b']]", ["front and end", "pairs"]),
        ("grid.sites=[[1,2,3]]", ["[1, 2, 3]", "[front site, end site]"]),
        ("grid.sites=some", ["'some'", "'all-pairs'"]),
        ("donors.a.options.num_classes=5", ["num_classes = 5", "classes of the data decide"]),
        ("donors.a.options.input_shape=[3,8,8]", ["input_shape = [3, 8, 8]", "size and channels"]),
        ("donors.a.options.hook=pre_relu", ["hook = 'pre_relu'", "[protocol]"]),
        ("donors.a.options.name=x", ["name = 'x'", "model decides"]),
        ("donors.a.options.pretrained=true", ["pretrained stands beside model"]),
        ("donors.a.pretrained=true", ["'resnet18' has no pretrained weights", "open_clip:NAME"]),
        ("grid.sites=[[1.5, 2]]", ["grid", "sites", "1.5 is no site", "fula-fast sites"]),
        ("grid.sites=[true]", ["True is no site"]),
        ("grid.seeds=[true]", ["[grid] seeds: [True] is no value of it"]),
        ("grid.alpha=[0, true]", ["[grid] alpha:", "True", "for switches"]),
        ("grid.methods=[{name='m',fula=true}]", ["fula", "True is no value of it"]),
        ("grid.axes.epochs=[1, true]", ["[protocol] epochs: True is no value of it"]),
        ("protocol.epochs=true", ["[protocol] epochs: True is no value of it"]),
        ("protocol.attack.eps=true", ["[protocol.attack] eps: True is no value of it"]),
        ("donors.a.width=true", ["[donors.a] width: True is no value of it"]),
        ("data.size=false", ["[data] size: False is no value of it"]),
        ("engine.workers=true", ["[engine] workers: True is no value of it"]),
        ("grid.sites=[[1, {}]]", ["{} is no site"]),
        ("grid.alpha=[0,2]", ["alpha[1] = 2", "less than or equal to 1"]),
        ("grid.subset=[0]", ["subset[0] = 0"]),
        ("grid.shortcut=['pixl']", ["unknown shortcut 'pixl'"]),
        ("grid.weightings=['cutoff=x']", ["weighting 'cutoff=x'", "cutoff=N"]),
        ("grid.axes.lr=[0.1,-1.0]", ["[protocol]", "lr = -1.0"]),
        ("grid.axes.weighting=['last']", ["use grid.weightings"]),
        ("protocol.preset=fula", ["unknown protocol 'fula'", "'fula-v2'"]),
        ("protocol.bn=frozen", ["bn = 'frozen'", "'train' or 'eval'"]),
        ("protocol.stitch_bias=false", ["stitch_bn = 'both'"]),
        ("engine.mode=fast", ["mode = 'fast'", "'captured'"]),
        ("engine.device=tpu", ["'tpu'", "cuda:N"]),
        ("engine.memory=lots", ["'lots'", "'8GiB'"]),
        ("evaluation.measures=['kappa','linear_ckaa']", ["'linear_ckaa'", "'linear_cka'"]),
        ("evaluation.robust=pgd", ["'pgd'", "'pgd-10'"]),
        ("evaluation.robust=pgd-0", ["'pgd-0'", "at least one step"]),
        ("protocol.robust=nonsense", ["[protocol]", "unknown attack 'nonsense'", "pgd-10"]),
        ("protocol.robust=autoatack-rand", ["'autoatack-rand'", "'autoattack-rand'"]),
        ("grid.axes.robust=['none','pgd-0']", ["'pgd-0'", "at least one step"]),
        ("data.mean=0.5", ["mean and std"]),
        ("data.mean=[0.5,0.5]", ["mean", "[0.5, 0.5]", "one per channel (3)"]),
        ("data.channels=2", ["channels = 2", "1 or 3"]),
        ("data=3", ["[data]", "must be a table"]),
        ("donors.a.min_accuracy=95", ["min_accuracy = 95"]),
        ("donors.c.seed=1", ["[donors.c]", "model = 'resnet18'"]),
        ("donors.a.adversarial.eps=8/0", ["'8/0'", "zero"]),
        ("name.x=3", ["name = {'x': 3}", "should be a valid string"]),
        ("name=.hidden", ["name = '.hidden'", "cannot be the name of a file"]),
        ("grid.seeds.x=3", ["'seeds'", "not a table"]),
        ("grid={front='a'}", ["[grid]", "front and end both need"]),
        ("grid.axes.lr=[]", ["[grid]", "axes.lr is empty"]),
        ("grid.weightings=[{}]", ["[grid.weightings[0]] {} is none of", "cutoff=N"]),
        ("grid.methods=[{fula=1}]", ["[grid.methods[0]] key 'name' is missing"]),
        ("grid.pairs=ab", ["[grid] pairs = 'ab': should be a list"]),
        ("protocol.dm_rcond=1.0", ["dm_rcond = 1.0 must lie in [0, 1)"]),
        ("protocol.dm_samples=0", ["dm_samples = 0 must be at least 1, or 'all'"]),
        ("protocol.dm_samples=x", ["[protocol] dm_samples = 'x'", "integer", "or should be 'all'"]),
        (
            "protocol.weighting=3",
            ["[protocol] weighting = 3: should be a valid string, or", "list"],
        ),
        ("protocol.weighting=[1,'x']", ["[protocol] weighting[1] = 'x': should be a valid number"]),
        ("protocol.preset=3", ["[protocol] unknown protocol '3'", "fula-v2"]),
        ("protocol.preset=[]", ["[protocol] unknown protocol '[]'", "fula-v2"]),
        ("engine.slurm.sbatch={x=[1]}", ["[engine.slurm.sbatch] x = [1]", "string, or", "integer"]),
        ("engine.slurm.hours=inf", ["engine.slurm.hours = inf is no finite number"]),
        ("data={mean=nan,std=1}", ["data.mean = nan is no finite number"]),
        ("data.options.noise=-inf", ["data.options.noise = -inf is no finite number"]),
        ("data={mean=0.5,std=0}", ["[data] std = [0.0, 0.0, 0.0] must be positive"]),
        ("donors.a.input.std=0.5", ["[donors.a.input] mean and std"]),
        ("donors.a.input={mean=0,std=[1,0,1]}", ["[donors.a.input] std", "must be positive"]),
        ("donors.a.input={size=8,resize=4}", ["resize = 4 is less than size = 8"]),
        ("donors.a.input={resize=4}", ["resize acts beside size"]),
        ("donors.a.input={size=4,resize=8,crop='none'}", ["resize acts", "crop = 'centre'"]),
        ("donors.a.head=knn=0", ["[donors.a] head", "'knn=0'", "knn=20"]),
        (
            "donors.a={checkpoint='a.pt',untrained=true}",
            ["[donors.a]", "checkpoint or is untrained"],
        ),
        (
            "donors.a={model='timm:resnet18',pretrained=true,untrained=true}",
            ["[donors.a] a donor is one of pretrained, untrained, or has a checkpoint"],
        ),
        (
            "donors.a={model='resnet18',untrained=true,permute_labels=true}",
            ["[donors.a] an untrained donor takes neither"],
        ),
        (
            "donors.a={model='resnet18',recipe='simclr',adversarial=true}",
            ["[donors.a] recipe = 'simclr' takes neither"],
        ),
        (
            "donors.a={model='resnet18',recipe='imagenet',shortcut='both'}",
            ["[donors.a] recipe = 'imagenet' crops images after a shortcut"],
        ),
        (
            "donors.a={model='resnet18',head='none',min_accuracy=0.5}",
            ["[donors.a] a donor with head = 'none' has no accuracy"],
        ),
        (
            "donors.a={model='resnet18',adversarial=true,input={size=8}}",
            ["[donors.a] adversarial training attacks images as they are decoded"],
        ),
        ("no-equals", ["'no-equals'", "table.key=value"]),
    ],
)
def test_bad_values_are_refused_with_value_and_rule(override, parts):
    message = refusal(override)
    assert all(part in message for part in parts), message


ODD = [math.nan, math.inf, -1, 1e308, 2**70, "x", "\0", True, None, [], [None], [[]], {}, {"k": 1}]


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_any_value_under_any_key_is_refused_in_a_line_or_kept(value):
    """What is kept is written down and read again as the same."""
    given = {key.path.replace("NAME", "a"): value for key in keys()}
    given |= {f"grid.axes.{option}": [value] for option in Protocol.model_fields}
    for path, each in given.items():
        try:
            found = load_spec(MINIMAL, {path: each}).dump()
        except FulaError as error:
            assert "\n" not in str(error)
        else:
            assert load_spec(found).dump() == found and digest_of(found)


def test_an_option_cannot_be_both_an_axis_and_fixed():
    message = refusal("grid.axes.lr=[0.1]", "protocol.lr=0.2")
    assert "[protocol] lr" in message and "[grid.axes] lr" in message


def test_a_toml_mistake_names_file_and_line(tmp_path):
    file = tmp_path / "bad.toml"
    file.write_text("[grid]\nfront = ['a']\nend = = 3\n")
    with pytest.raises(FulaError, match=r"bad\.toml:3: not valid TOML"):
        load_spec(file)
    file.write_text("[grid]\nfront = ['a'")
    with pytest.raises(FulaError, match=r"bad\.toml:2: not valid TOML"):
        load_spec(file)


def test_unreadable_spec_files_are_named(tmp_path):
    with pytest.raises(FulaError, match=r"no spec file .*nope\.toml.*quickstart"):
        load_spec(tmp_path / "nope.toml")
    with pytest.raises(FulaError, match="is a folder"):
        load_spec(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FulaError, match="not UTF-8"):
        load_spec(tmp_path / "binary.toml")


def test_attack_sizes_may_be_fractions():
    spec = load_spec(
        MINIMAL, ["protocol.attack.eps=4/255", "donors.a.adversarial={eps='16/255', steps=7}"]
    )
    assert spec.base_protocol.attack.eps == 4 / 255
    assert spec.donors["a"].adversarial == Adversarial(eps=16 / 255, steps=7)


def test_adversarial_true_means_the_papers_attack():
    found = load_spec(MINIMAL, ["donors.a.adversarial=true"]).donors["a"].adversarial
    assert (found.alpha, found.steps, found.random_start) == (0.5, 10, False)
    assert math.isclose(found.eps, 8 / 255) and math.isclose(found.step, 2 / 255)


@pytest.mark.parametrize(
    "text, pattern, location",
    [
        ("pattern", "pixel", "random"),
        ("location", "noise", "class"),
        ("both", "pixel", "class"),
        ("aruco+class", "aruco", "class"),
    ],
)
def test_shortcuts_by_name(text, pattern, location):
    (found,) = load_spec(MINIMAL, [f"grid.shortcut={text}"]).grid.shortcut
    assert found == ShortcutSpec(pattern=pattern, location=location)
    assert found.label == f"{pattern}+{location}"


def test_one_moment_stands_for_every_channel():
    data = load_spec(MINIMAL, ["data.mean=0.5", "data.std=[0.1,0.2,0.3]"]).data
    assert (data.mean, data.std) == ((0.5,) * 3, (0.1, 0.2, 0.3))
    gray = load_spec(MINIMAL, ["data={channels=1,mean=0.5,std=0.25}"]).data
    assert (gray.mean, gray.std) == ((0.5,), (0.25,))


def test_images_are_those_of_a_folder_by_its_name_wherever_it_lies():
    def of(source, place):
        return DataSpec(source=source, data_dir=place).identity()

    assert of("imagefolder", "/a/x") == of("imagefolder", "/b/x") != of("imagefolder", "/b/y")
    assert of("mnist", "/a/x") == of("mnist", "/b/y")  # its files are known


@pytest.mark.parametrize(
    "given, frame",
    [
        ({}, None),
        ({"size": 8}, Frame(8, 8, "bilinear")),
        ({"size": 8, "resize": 10, "interpolation": "bicubic"}, Frame(8, 10, "bicubic")),
        ({"size": 8, "crop": "none"}, Frame(8, None, "bilinear")),
    ],
)
def test_an_input_is_resized_then_cut(given, frame):
    assert InputSpec(**given).frame == frame
    assert DonorSpec(model="resnet18", input=given).frame == frame


def test_a_normalisation_is_of_all_channels():
    given = InputSpec(mean=0.5, std=[0.1, 0.2, 0.3])
    found = given.normalisation(3)
    assert (found.mean, found.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    assert InputSpec().normalisation(3) is None
    with pytest.raises(FulaError, match=r"std = \[0.1, 0.2, 0.3\] must be .* per channel \(1\)"):
        given.normalisation(1)


@pytest.mark.parametrize(
    "given, needs_none",
    [
        ({"model": "resnet18"}, False),
        ({"model": "resnet18", "untrained": True}, False),  # its own head answers
        ({"model": "resnet18", "head": "none"}, False),  # trained on them
        ({"model": "resnet18", "untrained": True, "head": "none"}, True),
        ({"model": "resnet18", "recipe": "simclr", "head": "none"}, True),
        ({"model": "resnet18", "recipe": "simclr", "head": "knn=5"}, False),
        ({"model": "timm:resnet18", "pretrained": True}, True),
        ({"model": "timm:resnet18", "pretrained": True, "epochs": 1}, False),
        ({"checkpoint": "a.pt"}, True),
    ],
)
def test_which_donors_need_no_labels(given, needs_none):
    assert DonorSpec(**given).needs_no_labels == needs_none


def test_a_donor_is_found_by_its_name():
    spec = load_spec(MINIMAL)
    assert spec.donor("b").seed == 1
    with pytest.raises(FulaError, match="no donor 'c' in the spec; valid: a, b"):
        spec.donor("c")


def test_protocol_axes_are_every_combination_in_order():
    spec = load_spec(
        MINIMAL, ["grid.axes={dm_samples=[100,500],bn=['train','eval']}", "protocol.epochs=3"]
    )
    found = [(p.dm_samples, p.bn) for p in spec.protocols()]
    assert found == [(100, "train"), (100, "eval"), (500, "train"), (500, "eval")]
    assert {p.epochs for p in spec.protocols()} == {3}


def test_overrides_apply_to_every_preset():
    spec = load_spec(MINIMAL, ["grid.protocols=['fula-v1','balogh25']", "protocol.epochs=2"])
    first, second = spec.protocols()
    assert (first.preset, first.schedule, first.epochs) == ("fula-v1", "constant", 2)
    assert (second.preset, second.bn, second.epochs) == ("balogh25", "eval", 2)


def test_robust_evaluation_overrides_the_protocols():
    spec = load_spec(MINIMAL, ["evaluation.robust=pgd-10"])
    assert spec.base_protocol.robust == "pgd-10"
    assert load_spec(MINIMAL, {"evaluation.robust": None}).base_protocol.robust == "none"
    assert load_spec(MINIMAL, ["evaluation.robust=rand"]).base_protocol.robust == "autoattack-rand"


def test_a_study_is_the_spec_without_engine_and_place_of_data():
    one = load_spec(MINIMAL, ["engine.device=cpu", "data.data_dir=here"])
    two = load_spec(MINIMAL, ["engine.memory=2GiB", "data.data_dir=there", "data.stream=dali"])
    other = load_spec(MINIMAL, ["protocol.epochs=3"])
    assert one.study() == two.study() != other.study()


def test_recipe_identity_counts_what_decides_weights():
    def of(**values):
        donor = DonorSpec(name="x", **{"model": "resnet18", **values})
        return donor.recipe_identity()

    assert of() == of(width=64) == of(min_accuracy=0.9)
    assert of() == of() | {}
    for change in ({"seed": 1}, {"width": 8}, {"epochs": 3}, {"recipe": "paper"}, {"flip": False}):
        assert of(**change) != of()
    assert of(untrained=True) == of(untrained=True, epochs=3)
    assert of(checkpoint="a.pt") == of(checkpoint="a.pt", epochs=3)


def test_stages_survive_a_round_trip():
    stages = "[{fula=1,weighting=[1,2],epochs=2},{tlm=0.5,hint=1,weighting='last'}]"
    spec = load_spec(MINIMAL, [f"grid.methods=[{{name='m',stages={stages},combine='pcgrad'}}]"])
    again = load_spec(spec.dump())
    assert again == spec
    first, second = again.grid.methods[0].stages
    assert (first.stage.objective, first.stage.weighting) == ({"fula": 1.0}, (1.0, 2.0))
    assert (second.stage.weighting, second.stage.epochs) == (None, None)  # it weighs nothing


def test_overrides_are_toml_or_text():
    assert parse_override("a.b=[1, 2]") == (("a", "b"), [1, 2])
    assert parse_override("a=fast mode") == (("a",), "fast mode")
    assert parse_override("a=b=c") == (("a",), "b=c")
    assert apply_overrides({"a": {"b": 1}}, {"a.c": 2}) == {"a": {"b": 1, "c": 2}}


def test_overrides_do_not_change_the_given_table():
    table = {"grid": {"front": ["a"]}}
    apply_overrides(table, ["grid.front=['b']", "grid.new=1"])
    assert table == {"grid": {"front": ["a"]}}


weights = st.dictionaries(
    st.sampled_from(["hint", "slm", "tlm", "fula"]), st.floats(0, 10, allow_subnormal=False)
)


@given(weights)
def test_a_mixture_keeps_exactly_its_positive_weights(given_weights):
    positive = {m: w for m, w in given_weights.items() if w > 0}
    if positive:
        assert Mixture(name="m", **given_weights).objective == positive
    else:
        with pytest.raises(ValueError, match="positive weight"):
            Mixture(name="m", **given_weights)


names = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12)


@given(names)
@settings(max_examples=50)
def test_any_unknown_grid_key_is_refused(name):
    if name in GridSpec.model_fields:
        return
    message = refusal(spec={**MINIMAL, "grid": {**MINIMAL["grid"], name: 1}})
    assert message.startswith("[grid] ") and f"'{name}'" in message


grids = st.fixed_dictionaries(
    {"front": st.just(["a"]), "end": st.just(["b"])},
    optional={
        "methods": st.lists(st.sampled_from(METHODS), min_size=1, unique=True),
        "alpha": st.lists(st.floats(0, 1), min_size=1, max_size=3),
        "seeds": st.lists(st.integers(0, 99), min_size=1, max_size=3),
        "data_seeds": st.lists(st.integers(0, 99), min_size=1, max_size=3),
        "subset": st.lists(st.integers(1, 9) | st.just("all"), min_size=1, max_size=3),
        "shortcut": st.lists(st.sampled_from(["none", "both", "aruco+random"]), min_size=1),
        "sites": st.sampled_from(["same", "all-pairs"])
        | st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)).map(list), min_size=1),
        "weightings": st.lists(st.sampled_from(["uniform", "last", "cutoff=2"]), max_size=2),
        "protocols": st.lists(st.sampled_from(sorted(PRESETS)), max_size=3),
    },
)


@given(grids)
@settings(max_examples=60)
def test_every_valid_grid_survives_a_round_trip(grid):
    spec = load_spec({**MINIMAL, "grid": grid})
    assert load_spec(spec.dump()) == spec


options = st.fixed_dictionaries(
    {},
    optional={
        "lr": st.floats(1e-6, 1.0),
        "epochs": st.integers(0, 300),
        "batch_size": st.integers(2, 512),
        "dm_samples": st.integers(1, 10_000) | st.just("all"),
        "dm_rcond": st.floats(0, 0.5) | st.just("rows"),
        "target_bn": st.sampled_from(["train", "eval"]),
        "weighting": st.just("last") | st.lists(st.floats(0.1, 2), min_size=1, max_size=4),
    },
)


@given(st.sampled_from(sorted(PRESETS)), options)
@settings(max_examples=60)
def test_protocol_options_replace_the_presets_and_nothing_else(preset, given_options):
    spec = load_spec({**MINIMAL, "protocol": {"preset": preset, **given_options}})
    found = spec.base_protocol.model_dump(mode="json")
    expected = PRESETS[preset].model_dump(mode="json") | given_options
    assert found == expected == Protocol.model_validate(expected).model_dump(mode="json")


def test_loading_a_spec_imports_no_torch():
    code = (
        "import sys; from fula_fast.study.spec import load_spec; load_spec('quickstart'); "
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
