"""Sealed files: what is read back is what was written, or a message says which file is wrong.

A file of ours names its kind, the format of that kind, and a digest of its content:

    JSON          {"kind": ..., "format": 1, "digest": ..., "content": ...}
    JSON of rows  the same and "rows": ..., whose own digest is part of the content
    safetensors   the same in the header, where `meta` (JSON) is part of the content
    folders       a JSON file `seal.json` with the digest of every file beside it
    Parquet       a JSON file of ours has the digest of every group of rows (`sealed_rows`)

Every kind is listed here with what to do when one is wrong.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from .. import stops
from ..errors import FulaError
from .atomic import replacing, scratch_folder

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from torch import Tensor

_KEYS = {"kind", "format", "digest", "content"}
_HEADER_KEYS = {"kind", "format", "digest", "meta"}
_SEAL = "seal.json"
_BEFORE = ', "content": '
_ROWS = b', "rows": '
"""With blanks and bare quotes, so that it stands nowhere in canonical JSON."""


@dataclass(frozen=True)
class Kind:
    """A kind of file: its `name` in messages, the `fix` of a damaged one, the newest `format` and
    the `oldest` that is still read."""

    name: str
    fix: str
    format: int = 1
    oldest: int = 1


_COPY = "put the copy of a backup in its place, or give another --out"
RUN_SPEC = Kind("spec of a run", _COPY)
RUN_PLAN = Kind("plan of a run", _COPY, format=2, oldest=2)
PLAN_CELLS = Kind("cells of a plan", _COPY)
SURROUNDINGS = Kind("note of where a run was started", _COPY)
SHARD = Kind(
    "shard of finished cells", "its cells count as missing: --resume does them again", 2, oldest=2
)
STITCHES = Kind("file of stitches", "its cells count as missing: --resume does them again")
CHECKPOINT = Kind("checkpoint of a wave", "the wave starts anew")
SIMILARITY = Kind("similarity of two donors", "the pair counts as missing: --resume does it again")
LAUNCH = Kind("note of a launch", "the report leaves it out")
CANCEL = Kind("note that a run was cancelled", "remove it, and cancel again where you meant it")
WRITER = Kind("note of a writer", "it is left out")
DONOR = Kind("checkpoint", "copy it again, or have it trained again")
FOREIGN = Kind("checkpoint", "copy it again, or give another file")
CACHE = Kind("entry of the cache", "it is built again")
LEDGER = Kind("rows of a driver", "remove it, and they are made again")


class Damaged(FulaError):
    """A file of ours that is not what was written; `reason` says in what way."""

    def __init__(self, path: Path, kind: Kind, reason: str) -> None:
        super().__init__(f"{kind.name} '{path}' is damaged: {reason}; {kind.fix}")
        self.path, self.reason = path, reason


class Newer(FulaError):
    """A file in a format that only a newer version reads."""

    def __init__(self, path: Path, kind: Kind, found: int) -> None:
        super().__init__(
            f"{kind.name} '{path}' has format {found}, and this version reads up to "
            f"{kind.format}; use the newer fula_fast that wrote it"
        )


class Older(FulaError):
    """A file in a format that only an older version reads."""

    def __init__(self, path: Path, kind: Kind, found: int) -> None:
        super().__init__(
            f"{kind.name} '{path}' has format {found}, and this version reads {kind.oldest} and "
            "later; go on with the older fula_fast that wrote it, or give another --out"
        )


def digest_of(content: Any) -> str:
    """SHA-256 (hex) over canonical JSON."""
    return _digest(_canonical(content))


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# JSON


def write_json(path: Path, kind: Kind, content: Any, indent: int | None = 1) -> str:
    """Write JSON-able `content`, atomically; returns its digest. Without `indent` it stands there
    in the form that is hashed, so that large files are verified without forming that anew."""
    sealed, canonical = _sealed(kind, content)
    text = f"{json.dumps(sealed)[:-1]}{_BEFORE}{canonical}}}"
    if indent is not None:
        text = json.dumps(sealed | {"content": content}, indent=indent, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", "utf-8")
    return sealed["digest"]


def _sealed(kind: Kind, content: Any) -> tuple[dict[str, Any], str]:
    """What stands before the content, and that in the form that is hashed."""
    canonical = _canonical(content)
    return {"kind": kind.name, "format": kind.format, "digest": _digest(canonical)}, canonical


def write_json_rows(path: Path, kind: Kind, content: Mapping[str, Any], rows: Any) -> None:
    """Write JSON-able `content` and, apart from it, `rows`, atomically."""
    stored = _canonical(rows)
    sealed, canonical = _sealed(kind, {**content, "rows": _digest(stored)})
    with replacing(path) as temporary:
        temporary.write_text(
            f"{json.dumps(sealed)[:-1]}{_BEFORE}{canonical}{_ROWS.decode()}{stored}}}\n", "utf-8"
        )


def read_json_rows(path: Path, kind: Kind, schema: Any = None) -> tuple[Any, bytes]:
    """The content of a file of `write_json_rows`, as by `read_json`, and its rows: verified, and as
    they stand there, for `parsed_rows`."""
    head, there, rest = _bytes(path, kind).partition(_ROWS)
    found, rows = _content(path, kind, head + b"}\n" * bool(there)), rest.removesuffix(b"}\n")
    if not isinstance(found, dict) or found.get("rows") != hashlib.sha256(rows).hexdigest():
        raise Damaged(path, kind, "its rows do not match their digest, so they were altered")
    return found if schema is None else validated(path, kind, found, schema), rows


def parsed_rows(rows: bytes) -> Any:
    """What `read_json_rows` verified."""
    return _parsed(rows)


def read_json(path: Path, kind: Kind, schema: Any = None) -> Any:
    """The content of a JSON file; with a `schema` (a type that pydantic knows), validated.

    Raises `Damaged` for anything but what `write_json` wrote, `Newer`, and `FileNotFoundError`.
    """
    content = _content(path, kind, _bytes(path, kind))
    return content if schema is None else validated(path, kind, content, schema)


def _bytes(path: Path, kind: Kind) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(path, kind, f"it cannot be read ({error.strerror})") from None


def _content(path: Path, kind: Kind, text: bytes) -> Any:
    """The content of a file's text, verified."""
    try:
        found = _parsed(text)
    except (ValueError, RecursionError):
        raise Damaged(path, kind, "it is no complete JSON") from None
    if not isinstance(found, dict):
        raise Damaged(path, kind, "it holds no JSON object")
    _check_head(path, kind, found, _KEYS)
    content = found["content"]
    try:
        as_hashed = text.partition(_BEFORE.encode())[2].removesuffix(b"}\n")
        stands = hashlib.sha256(as_hashed).hexdigest() == found["digest"]
        whole = stands or digest_of(content) == found["digest"]
    except ValueError:  # NaN
        whole = False
    if not whole:
        raise Damaged(path, kind, "its content does not match its digest, so it was altered")
    return content


