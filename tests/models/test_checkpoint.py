"""Checkpoints: round trips, foreign names, damage, atomic writing."""

import hashlib
import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fula_fast.errors import FulaError
from fula_fast.models import (
    build,
    content_hash,
    load_checkpoint,
    read_meta,
    save_checkpoint,
    stages,
)

SHAPE = (3, 16, 16)


def _model(**options):
    return build("resnet18", **{"num_classes": 5, "input_shape": SHAPE, "width": 4, **options})


@pytest.fixture
def donor():
    torch.manual_seed(0)
    model = _model()
    model(torch.rand(8, *SHAPE))  # running statistics off their start
    return model.eval()


@pytest.fixture
def saved(donor, tmp_path):
    path = tmp_path / "donor.safetensors"
    save_checkpoint(donor, path, {"recipe": {"seed": 3}, "note": "naïve"})
    return path


def test_round_trip(donor, saved):
    loaded = load_checkpoint(saved)
    assert loaded.state().keys() == donor.state().keys()
    for name, value in donor.state().items():
        assert (
            torch.equal(loaded.state()[name], value) and loaded.state()[name].dtype == value.dtype
        )
    assert (loaded.name, loaded.options, loaded.hook) == (donor.name, donor.options, donor.hook)
    assert (loaded.num_classes, loaded.input_shape) == (5, SHAPE)
    assert not loaded.training
    meta = read_meta(saved)
    assert meta["recipe"] == {"seed": 3} and meta["note"] == "naïve"
    assert meta["content_hash"] == content_hash(donor) == content_hash(loaded)


def test_the_file_is_plain_safetensors_under_torchvision_names(donor, saved):
    tensors = load_file(saved)
    assert tensors.keys() == donor.state().keys()
    assert torch.equal(tensors["layer1.0.conv1.weight"], donor.state()["layer1.0.conv1.weight"])


def test_content_hash_by_hand(donor):
    digest = hashlib.sha256()
    for name in sorted(donor.state()):
        array = donor.state()[name].numpy()
        digest.update(f"{name}{array.shape}".encode() + array.tobytes())
    assert content_hash(donor) == digest.hexdigest()


def test_content_hash_sees_weights_but_neither_hook_nor_memory_format(donor):
    other = _model(hook="pre_relu")
    other.load_state(donor.state())
    other.to(memory_format=torch.channels_last)
    assert content_hash(other) == content_hash(donor)
    other.state()["fc.bias"][0] += 1e-6
    assert content_hash(other) != content_hash(donor)


def test_the_hook_may_be_chosen_when_loading(donor, saved):
    before = load_checkpoint(saved, hook="pre_relu")
    x = torch.rand(2, *SHAPE)
    assert torch.equal(before(x), donor(x))
    assert torch.equal(before.run(x, 0, 4).relu(), donor.run(x, 0, 4))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "net"])
def test_pytorch_files_with_common_names(donor, tmp_path, prefix, wrapper):
    names = {"downsample": "shortcut", "fc": "linear"}
    state = {}
    for name, value in donor.state().items():
        foreign = ".".join(names.get(part, part) for part in name.split("."))
        state[prefix + foreign] = value
    path = tmp_path / "theirs.pt"
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, path)
    loaded = load_checkpoint(path, into=_model())
    assert content_hash(loaded) == content_hash(donor)


def test_the_robust_network_that_pyautoattack_ships():
    """A real foreign checkpoint; its digest as published (names, then bytes)."""
    pyautoattack = pytest.importorskip("pyautoattack")
    path = os.path.join(os.path.dirname(pyautoattack.__file__), "examples", "model_test.pt")
    empty = build("resnet18", num_classes=10, input_shape=(3, 32, 32))
    state = load_checkpoint(path, into=empty).state()
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].numpy().tobytes())
    assert digest.hexdigest()[:16] == "f777b95437aee61a"


