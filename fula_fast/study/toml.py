"""Reading a spec: TOML text, `--set` overrides, and one-line messages for what is wrong in it."""

from __future__ import annotations

import codecs
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, time
from importlib import resources
from math import isfinite
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from ..errors import FulaError, check_text, nearest
from ..files.paths import user_path

_FRACTION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*")
_OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
_FRACTION_KEYS = ("eps", "epsilon", "step", "step_size")
Overrides = Mapping[str, Any] | Iterable[str | tuple[str, Any]]


@dataclass(frozen=True)
class Form:
    """Beside a field: how its value is written, where its type does not say."""

    text: str


def recipe_names() -> tuple[str, ...]:
    """Names of the specs that ship with the package."""
    folder = resources.files("fula_fast") / "specs"
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml")))


def read_toml(path: str | Path) -> dict[str, Any]:
    """The table in a TOML file, or in the shipped recipe of that name.

    Raises `FulaError` for a missing file and for a syntax error, naming file and line.
    """
    name, text = _spec_text(path)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FulaError(f"{_position(name, text, str(error))}: not valid TOML: {error}") from None
    except (ValueError, RecursionError) as error:
        raise FulaError(f"{name}: {_beyond(error)}") from None


def _beyond(error: Exception) -> str:
    """Why a text within TOML's grammar is no spec: Python's own limits."""
    if isinstance(error, RecursionError):
        return "lists or tables stand in each other too deeply; a spec needs a few levels"
    return "a number has too many digits; the largest in a spec are 64-bit integers"