def _parsed(text: bytes) -> Any:
    """JSON; by pydantic's reader, which is twice as fast, unless it refuses what Python's takes
    (half of a surrogate pair, as in file names that are no UTF-8)."""
    from pydantic_core import from_json

    try:
        return from_json(text)
    except ValueError:
        return json.loads(text.decode("utf-8"))


def validated(path: Path, kind: Kind, content: Any, schema: Any) -> Any:
    """`content` as the type `schema`; raises `Damaged` with the first thing that does not fit."""
    from pydantic import ValidationError

    try:
        return _adapter(schema).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Damaged(path, kind, f"its '{place}' is wrong ({first['msg']})") from None


@cache
def _adapter(schema: Any) -> TypeAdapter:
    from pydantic import TypeAdapter

    return TypeAdapter(schema)


def _check_head(path: Path, kind: Kind, found: Mapping[str, Any], keys: set[str]) -> None:
    """Kind and format, before anything else is believed."""
    if found.get("kind") != kind.name:
        raise Damaged(path, kind, f"it is no {kind.name}")
    text = str(found.get("format"))[:20]
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise Damaged(path, kind, f"its format '{text}' is no number")
    if int(text) > kind.format:
        raise Newer(path, kind, int(text))
    if int(text) < kind.oldest:
        raise Older(path, kind, int(text))
    if found.keys() != keys:
        odd = min(found.keys() ^ keys)
        raise Damaged(path, kind, f"key '{odd}' is {'unknown' if odd in found else 'missing'}")


# Tensors


def write_tensors(
    path: Path, kind: Kind, tensors: Mapping[str, Any], meta: Mapping[str, Any]
) -> str:
    """Write `tensors` (NumPy arrays or torch tensors of any device) and JSON-able `meta`,
    atomically; returns the digest of both."""
    from safetensors.torch import save_file

    plain = _apart({name: _plain(tensor) for name, tensor in tensors.items()})
    text = json.dumps(meta, allow_nan=False)
    found = _tensor_digest(text, plain)
    head = {"kind": kind.name, "format": str(kind.format), "digest": found, "meta": text}
    # the library writes under a name of its own first, which would stay where it is killed
    with replacing(path) as temporary, scratch_folder(path) as scratch:
        save_file(plain, scratch / path.name, head)
        temporary.touch()  # follows the umask, which the library does not
        (scratch / path.name).chmod(temporary.stat().st_mode)
        (scratch / path.name).rename(temporary)
    return found