def test_old_files_without_batch_counters_are_read(donor, tmp_path):
    state = {k: v for k, v in donor.state().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pt")
    loaded = load_checkpoint(tmp_path / "old.pt", into=_model())
    assert torch.equal(loaded.state()["bn1.running_var"], donor.state()["bn1.running_var"])


class Evil:
    def __reduce__(self):
        return os.remove, ("/nonexistent",)


def _truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flipped(path):
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_truncated, _flipped, lambda p: p.write_bytes(b"")])
def test_a_damaged_file_is_named(saved, damage):
    damage(saved)
    with pytest.raises(FulaError, match=r"donor\.safetensors.*(truncated|altered)") as caught:
        load_checkpoint(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_pytorch_file_is_named(donor, tmp_path, share):
    path = tmp_path / "theirs.pt"
    torch.save(donor.state(), path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(FulaError, match=r"theirs\.pt' is damaged: it is truncated") as caught:
        load_checkpoint(path, into=_model())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("legacy", [False, True])
def test_noise_is_named(donor, tmp_path, legacy):
    """Bytes overwritten anywhere give one line, whatever torch's reader makes of them."""
    path = tmp_path / "theirs.pt"
    torch.save(donor.state(), path, _use_new_zipfile_serialization=not legacy)
    clean = path.read_bytes()
    for place in (0, 40, 400, 4000, len(clean) - 400):
        noise = hashlib.sha256(str(place).encode()).digest()
        path.write_bytes(clean[:place] + noise + clean[place + 32 :])
        try:
            load_checkpoint(path, into=_model())
        except FulaError as error:
            assert "theirs.pt" in str(error) and "\n" not in str(error)


def test_pickled_code_never_runs(tmp_path):
    path = tmp_path / "evil.pt"
    torch.save({"weight": Evil()}, path)
    with pytest.raises(FulaError, match=r"evil\.pt' holds a pickled \S+ .*code is not run"):
        load_checkpoint(path, into=_model())


@pytest.mark.parametrize("side, other", [(32, 96), (64, 32)])
def test_a_position_embedding_of_other_images_names_their_size(side, other, tmp_path):
    pytest.importorskip("timm")
    small, large = (build("vit_tiny", num_classes=5, input_shape=(3, s, s)) for s in (side, other))
    torch.save(large.state(), tmp_path / "large.pt")
    said = rf"'pos_embed' has shape .*images of {other} pixels: set input.size = {other}"
    with pytest.raises(FulaError, match=said):
        load_checkpoint(tmp_path / "large.pt", into=small)


def test_what_is_missing_or_does_not_fit_is_explained(donor, saved, tmp_path):
    with pytest.raises(FulaError, match="cannot read checkpoint .*absent"):
        load_checkpoint(tmp_path / "absent.safetensors")
    with pytest.raises(FulaError, match="have 5 classes .* has 10; set num_classes = 5"):
        load_checkpoint(saved, into=_model(num_classes=10))
    with pytest.raises(FulaError, match=r"'conv1.weight' has shape \(4, 3, 3, 3\).*\(8, 3, 3, 3\)"):
        load_checkpoint(saved, into=_model(width=8))
    with pytest.raises(
        FulaError, match=r"unknown layer2.0.downsample.0.weight, .*15 in all.*check the model's"
    ):
        load_checkpoint(saved, into=_model(residuals=False))
    torch.save(donor.state(), tmp_path / "plain.pt")
    with pytest.raises(FulaError, match=r"plain\.pt' holds weights without a description"):
        load_checkpoint(tmp_path / "plain.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(FulaError, match="holds no state dict"):
        load_checkpoint(tmp_path / "list.pt", into=_model())


def test_nothing_is_half_written(donor, tmp_path, monkeypatch):
    path = tmp_path / "donor.safetensors"
    save_checkpoint(donor, path)
    before = path.read_bytes()

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FulaError, match="cannot write .*donor.*No space left"):
        save_checkpoint(_model(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_users_module_is_loaded_into_its_cut(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 5))
    staged = stages(net, ["1"], input_shape=SHAPE)
    path = tmp_path / "mine.safetensors"
    digest = save_checkpoint(staged, path)
    with pytest.raises(FulaError, match="your own module Sequential.*`into`"):
        load_checkpoint(path)
    again = stages(nn.Sequential(*map(_fresh, net)), ["1"], input_shape=SHAPE)
    assert content_hash(load_checkpoint(path, into=again)) == digest


def _fresh(module):
    return type(module)(*_ARGUMENTS.get(type(module), ()))


_ARGUMENTS = {nn.Conv2d: (3, 4, 3), nn.Linear: (4 * 14 * 14, 5)}


def test_metadata_is_json_in_the_header(saved):
    content = saved.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])["__metadata__"]
    meta = json.loads(header["meta"])
    assert meta["donor"]["name"] == "resnet18"
    assert meta["meta"]["recipe"] == {"seed": 3}


class Tied(nn.Module):
    """Weights under two names, between stages and within the head; buffers that share memory."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight
        self.alias = self.first
        self.inner, self.out = nn.Linear(3, 3), nn.Linear(3, 3)
        self.out.weight = self.inner.weight
        self.register_buffer("ones", torch.ones(2).expand(2))
        self.register_buffer("part", torch.arange(4.0)[:2])

    def forward(self, x):
        return self.out(self.inner(self.second(self.first(x)).mean((2, 3))))


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel, torch.compile])
def test_tied_parameters_and_wrapped_models_are_stored(tmp_path, wrap):
    staged, blank = (stages(Tied(), ["first", "second"], input_shape=(3, 8, 8)) for _ in range(2))
    assert save_checkpoint(wrap(staged), tmp_path / "m.safetensors") == content_hash(staged)
    found, x = load_checkpoint(tmp_path / "m.safetensors", into=blank), torch.rand(2, 3, 8, 8)
    assert torch.equal(found(x), staged.eval()(x))
    tied = found.state()
    assert tied["first.weight"].data_ptr() == tied["second.weight"].data_ptr()


@pytest.mark.parametrize("given", [nn.Linear(2, 2), {"weight": torch.ones(2)}, Tied()])
def test_only_models_in_stages_are_stored(tmp_path, given):
    with pytest.raises(FulaError, match=r"not a (Linear|dict|Tied); cut it with fula_fast.stages"):
        save_checkpoint(given, tmp_path / "m.safetensors")


class Repeated(nn.Module):
    """Buffers of which several entries are one."""

    def __init__(self, buffer):
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)
        self.register_buffer("kept", buffer)

    def forward(self, x):
        return self.head(self.first(x).mean((2, 3)) + self.kept)


@pytest.mark.parametrize(
    "buffer",
    [torch.ones(1).expand(4), torch.full((1, 1), 3.0).expand(1, 4), torch.ones(()).expand(1, 4)],
    ids=["row", "matrix", "scalar"],
)
def test_buffers_that_repeat_one_value_are_stored_and_filled(tmp_path, buffer):
    net = Repeated(buffer).eval()
    staged, blank = (stages(net, ["first"], input_shape=(3, 8, 8)) for _ in range(2))
    save_checkpoint(staged, tmp_path / "m.safetensors")
    found, x = load_checkpoint(tmp_path / "m.safetensors", into=blank), torch.rand(2, 3, 8, 8)
    assert torch.equal(found(x), net(x)) and 0 in net.kept.stride()
