"""Fixtures shared by all tests: a cache of the session's own, the folder of real data, and the
published golden numbers."""

from __future__ import annotations

import copy
import gc
import json
import os
import signal
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from fula_fast.device.allocator import keeping_memory


def pytest_configure():
    """Ctrl-C is heard, by the processes that tests start too: a shell without job control has what
    it starts in the background ignore SIGINT, and who inherits that hears none."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    """A plain `pytest` leaves out what this machine cannot run, or what takes half an hour; asked
    for by name (`-m gpu`), a test without its device fails."""
    left = {"long": "half an hour and more: give -m long", "gpu": "needs a CUDA device"}
    left = {mark: why for mark, why in left.items() if mark not in config.getoption("markexpr")}
    marked = [(item, mark) for item in items for mark in left if item.get_closest_marker(mark)]
    if any(mark == "gpu" for _, mark in marked) and _has_gpu():
        marked = [(item, mark) for item, mark in marked if mark != "gpu"]
    for item, mark in marked:
        item.add_marker(pytest.mark.skip(reason=left[mark]))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Decoded data and trained donors go to a folder of this session (one for all processes that
    share its tests), unless FULA_TEST_CACHE names one to keep: no test depends on what an earlier
    session left."""
    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent
    folder = os.environ.get("FULA_TEST_CACHE") or str(session / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FULA_CACHE", folder)
        patch.delenv("FULA_DATA", raising=False)
        yield


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The test data's folder, from FULA_TEST_DATA; the test skips where it is unset."""
    folder = os.environ.get("FULA_TEST_DATA")
    if not folder:
        pytest.skip("FULA_TEST_DATA is unset: no folder with the real test data")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"FULA_TEST_DATA = {folder} is no folder")
    return path.resolve()


@pytest.fixture(scope="module")
def without_plots():
    """Draw no plots, which take most of a tiny run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "fula_fast.report.after_sweep.write_report", lambda folder: folder / "report.html"
        )
        yield


@dataclass(frozen=True)
class Golden:
    """The published implementation's set-up and figures (float64)."""

    front: object
    end: object
    images: object
    labels: object
    cases: list[dict]
    initial: dict[str, np.ndarray]

    def case(self, front_site: int, end_site: int, method: str) -> dict:
        """The figures of one published run."""
        return next(
            c
            for c in self.cases
            if (c["front_site"], c["end_site"], c["method"]) == (front_site, end_site, method)
        )

    def donors(self):
        """Fresh float64 copies of front and end."""
        return copy.deepcopy(self.front).double(), copy.deepcopy(self.end).double()


@pytest.fixture(scope="session")
def golden(data_folder) -> Iterator[Golden]:
    """Donors, images and figures of the published runs; skips where a part is not at hand."""
    folder = data_folder.parent / "golden"
    if not folder.is_dir():
        pytest.skip(f"no golden numbers beside the test data ({folder.name})")
    steps = json.loads((folder / "published_steps.json").read_text())
    initial = dict(np.load(folder / "published_init.npz"))
    images, labels = _golden_images(data_folder / "cifar10-jpeg.tar.xz")
    front, end = _golden_front(), _golden_end()
    with keeping_memory():  # float64 at full width: fewer page faults
        yield Golden(_staged(front), _staged(end), images, labels, steps["cases"], initial)


def _golden_front():
    import torch
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = resnet18()
    model.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    model.fc = torch.nn.Linear(512, 10)
    return model.state_dict()


def _golden_end():
    import torch

    pyautoattack = pytest.importorskip("pyautoattack")
    path = Path(pyautoattack.__file__).parent / "examples" / "model_test.pt"
    state = torch.load(path, weights_only=True, map_location="cpu")
    return {
        k.replace("shortcut", "downsample").replace("linear", "fc"): v for k, v in state.items()
    }


def _staged(state):
    from fula_fast.models import build

    model = build("resnet18", num_classes=10, input_shape=(3, 32, 32))
    model.load_state(state)
    return model.eval()


def _golden_images(archive: Path):
    import torch
    from PIL import Image

    images, labels = [], []
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if m.isfile() and m.name.startswith("test/")]
        classes = sorted({m.name.split("/")[1] for m in members})
        for member in members:
            if int(Path(member.name).stem) < 100:
                pixels = Image.open(BytesIO(tar.extractfile(member).read()))
                images.append(np.asarray(pixels))
                labels.append(classes.index(member.name.split("/")[1]))
    order = np.random.RandomState(0).permutation(1000)
    pixels = np.stack(images)[order].astype(np.float32) / 255
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor(labels)[order]


@contextmanager
def _without_host_contact() -> Iterator[None]:
    """Fails inside the block where tensor code asks the host, or takes a tensor that the host made.

    What a captured CUDA graph may not do: read a number back, let data decide a shape, index by a
    mask, or by a list, which becomes a tensor at every call. Run the code once before, so that what
    is made once is there. Works on any device, so a CPU can say what a GPU would refuse.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    aten = torch.ops.aten
    asking = {
        aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.bincount,
        aten._unique2, aten.lift_fresh, aten.is_nonzero, aten.item,
    }  # fmt: skip

    class Watch(TorchDispatchMode):
        def __init__(self, known: list[torch.Tensor]) -> None:
            super().__init__()
            self.kept = known  # alive, so that no address is used twice
            self.known = {t.untyped_storage()._cdata for t in known}

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            given = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, torch.Tensor)]
            assert func.overloadpacket not in asking or not given[0].dim(), f"{func} asks the host"
            for t in given:
                made = t.dim() and t.untyped_storage()._cdata not in self.known
                assert not made, f"{func} takes a tensor {tuple(t.shape)} that the host made"
            if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_):
                masks = [t for t in args[1] if t is not None and t.dtype == torch.bool]
                assert not masks, f"{func} by a mask has a shape that the host must ask for"
            result = func(*args, **(kwargs or {}))
            for t in tree_leaves(result):
                if isinstance(t, torch.Tensor):
                    self.kept.append(t)
                    self.known.add(t.untyped_storage()._cdata)
            return result

    alive = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
    with Watch(alive):
        yield


@pytest.fixture
def without_host_contact():
    """A context manager: see `_without_host_contact`."""
    return _without_host_contact


@pytest.fixture
def one_thread():
    """The order of sums depends on the number of threads: as many workers have it, and as donors
    of the tables that ship were trained."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