def read_tensors(
    path: Path, kind: Kind, schema: Any = None, digest: str | None = None
) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a file, on the CPU, and its meta data (validated as by `read_json`).

    `digest`: what `write_tensors` returned, to tell the file from others of its kind. Raises
    `Damaged`, `Newer` and `FileNotFoundError`.
    """
    head = read_head(path, kind)
    tensors = _tensors(path, kind)
    if head["digest"] != _tensor_digest(head["meta"], tensors):
        raise Damaged(path, kind, "its content does not match its digest, so it was altered")
    if digest not in (None, head["digest"]):
        raise Damaged(path, kind, "it is another file than the one that was written there")
    return tensors, read_meta(path, kind, schema)


def read_meta(path: Path, kind: Kind, schema: Any = None) -> Any:
    """The meta data of a file of tensors, which are not read (so nothing is checked by digest)."""
    try:
        meta = json.loads(read_head(path, kind)["meta"])
    except (ValueError, RecursionError):
        raise Damaged(path, kind, "its meta data are no JSON") from None
    return meta if schema is None else validated(path, kind, meta, schema)


def read_head(path: Path, kind: Kind) -> dict[str, str]:
    """The header's own entries, of our kind and format."""
    head = foreign_head(path, kind)
    _check_head(path, kind, head, _HEADER_KEYS)
    return head


def foreign_head(path: Path, kind: Kind) -> dict[str, str]:
    """The header's own entries of any safetensors file."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise Damaged(path, kind, f"it is truncated or no such file ({_first(error)})") from None


def _tensors(path: Path, kind: Kind) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    # torch maps the file itself, and says by a RuntimeError that it cannot
    failures = (SafetensorError, OSError, ValueError, KeyError, RuntimeError)
    try:
        return load_file(path)
    except failures:
        stops.check()  # torch drops an interrupt, and says that a storage has no shape
    try:
        return load_file(path)
    except failures as error:
        stops.check()
        raise Damaged(path, kind, f"its tensors cannot be read ({_first(error)})") from None


def _first(error: Exception) -> str:
    return str(error).split("\n")[0][:120] or type(error).__name__


def _tensor_digest(meta: str, tensors: Mapping[str, Tensor]) -> str:
    import torch

    found = hashlib.sha256(f"{meta}\n".encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name!r} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _plain(value: Any) -> Tensor:
    """A contiguous CPU tensor that owns its memory: lanes hand over slices of one flat buffer."""
    import torch

    tensor = torch.as_tensor(value).detach().cpu().contiguous()
    owned = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if owned else tensor.clone()


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with a copy under every further name of tied tensors, which the format refuses."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        place = tensor.data_ptr()
        if place in seen and tensor.numel():
            tensors[name] = tensor.clone()
        seen.add(place)
    return tensors


# Folders


def seal_folder(folder: Path, kind: Kind, name: str) -> None:
    """Seal every file of `folder` as the entry `name`; nothing may be written there afterwards."""
    files = {str(f.relative_to(folder)): _file_digest(f) for f in _files(folder)}
    write_json(folder / _SEAL, kind, {"name": name, "files": files})


def check_folder(folder: Path, kind: Kind, name: str) -> None:
    """Read every byte of a sealed folder; raises `Damaged` unless it is the entry `name`, whole."""
    try:
        content = read_json(folder / _SEAL, kind, dict[str, Any])
        if content["name"] != name:
            raise Damaged(folder, kind, f"it is '{content['name']}'")
        present = {str(f.relative_to(folder)) for f in _files(folder)}
        if odd := present ^ content["files"].keys():
            raise Damaged(folder, kind, f"file '{min(odd)}' is missing or new")
        for file, expected in content["files"].items():
            if _file_digest(folder / file) != expected:
                raise Damaged(folder, kind, f"file '{file}' was altered")
    except (OSError, KeyError, AttributeError) as error:
        raise Damaged(folder, kind, f"it has no seal ({_first(error)})") from None


def _files(folder: Path) -> list[Path]:
    return [f for f in sorted(folder.rglob("*")) if f.name != _SEAL and not f.is_dir()]


def _file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
