"""Two thousand inputs of every kind that are nearly right: an answer or one line, in bounded time
and memory, never a traceback."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import random
import resource
import signal
import struct
import tarfile
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from fula_fast import FulaError
from fula_fast.files import sealed
from fula_fast.models import build, load_checkpoint, save_checkpoint
from fula_fast.models.stored import read_description, read_meta
from fula_fast.pipelines.decode import cache
from fula_fast.pipelines.decode.folders import FolderIndex, index_splits
from fula_fast.pipelines.decode.trees import FileTree, open_tree
from fula_fast.pipelines.sources.arrays import load_npz
from fula_fast.pipelines.sources.audio import SpectrogramDecoder
from fula_fast.runs.kept import settled_spec
from fula_fast.store import Store
from fula_fast.store.activity import status_of
from fula_fast.store.similarity_table import similarity_rows
from fula_fast.study.spec import load_spec


def _beside(name: str, path: Path):
    found = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


mutate = _beside("mutate", Path(__file__).with_name("mutate.py"))
damage = _beside("damage", Path(__file__).parents[2] / "files/damage.py")

pytestmark = pytest.mark.slow
COUNT = int(os.environ.get("FULA_FUZZ", "2000"))
MOST_BYTES, MOST_SECONDS = 1 << 30, 2.0
"""What an input may take: address space beyond the process's own, and processor time."""


