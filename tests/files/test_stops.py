"""An interrupt that a library drops is not called damage, and is not lost."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fula_fast import stops
from fula_fast.files.sealed import Damaged, Kind, read_tensors, write_tensors

KIND = Kind("a thing", "thing", 1)


@pytest.fixture
def path(tmp_path):
    write_tensors(tmp_path / "a.safetensors", KIND, {"x": torch.arange(3)}, {})
    return tmp_path / "a.safetensors"


@pytest.fixture
def handled():
    """Ctrl-C as a command hears it."""
    before = signal.signal(signal.SIGINT, lambda *_: stops.ask(KeyboardInterrupt()))
    with stops.heard():
        yield
    signal.signal(signal.SIGINT, before)


class Interrupting(torch.UntypedStorage):
    """Torch asks a storage for its first item from C; that is Python, where a handler may run."""

    asked = False

    def __getitem__(self, index):
        if not self.asked:
            self.asked = True
            signal.raise_signal(signal.SIGINT)
        return super().__getitem__(index)


def test_torch_drops_an_interrupt(handled):
    """What the rest is for; if this fails, a version has mended it."""
    with pytest.raises(ValueError, match="could not determine the shape"):
        torch.asarray(Interrupting(4), dtype=torch.uint8)
    with pytest.raises(KeyboardInterrupt):
        stops.check()


def _once(first, monkeypatch):
    """The library's reader, whose first call is `first`."""
    import safetensors.torch

    calls, usual = [], safetensors.torch.load_file

    def load(path):
        calls.append(path)
        return first() if len(calls) == 1 else usual(path)

    monkeypatch.setattr(safetensors.torch, "load_file", load)
    return calls


def test_a_dropped_interrupt_ends_the_reading(path, handled, monkeypatch):
    _once(lambda: torch.asarray(Interrupting(4), dtype=torch.uint8), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        read_tensors(path, KIND)


def test_a_stop_is_the_main_threads():
    with stops.heard(), ThreadPoolExecutor(1) as other:
        stops.remember(KeyboardInterrupt())
        other.submit(stops.check).result()
        with pytest.raises(KeyboardInterrupt):
            stops.check()


def test_what_can_be_read_again_is_not_damaged(path, monkeypatch):
    """In a notebook nothing has heard the interrupt."""

    def fails():
        raise ValueError("could not determine the shape of object type 'UntypedStorage'")

    calls = _once(fails, monkeypatch)
    tensors, _ = read_tensors(path, KIND)
    assert tensors["x"].tolist() == [0, 1, 2] and len(calls) == 2


def test_what_cannot_is(path):
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:-4])
    with pytest.raises(Damaged):
        read_tensors(path, KIND)
