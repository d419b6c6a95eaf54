"""Each donor of a stitch sees the same images in its own way: size, cut, mean and std."""

import copy
from collections import Counter

import pytest
import torch
from torch.nn.functional import conv2d, cross_entropy, interpolate
from torch.utils._python_dispatch import TorchDispatchMode

import fula_fast
from fula_fast import FulaError, sweep
from fula_fast.donors.obtain import open_source
from fula_fast.models import content_hash, load_checkpoint, with_input
from fula_fast.runs.attack import attack_run
from fula_fast.store import Store
from fula_fast.study.donor_spec import DataSpec

pytestmark = pytest.mark.usefixtures("without_plots")

DATA = {"source": "digits", "size": 16, "train_images": 200, "test_images": 60}
DONOR = {"model": "resnet18", "width": 4, "epochs": 1, "batch_size": 50}
SMALL = {"mean": [0.2, 0.3, 0.4], "std": [0.5, 0.6, 0.7]}
LARGE = {"size": 24, "resize": 28, "interpolation": "bicubic", "mean": 0.5, "std": 0.25}


def spec(front=SMALL, end=LARGE, grid=None, data=None, **protocol) -> dict:
    donors = {"a": dict(DONOR), "b": {**DONOR, "seed": 1}}
    for donor, given in zip(donors.values(), (front, end), strict=True):
        donor |= {"input": given} if given else {}
    usual = {"front": "a", "end": "b", "sites": [[3, 5]], "methods": ["fula", "tlm"]}
    return {
        "data": DATA | (data or {}),
        "donors": donors,
        "grid": usual | (grid or {}),
        "protocol": {"epochs": 1, "batch_size": 50, "dm_samples": 50} | protocol,
        "engine": {"precision": "fp32", "device": "cpu"},
    }


def run(asked, tmp_path, name="run"):
    return sweep(asked, tmp_path / name, quiet=True, donors=donors_of(tmp_path))


def donors_of(tmp_path):
    """One folder for all tests: donors of one recipe are trained once."""
    return tmp_path.parent / "donors-with-inputs"


def stored(tmp_path) -> dict:
    donors = map(load_checkpoint, donors_of(tmp_path).glob("*.safetensors"))
    return {content_hash(staged): staged.eval() for staged in donors}


def small(x):
    """SMALL, written out."""
    mean, std = (torch.tensor(v)[:, None, None] for v in SMALL.values())
    return (x - mean) / std


def large(x):
    """LARGE, written out."""
    x = interpolate(x, (28, 28), mode="bicubic", antialias=True, align_corners=False)
    return (x.clamp(0, 1)[:, :, 2:26, 2:26] - 0.5) / 0.25


def images_and_labels():
    images = open_source(DataSpec(**DATA)).test
    return torch.from_numpy(images.images).permute(0, 3, 1, 2) / 255, torch.tensor(images.labels)


def stitched(row, folder, donors, front_input, end_input):
    """A cell's model in plain PyTorch from what is stored: images to the activation at the stitch,
    and from there to logits; and the end by itself, to the same two."""
    store, cell = Store.open(folder), row["cell"]
    state, statistics = store.stitch(cell), store.statistics(cell)
    parts = {"front": donors[row["front_hash"]], "tail": donors[row["end_hash"]]}
    native = copy.deepcopy(parts["tail"])
    for part, staged in parts.items():
        moved = {n.partition(".")[2]: t for n, t in statistics.items() if n.startswith(part)}
        parts[part] = copy.deepcopy(staged)
        parts[part].load_state_dict(moved, strict=False)
    site, weight = row["end_site"], state["weight"]
    size = native.site_shapes[site - 1][1:]

    def entry(x):
        h = parts["front"].run(front_input(x), 0, row["front_site"])
        h = conv2d(h, weight.reshape(*weight.shape[:2], 1, 1), state["bias"])
        same = h.shape[2:] == size
        return h if same else interpolate(h, size, mode="bilinear", align_corners=False)

    def both(x):
        h = entry(x)
        return h, parts["tail"].head(parts["tail"].run(h, site))

    def own(x):
        g = native.run(end_input(x), 0, site)
        return g, native.head(native.run(g, site))

    return both, own


@torch.no_grad()
def by_hand(both, own):
    """Measures on the test images."""
    x, y = images_and_labels()
    (h, logits), (g, answers) = both(x), own(x)
    return {
        "accuracy": float((logits.argmax(1) == y).double().mean()),
        "agreement_top1": float((logits.argmax(1) == answers.argmax(1)).double().mean()),
        "term_stitch": float((h - g).norm() / g.norm()),
    }