def _spec_text(path: str | Path) -> tuple[str, str]:
    file = user_path(path)
    try:
        return str(file), _decoded(file, file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        pass
    except IsADirectoryError:
        raise FulaError(f"{file} is a folder; give the path of a spec file (.toml)") from None
    except OSError as error:
        raise FulaError(f"cannot read {file}: {error.strerror}") from None
    except ValueError:
        raise FulaError(f"{str(file)!r} is no path: it holds a null byte") from None
    recipe = resources.files("fula_fast") / "specs" / f"{path}.toml"
    if str(path) in recipe_names():
        return f"{path}.toml", recipe.read_text(encoding="utf-8")
    raise FulaError(
        f"no spec file {file}; give the path of a .toml file, or a shipped recipe: "
        f"{', '.join(recipe_names())}"
    )


def _decoded(file: Path, content: bytes) -> str:
    """The text of a spec, without the byte-order mark that some editors put in front."""
    other = content.startswith(_OTHER_MARKS) or b"\0" in content
    try:
        if not other:
            return content.decode("utf-8-sig")
        raise FulaError(
            f"{file} is not UTF-8 text but UTF-16, UTF-32 or binary; save it as UTF-8, which TOML "
            "asks for"
        )
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise FulaError(
            f"{file}:{line} is not UTF-8 text (byte 0x{content[error.start]:02x}); save it as "
            "UTF-8, which TOML asks for"
        ) from None


def _position(name: str, text: str, message: str) -> str:
    found = re.search(r"at line (\d+)", message)
    line = found[1] if found else str(text.count("\n") + 1)
    return f"{name}:{line}"


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """Key path and value of one `a.b=c`; the value is TOML, or else the text itself.

    Raises `FulaError` for a text of another form.

    >>> parse_override("grid.seeds=[0, 1]")
    (('grid', 'seeds'), [0, 1])
    """
    key, equals, value = text.partition("=")
    parts = tuple(part.strip() for part in key.split("."))
    if not equals or not all(parts):
        raise FulaError(f"--set '{text}' is not of the form table.key=value")
    try:
        return parts, tomllib.loads(f"value = {value}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        return parts, value.strip()
    except (ValueError, RecursionError) as error:
        raise FulaError(f"--set {key.strip()}: {_beyond(error)}") from None


def apply_overrides(table: Mapping[str, Any], overrides: Overrides) -> dict[str, Any]:
    """A copy of a spec table with `a.b` keys replaced: by texts "a.b=c", whose value is TOML, and
    by (key, value) pairs or a mapping, whose values are taken as they are."""
    given = overrides.items() if isinstance(overrides, Mapping) else overrides
    result = dict(table)
    for one in given:
        parts, value = (
            parse_override(one) if isinstance(one, str) else (tuple(one[0].split(".")), one[1])
        )
        result = _replaced(result, parts, value, ".".join(parts))
    return result


def _replaced(table: dict[str, Any], parts: tuple[str, ...], value: Any, whole: str) -> dict:
    head, *rest = parts
    if not rest:
        return {**table, head: value}
    inner = table.get(head, {})
    if not isinstance(inner, Mapping):
        raise FulaError(f"--set {whole}: '{head}' holds the value {inner!r}, not a table")
    return {**table, head: _replaced(dict(inner), tuple(rest), value, whole)}


def plain(value: Any, where: str = "") -> Any:
    """The same tree of plain values: NumPy's and torch's numbers and arrays, ranges, sets and
    paths become numbers, lists and texts. `where`: the dotted key, for messages.

    Raises `FulaError` for any other object, for text that is not UTF-8, and for numbers that are
    not finite: no file of ours holds those.
    """
    if isinstance(value, Mapping):
        keys = {check_text(str(key), "key"): part for key, part in value.items()}
        return {k: plain(v, f"{where}.{k}" if where else k) for k, v in keys.items()}
    if isinstance(value, os.PathLike):
        return plain(os.fspath(value), where)
    if isinstance(value, str):
        return check_text(value, f"{where} =")
    if isinstance(value, list | tuple | range | set | frozenset):
        several = sorted(value) if isinstance(value, set | frozenset) else value
        return [plain(v, where) for v in several]
    if isinstance(value, float) and not isfinite(value):
        raise FulaError(f"{where} = {value} is no finite number; give one")
    if value is None or isinstance(value, int | float | BaseModel | date | time):
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist(), where)
    raise FulaError(
        f"{where} is a {type(value).__name__}; a spec holds numbers, texts, lists and tables"
    )


def fractions(value: Any, key: str = "") -> Any:
    """The same tree with texts such as "8/255" under `eps` and `step` as numbers, whatever the
    field calls them.

    Raises `FulaError` for a division by zero.
    """
    if isinstance(value, Mapping):
        return {k: fractions(v, k) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [fractions(v, key) for v in value]
    if key in _FRACTION_KEYS and isinstance(value, str) and (m := _FRACTION.fullmatch(value)):
        if float(m[2]) == 0:
            raise FulaError(f"{key} = '{value}' divides by zero; write for example '8/255'")
        return float(m[1]) / float(m[2])
    return value


def explain(error: ValidationError, root: type[BaseModel], table: str = "") -> FulaError:
    """The first problem of a validation as one line: table, key, value, rule, nearest valid key."""
    first, path, model, rules = _first_problem(error, root)
    if first["type"] == "extra_forbidden":
        near = nearest(str(path[-1]), model.model_fields)
        return FulaError(f"{_table(table, path[:-1])}unknown key '{path[-1]}'{near}")
    if first["type"] in ("model_type", "dict_type"):
        return FulaError(f"{_table(table, path)}must be a table, not {first['input']!r}")
    if first["type"] == "missing":
        where = _table(table, path[:-1])
        return FulaError(f"{where}key '{path[-1]}' is missing; it has no default")
    message = first["msg"].removeprefix("Value error, ").replace("\n", " ")
    if first["type"] == "value_error" and isinstance(first["input"], Mapping):
        return FulaError(f"{_table(table, path)}{message}")
    where, key = _split(path)
    if first["type"] == "value_error":
        return FulaError(f"{_table(table, where)}{key}: {message}")
    return FulaError(f"{_table(table, where)}{key} = {first['input']!r}: {', or '.join(rules)}")


def _first_problem(
    error: ValidationError, root: type[BaseModel]
) -> tuple[Any, list[Any], type[BaseModel], dict[str, None]]:
    """The first problem with its path, the model of its last key, and the rules that it breaks: of
    a value with alternatives, those of the one that fits furthest, and all that fit as far."""
    found = [(one, *_followed(root, one["loc"])) for one in error.errors(include_url=False)]
    start = found[0][1]
    same = [one for one in found if one[1][: len(start)] == start]
    first, path, model = max(same, key=lambda one: len(one[1]))
    rules = dict.fromkeys(_phrased(one["msg"]) for one, place, _ in same if place == path)
    return first, path, model, rules


def _table(table: str, path: list[Any]) -> str:
    """`"[a.b] "` for the table that a path names."""
    where = _dotted([table] * bool(table) + path)
    return f"[{where}] " if where else ""


def _dotted(path: list[Any]) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).removeprefix(".")


def _split(path: list[Any]) -> tuple[list[Any], str]:
    """A path as its table and its key; positions in lists belong to the key."""
    last = max((i for i, part in enumerate(path) if isinstance(part, str)), default=0)
    return path[:last], _dotted(path[last:])


def _phrased(message: str) -> str:
    return message.replace("Input should", "should", 1).replace("a valid tuple", "a list")


def _followed(
    root: type[BaseModel], places: Iterable[str | int]
) -> tuple[list[str | int], type[BaseModel]]:
    """The path of a validation error without pydantic's words for a value's alternatives, and the
    model that its last key is of."""
    path: list[str | int] = []
    model, inside = root, root
    for part in places:
        table = _table_in(inside)
        if isinstance(part, int):
            path.append(part)
        elif table is not None and not part.startswith("<"):
            path.append(part)
            model = model if get_origin(table) is dict else table
            inside = get_args(table)[1] if get_origin(table) is dict else _inside(table, part)
    return path, model


def _inside(model: type[BaseModel], key: str) -> Any:
    field = model.model_fields.get(key)
    return None if field is None else field.annotation


def _table_in(annotation: Any) -> Any:
    """What an annotation says of keys: a model or a dict; None where its values have none."""
    if (
        get_origin(annotation) is dict
        or isinstance(annotation, type)
        and issubclass(annotation, BaseModel)
    ):
        return annotation
    return next(filter(None, map(_table_in, get_args(annotation))), None)


def models_in(annotation: Any) -> Iterable[type[BaseModel]]:
    """The models that an annotation names, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)