@pytest.fixture(autouse=True)
def bounded(tmp_path, monkeypatch, caplog):
    """No more memory than stated, a cache of the test's own, and no waiting for the disk."""
    monkeypatch.setenv("FULA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    caplog.set_level(logging.ERROR, "fula_fast")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    old = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)


def fuzz(name: str, read: Callable[[random.Random], object], count: int = COUNT) -> Counter:
    """How the inputs ended; fails, naming one of each place, where some end otherwise."""
    ends, tracebacks = Counter(), {}
    for number in range(count):
        draw = random.Random(f"{name} {number}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with in_time():
                    read(draw)
                end = "read"
            except FulaError as error:
                assert "\n" not in str(error), f"{name} {number}: {error}"
                end = "refused"
            except (Exception, Late) as error:  # whatever it is
                end, place = "traceback", traceback.extract_tb(error.__traceback__)[-1]
                tracebacks[f"{place.filename}:{place.lineno}"] = f"{name} {number}: {error!r}"
        ends[end] += 1
    assert not tracebacks, json.dumps(tracebacks, indent=1)
    assert ends["refused"] > count / 20, ends
    return ends


class Late(BaseException):
    """No error that anybody catches."""


@contextmanager
def in_time():
    """`Late` where the block takes too much processor time."""

    def late(*_):
        raise Late(f"more than {MOST_SECONDS} s")

    old = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)


def shipped_specs() -> list[str]:
    folder = resources.files("fula_fast")
    places = (folder / "specs", folder / "reproduce/experiments")
    files = sorted((f for place in places for f in place.iterdir()), key=lambda f: f.name)
    return [f.read_text("utf-8") for f in files if f.name.endswith(".toml")]


SPEC = """
name = "all"
[data]
source = "digits"
[donors.a]
model = "resnet18"
width = 8
seed = 0
[donors.b]
checkpoint = "b.safetensors"
adversarial = {eps = "8/255", step = "2/255", steps = 2}
[grid]
front = "a"
end = "b"
sites = [[1, 2], [3, 3]]
methods = ["hint", "fula", {name = "fula", alpha = 0.5}]
seeds = [0, 1]
axes = {alpha = [0.1, 0.2]}
[protocol]
preset = "fula"
epochs = 2
lr = 0.1
robust = "pgd-3"
[engine]
memory = "60%"
device = "cpu"
[similarity]
measures = ["cka"]
"""


def test_specs(tmp_path):
    texts, file = [SPEC, *shipped_specs()], tmp_path / "spec.toml"

    def read(draw):
        text = draw.choice(texts) if draw.random() < 0.1 else SPEC
        content = mutate.mutated_toml(draw, text).encode(errors="replace")
        file.write_bytes(mutate.mutated_bytes(draw, content) if draw.random() < 0.2 else content)
        load_spec(file)

    fuzz("spec", read)


@pytest.fixture
def run(tmp_path) -> Store:
    """A folder with every kind of JSON file."""
    waves = {"id": ["w"], "cells": [2], "flops": [1.0], "front": ["a"], "end": ["b"], "rule": [0]}
    plan = {"waves": waves, "notes": [], "precision": "fp32"}
    store = Store.create(tmp_path / "run", {"name": "t"}, plan, {"id": ["c0", "c1"]})
    rows = [{"cell": f"c{k}", "status": "ok", "front": "a", "front_hash": "0"} for k in range(2)]
    store.write("w", rows, {"c0": {"weight": [1.0]}})
    store.add_launch({"device": "cpu", "versions": {"torch": "2"}})
    store.checkpoints.save("w", {"x": [1.0]}, {"epoch": 1})
    store.writers.cancel("2026-01-01")
    store.writers.claim("w")
    cache.content_digest([tmp_path / "run/spec.json"], tmp_path)
    return store


def resealed(file: Path, draw: random.Random) -> str:
    """The file with another content, and the digest of that: only a schema can tell."""
    whole = json.loads(file.read_text())
    content = mutate.mutated_tree(draw, whole["content"])
    try:
        digest = sealed.digest_of(content)
    except ValueError:
        digest = whole["digest"]
    return damage.text_of(whole | {"digest": digest, "content": content})


def test_json_files_of_ours(run):
    files = [file for file in sorted(run.folder.rglob("*.json")) if file.is_file()]
    sound = {file: file.read_bytes() for file in files}
    assert len(files) == 6
    touched: list[Path] = []

    def read(draw):
        for file in {*touched[-1:], *(file for file in files if not file.exists())}:
            file.write_bytes(sound[file])
        file = draw.choice(files)
        touched.append(file)
        if draw.random() < 0.4:
            file.write_bytes(mutate.mutated_bytes(draw, sound[file]))
        else:
            file.write_text(resealed(file, draw))
        store = Store.open(run.folder)
        store.rows(), store.launches(), store.missing(), store.table()
        similarity_rows(store), status_of(store), store.writers.others()
        store.writers.check_wanted("2027"), settled_spec(store)

    fuzz("json", read)


def test_safetensors(tmp_path, run):
    import safetensors.torch
    import torch

    model = build("vgg16", num_classes=2, input_shape=(3, 32, 32), width=1)
    donor, foreign, target = (tmp_path / f"{n}.safetensors" for n in ("donor", "foreign", "target"))
    save_checkpoint(model, donor, {"recipe": {}, "metrics": {}})
    safetensors.torch.save_file({"weight": torch.ones(3)}, foreign)
    checkpoint = next((run.folder / "checkpoints").glob("*"))
    sound = {path: path.read_bytes() for path in (donor, foreign, checkpoint)}

    def read(draw):
        path = draw.choice([donor, donor, foreign, checkpoint])
        content = sound[path]
        if draw.random() < 0.5:
            (length,) = struct.unpack("<Q", content[:8])
            head = json.dumps(mutate.mutated_tree(draw, json.loads(content[8 : 8 + length])))
            content = struct.pack("<Q", len(head.encode())) + head.encode() + content[8 + length :]
        else:
            content = mutate.mutated_bytes(draw, content)
        target.write_bytes(content)
        if path == checkpoint:
            path.write_bytes(content)
            run.checkpoints.epochs_of("w")
            return run.checkpoints.load("w") or _refused()
        read_description(target)
        load_checkpoint(target)
        return read_meta(target)

    fuzz("safetensors", read)


def _refused():
    raise FulaError("a damaged checkpoint is left out")


def _packed(arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    found = {}
    for name, array in arrays.items():
        np.save(stream := io.BytesIO(), array)
        found[name] = stream.getvalue()
    return found


def test_npz(tmp_path):
    images, labels = np.zeros((4, 4, 4), np.uint8), np.array([0, 1, 0, 1])
    members = _packed({"train_x": images, "train_y": labels, "test_x": images, "test_y": labels})
    file = tmp_path / "data.npz"

    def read(draw):
        own = dict(members)
        if draw.random() < 0.7:
            name = draw.choice(list(own))
            own[name] = _another_shape(draw, own[name])
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", draw.choice((0, zipfile.ZIP_DEFLATED))) as archive:
            for name, content in own.items():
                archive.writestr(f"{name}.npy", content)
        content = stream.getvalue()
        file.write_bytes(mutate.mutated_bytes(draw, content) if draw.random() < 0.6 else content)
        load_npz("npz", file, None, 1)

    fuzz("npz", read)


def _another_shape(draw: random.Random, array: bytes) -> bytes:
    """A header that claims another form, of the same length."""
    shapes = (
        b"(2305843009213693952,)",
        b"(1000000000,4,4)",
        b"(-1,4,4)",
        b"(4,4,0)",
        b"()",
        b"(4.5,)",
    )
    forms = (b"'|O'", b"'<f8'", b"'|S9'", b"'<c16'", b"'|b1'", b"'<M8'", b"[('a','<i4')]", b"'<i1'")
    head = b"{'descr': %s, 'fortran_order': %s, 'shape': %s, }" % (
        draw.choice(forms), draw.choice((b"False", b"True", b"0")), draw.choice(shapes)
    )  # fmt: skip
    size = struct.unpack("<H", array[8:10])[0]
    return array[:10] + head.ljust(size - 1) + b"\n" + array[10 + size :]


def wav(rate: int = 8000, width: int = 2, form: int = 1) -> bytes:
    data = np.arange(1000, dtype=np.int64).astype(f"<i{width}").tobytes()
    head = struct.pack("<HHIIHH", form, 1, rate, rate * width, width, width * 8)
    body = b"WAVEfmt " + struct.pack("<I", 16) + head + b"LIST" + struct.pack("<I", 4) + b"INFO"
    body += b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_wav(tmp_path):
    file, decoder = tmp_path / "clip.wav", SpectrogramDecoder(8000, 0.1)
    tree = FileTree(tmp_path, np.array([b"clip.wav"]), frozenset())
    index = FolderIndex(tree, np.array([0]), np.array([0]), ("a",))
    file.write_bytes(wav())
    decoder(index, [0], 8, 1)  # imports take their time once
    sound = [wav(), wav(44100, 4), wav(8000, 1), wav(8000, 4, 3), wav(8000, 8, 3)]

    def read(draw):
        file.write_bytes(mutate.mutated_bytes(draw, draw.choice(sound)))
        (image,) = decoder(index, [0], 8, 1)
        assert image.shape == (8, 8, 1)

    fuzz("wav", read)


def archive(form: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for split in ("train", "test"):
            for name in ("a/0.png", "b/0.png", "b/link.png"):
                member = tarfile.TarInfo(f"{split}/{name}")
                if "link" in name:
                    member.type, member.linkname = tarfile.SYMTYPE, "0.png"
                    tar.addfile(member)
                else:
                    member.size = 700
                    tar.addfile(member, io.BytesIO(bytes(700)))
    return stream.getvalue()


def test_tar(tmp_path):
    sound = [
        archive(tarfile.USTAR_FORMAT),
        archive(tarfile.PAX_FORMAT),
        archive(tarfile.GNU_FORMAT),
    ]
    file = tmp_path / "data.tar"

    def read(draw):
        content = bytearray(draw.choice(sound))
        if draw.random() < 0.8:  # a header, with the checksum that belongs to it
            start = draw.randrange(6) * 512 * 3 % len(content) // 512 * 512
            head = bytearray(content[start : start + 512])
            place = draw.choice((0, 100, 108, 116, 124, 136, 156, 157, 257, 329, 345))
            head[place : place + 8] = draw.choice(
                (
                    b"\x80" + b"\xff" * 7,
                    b"77777777",
                    b"\0" * 8,
                    draw.randbytes(8),
                    b"5" * 8,
                    b"../../..",
                )
            )
            if draw.random() < 0.3:
                head[156:157] = draw.choice((b"1", b"2", b"3", b"5", b"x", b"L", b"S", b"g"))
            head[148:156] = b" " * 8
            head[148:156] = b"%06o\0 " % sum(head)
            content[start : start + 512] = head
        else:
            content = mutate.mutated_bytes(draw, bytes(content))
        file.write_bytes(content)
        cache._whole.clear()
        return index_splits(open_tree(file), None)

    fuzz("tar", read)