@pytest.mark.parametrize("executor", ["wave", "solo"])
def test_a_cell_by_hand_with_both_preparations(tmp_path, executor):
    asked = spec()
    asked["engine"]["executor"] = executor
    found = run(asked, tmp_path)
    x, y = images_and_labels()
    for row in found.rows:
        ours = by_hand(*stitched(row, found.folder, stored(tmp_path), small, large))
        for name, value in ours.items():
            assert row[name] == pytest.approx(value, abs=1e-5), name
        right = (found.model(row["cell"])(x).argmax(1) == y).double().mean()
        assert row["accuracy"] == pytest.approx(float(right), abs=1e-9)


def numbers(rows) -> list[dict]:
    own = ("cell", "train_seconds", "version")
    return [{k: v for k, v in row.items() if not k.startswith(own)} for row in rows]


class Launches(TorchDispatchMode):
    """Counts operators."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


def counted(asked, tmp_path, name):
    with Launches() as launches:
        found = run(asked, tmp_path, name)
    return found, launches.counts


def test_equal_inputs_cost_nothing_and_change_no_bit(tmp_path):
    """A pair whose tables say the same as [data] would."""
    usual = spec(None, None, data=SMALL)
    run(usual, tmp_path, "donors-are-trained")
    before, launches = counted(usual, tmp_path, "before")
    after, more = counted(spec(SMALL, SMALL), tmp_path, "after")
    assert numbers(after.rows) == numbers(before.rows)
    assert more == launches and sum(launches.values()) > 1000
    mixed, more = counted(spec(SMALL, None, data=SMALL), tmp_path, "mixed")
    assert numbers(mixed.rows) == numbers(before.rows) and more == launches


RESIZED = "aten::_upsample_bicubic2d_aa"


def test_images_are_resized_once_a_pass_whatever_the_number_of_lanes(tmp_path):
    grids = {"methods": ["hint"]}, {"methods": ["hint", "fula", "tlm", "slm"]}
    run(spec(), tmp_path, "donors-are-trained")
    few, many = (
        counted(spec(grid=grid, batch_size=60), tmp_path, str(n))[1][RESIZED]
        for n, grid in enumerate(grids)
    )
    run(spec(LARGE, LARGE), tmp_path, "front-is-trained")
    equal = counted(spec(LARGE, LARGE, batch_size=60), tmp_path, "equal")[1][RESIZED]
    passes = 200 // 60 + 1 + 1  # training, closed form, tests
    assert (few, many) == (passes + 1,) * 2, "and one black image, to see how stages end"
    assert equal == passes


def attacked_by_hand(logits, x, y, *, eps, step, steps):
    clean = x
    for _ in range(steps):
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(cross_entropy(logits(x), y, reduction="sum"), x)
        x = (x + step * grad.sign()).clamp(clean - eps, clean + eps).clamp(0, 1)
    return x.detach()


@pytest.mark.parametrize("front, end", [(SMALL, LARGE), (SMALL, SMALL), (None, LARGE)])
def test_attacks_move_decoded_pixels_through_both_inputs(tmp_path, front, end):
    """Robust accuracy in the sweep, by `attack`, and by hand: one image more or less may turn."""
    asked = spec(front, end, {"methods": ["tlm"]}, robust="pgd-3")
    found = run(asked, tmp_path)
    (row,) = found.rows
    inputs = ((small if given is SMALL else large) if given else (lambda x: x)
              for given in (front, end))  # fmt: skip
    both, own = stitched(row, found.folder, stored(tmp_path), *inputs)
    x, y = images_and_labels()
    settings = {"eps": 8 / 255, "step": 2 / 255, "steps": 3}
    for column, logits in (
        ("robust_accuracy", lambda x: both(x)[1]), ("end_robust_accuracy", lambda x: own(x)[1])
    ):  # fmt: skip
        adversarial = attacked_by_hand(logits, x, y, **settings)
        right = (logits(adversarial).argmax(1) == y) & (logits(x).argmax(1) == y)
        assert row[column] == pytest.approx(float(right.double().mean()), abs=1.01 / len(y))
    again = attack_run(found.folder, "pgd-3", donors=donors_of(tmp_path))
    assert again.rows[0]["robust_accuracy"] == pytest.approx(row["robust_accuracy"], abs=1e-9)


def test_an_attacked_run_without_robustness_is_attacked_later(tmp_path):
    """Equal inputs were made in the batches; the attack's pixels are decoded ones all the same."""
    found = run(spec(SMALL, SMALL, {"methods": ["tlm"]}), tmp_path)
    later = attack_run(found.folder, "pgd-3", donors=donors_of(tmp_path)).rows[0]
    robust = run(spec(SMALL, SMALL, {"methods": ["tlm"]}, robust="pgd-3"), tmp_path, "robust")
    assert later["robust_accuracy"] == robust.rows[0]["robust_accuracy"]


def test_attacked_training_is_the_same_in_waves_and_alone(tmp_path):
    asked = spec(grid={"methods": ["tlm", "fula"], "alpha": [0.5]})
    asked["engine"]["precision"] = "fp64"
    lanes = run(asked, tmp_path, "lanes").rows
    asked["engine"]["executor"] = "solo"
    for ours, alone in zip(lanes, run(asked, tmp_path, "alone").rows, strict=True):
        for name in ("accuracy", "term_stitch", "loss"):
            assert ours[name] == pytest.approx(alone[name], abs=1e-9), name


def test_one_stitch_of_models_with_inputs_is_the_sweeps_cell(tmp_path):
    asked = spec(grid={"methods": ["tlm"]})
    asked["engine"]["executor"] = "solo"
    (row,) = run(asked, tmp_path).rows
    donors, shape = stored(tmp_path), (3, 16, 16)
    front = with_input(donors[row["front_hash"]], shape, **SMALL)
    end = with_input(
        donors[row["end_hash"]], shape,
        **{**LARGE, "mean": (0.5,) * 3, "std": (0.25,) * 3},
    )  # fmt: skip
    source = open_source(DataSpec(**DATA))
    given = {"epochs": 1, "batch_size": 50, "dm_samples": 50, "device": "cpu", "quiet": True}
    one = fula_fast.stitch(front, end, 3, 5, source, "tlm", **given)
    assert (one.accuracy, one.end_accuracy) == (row["accuracy"], row["end_accuracy"])
    assert one.term_stitch == pytest.approx(row["term_stitch"], abs=1e-6)
    x, y = images_and_labels()
    assert float((one.model(x).argmax(1) == y).double().mean()) == pytest.approx(one.accuracy)
    normal = fula_fast.Normalisation((0.5,) * 3, (0.5,) * 3)
    with pytest.raises(FulaError, match="has an input of its own, so normalisation"):
        fula_fast.stitch(front, end, 3, 5, source, "tlm", normalisation=normal, **given)


def test_similarity_sees_each_donor_by_its_own_input(tmp_path):
    asked = spec() | {
        "similarity": {
            "measures": ["linear_cka"],
            "features": {"linear_cka": "flat"},
            "samples": 60,
        }
    }
    del asked["grid"], asked["protocol"]
    own = tmp_path / "donors"
    both = fula_fast.similarity(asked, tmp_path / "run", quiet=True, donors=own)
    x, _ = images_and_labels()
    donors = {d.input_shape[1]: d.eval() for d in map(load_checkpoint, own.glob("*.safetensors"))}
    front, end = donors[16], donors[24]
    with torch.no_grad():
        matrices = front.run(small(x), 0, 3), end.run(large(x), 0, 5)
    a, b = (m.flatten(1).double() - m.flatten(1).double().mean(0) for m in matrices)
    cka = (a @ a.T * (b @ b.T)).sum() / ((a @ a.T).norm() * (b @ b.T).norm())
    found = both.matrix("linear_cka", "a", "b")[2, 4]
    assert found == pytest.approx(float(cka), abs=1e-5)


@pytest.mark.parametrize("role", ["front", "end"])
def test_a_donor_of_other_data_keeps_what_it_was_trained_on(tmp_path, role):
    """Its table of data normalises its images, that of the run does not."""
    asked = spec(None, None, {"methods": ["tlm"]})
    name = {"front": "a", "end": "b"}[role]
    asked["donors"][name]["data"] = DATA | SMALL
    found = run(asked, tmp_path)
    (row,) = found.rows
    inputs = [small if role == "front" else lambda x: x, small if role == "end" else lambda x: x]
    ours = by_hand(*stitched(row, found.folder, stored(tmp_path), *inputs))
    for measure, value in ours.items():
        assert row[measure] == pytest.approx(value, abs=1e-5), measure


@pytest.mark.parametrize(
    "given, words",
    [
        ({"size": 24, "resize": 20}, "resize = 20 is less than size = 24"),
        ({"resize": 20}, "resize acts beside size"),
        ({"mean": 0.5}, "mean and std are given together"),
        ({"mean": [0.5, 0.5], "std": 1}, "one per channel .3."),
        ({"interpolation": "lanczos"}, "interpolation"),
        ({"sise": 24}, "size"),
    ],
)
def test_what_no_input_can_be(tmp_path, given, words):
    with pytest.raises(FulaError, match=words):
        run(spec(given), tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_module_with_an_input_belongs_in_the_spec(tmp_path):
    run(spec(), tmp_path)
    front = next(d for d in stored(tmp_path).values() if d.input_shape[1] == 24)
    own = with_input(front, (3, 16, 16), size=24)
    with pytest.raises(FulaError, match=r"donors.a.input"):
        sweep(spec(), tmp_path / "other", models={"a": own}, quiet=True)
