"""Every key of a spec in words: type, default, range, meaning, and when it acts.

Derived from the models themselves; the meanings stand in their docstrings, as "- `key`: meaning".

    find("protocol.lr"), find("lr") -> the keys meant; find("grid") -> it, and those in it
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ..errors import FulaError, nearest
from .grid_spec import LONE
from .protocol import Acts, Protocol, Rule, Situation
from .spec import Spec
from .toml import Form, models_in

_TABLES: dict[str, type[BaseModel]] = {"protocol": Protocol}
"""Tables whose field is a free mapping: a preset fills them in."""
TABLE = "that of its keys"
"""The default of a table."""
_PLACE = {"donors": "donors.NAME"}
_BOUNDS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}"}
_PLAIN = {bool: "true or false", int: "whole number", float: "number", str: "text", Any: "any"}
_FLAGS = tuple(Situation.__dataclass_fields__)
_UNSET = dict.fromkeys(_FLAGS, False)
_ITEM = re.compile(r"^- ((?:`\w+`(?:, )?)+): (.*?)(?=^- |\n\n|\Z)", re.M | re.S)


@dataclass(frozen=True)
class SpecKey:
    """One key of a spec. `table`: its dotted name, NAME where the user chooses; "" the top.

    `type`, `default`, `range`, `meaning`: in words. `acts`: of a protocol's option, when it
    changes a number. `inner`: the model of the table that it holds, None where it holds a value.
    """

    table: str
    name: str
    type: str
    default: str
    range: str
    meaning: str
    acts: str = ""
    inner: type[BaseModel] | None = None

    @property
    def path(self) -> str:
        """The key as `--set` takes it."""
        return f"{self.table}.{self.name}".removeprefix(".")

    def to_json(self) -> dict[str, str]:
        """Its words by name, without those that it lacks."""
        words = ("type", "default", "range", "meaning", "acts")
        found = {"key": self.path} | {word: getattr(self, word) for word in words}
        return {word: text for word, text in found.items() if text}


@cache
def keys() -> tuple[SpecKey, ...]:
    """Every key of a spec, table by table."""
    return tuple(_keys_of(Spec, ""))


def tables() -> dict[str, tuple[SpecKey, ...]]:
    """The keys by table."""
    names = ("", *(_inside(key) for key in keys() if key.inner))
    return {table: tuple(k for k in keys() if k.table == table) for table in names}


def find(name: str) -> tuple[SpecKey, ...]:
    """The keys that a name means, a whole path or the last part of paths; after a table its keys.

    Donors' names may stand for NAME. Raises `FulaError` with the nearest one where there is none.
    """
    wanted = re.sub(r"^donors\.[^.]+", "donors.NAME", name.strip("[]"))
    exact = [k for k in keys() if wanted in (k.path, _inside(k))]
    found = exact or [k for k in keys() if f".{k.path}".endswith(f".{wanted}")]
    if not found:
        known = {k.path for k in keys()} | {k.name for k in keys()}
        raise FulaError(f"a spec has no key '{name}'{nearest(name, known)}")
    below = tables()
    return tuple(k for key in found for k in (key, *(below[_inside(key)] if key.inner else ())))


def _inside(key: SpecKey) -> str:
    return _PLACE.get(key.path, key.path)


def _keys_of(model: type[BaseModel], table: str) -> Iterator[SpecKey]:
    meanings = meanings_of(model)
    inner: list[SpecKey] = []
    for name, field in model.model_fields.items():
        holds = _TABLES.get(name) or next(iter(models_in(field.annotation)), None)
        key = SpecKey(
            table,
            name,
            _type(field.annotation, field.metadata),
            _default(field),
            _range(field),
            meanings.get(name, ""),
            _acts(model, table, name, field),
            holds,
        )
        yield key
        inner += [key] * (holds is not None)
    for key in inner:
        yield from _keys_of(key.inner, _inside(key))


def meanings_of(model: type) -> dict[str, str]:
    """SpecKey to meaning, from the docstrings of a class and of those that it is made from."""
    found: dict[str, str] = {}
    for each in reversed(model.__mro__):
        for names, text in _ITEM.findall(inspect.cleandoc(each.__doc__ or "")):
            found |= dict.fromkeys(re.findall(r"\w+", names), " ".join(text.split()).rstrip("."))
    return found


def _type(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """How a value is written."""
    forms = [each.text for each in metadata if isinstance(each, Form) and each is not LONE]
    if forms:
        return forms[0]
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _type(inner, [*more, *metadata])
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        return _list(get_args(annotation), LONE in metadata)
    if get_args(annotation) and get_origin(annotation) is not dict:
        parts = (_type(a, metadata) for a in get_args(annotation) if a is not NoneType)
        return " or ".join(dict.fromkeys(parts))
    return _PLAIN.get(annotation, "table")


def _list(parts: tuple[Any, ...], lone: bool) -> str:
    if parts[-1] is not Ellipsis:
        return f"[{', '.join(map(_type, parts))}]"
    return f"list of: {_type(parts[0])}{f'; {LONE.text}' if lone else ''}"


def _default(field: FieldInfo) -> str:
    """As TOML writes it; in words where nothing is set."""
    if field.default_factory is not None:
        return "{}"
    if field.default is PydanticUndefined:
        return "required"
    return TABLE if isinstance(field.default, BaseModel) else _value(field.default)


def _value(value: Any) -> str:
    if value in (None, (None,)):
        return "unset"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_value, value))}]"
    levels = value * 255 if isinstance(value, float) else 0.0
    if levels >= 1 and levels.is_integer() and not value.is_integer():
        return f"{levels:.0f}/255"
    return json.dumps(value)


def _range(field: FieldInfo) -> str:
    found = [*field.metadata, *_nested(field.annotation)]
    limits = {
        text.format(_limit(getattr(each, bound))): None
        for each in found
        for bound, text in _BOUNDS.items()
        if getattr(each, bound, None) is not None
    }
    return ", ".join(limits)


def _limit(value: float) -> str:
    return "2**63" if value == 2**63 else f"{value:g}"


def _nested(annotation: Any) -> Iterator[Any]:
    """Constraints that stand within an annotation; those of inner models are their own."""
    if get_origin(annotation) is Annotated:
        for each in get_args(annotation)[1:]:
            yield from getattr(each, "metadata", [each])
    for inner in get_args(annotation):
        yield from _nested(inner)


def _acts(model: type[BaseModel], table: str, name: str, field: FieldInfo) -> str:
    if model is Protocol:
        own = [each for each in field.metadata if isinstance(each, Acts)]
        return in_words(own[0].when)
    if table == "protocol.attack":
        (outer,) = (e for e in Protocol.model_fields["attack"].metadata if isinstance(e, Acts))
        return in_words(outer.parts.get(name, outer.when))
    return ""


def in_words(rule: Rule) -> str:
    """When a rule holds: its smallest sufficient conditions, found by trying every situation."""
    enough = _sufficient(rule)
    if enough == [{}]:
        return "always"
    told = (" and ".join(_condition(*one) for one in asked.items()) for asked in enough)
    return "; or ".join(told) or "never by itself"


def _sufficient(rule: Rule) -> list[dict[str, bool]]:
    flags = [flag for flag in _FLAGS if _reads(rule, flag)]
    enough: list[dict[str, bool]] = []
    for asked in _partial(flags):
        known = any(one.items() <= asked.items() for one in enough)
        if not known and _suffices(rule, asked, flags):
            enough.append(asked)
    return enough


def _partial(flags: list[str]) -> Iterator[dict[str, bool]]:
    """Values of some of the flags, fewest first."""
    for count in range(len(flags) + 1):
        for some in combinations(flags, count):
            for values in product((True, False), repeat=count):
                yield dict(zip(some, values, strict=True))


def _condition(flag: str, value: bool) -> str:
    text = meanings_of(Situation)[flag]
    return text if value else f"not ({text})"


def _reads(rule: Rule, flag: str) -> bool:
    """Whether some situation's answer turns on this flag, alone or with one other that is set."""
    for base, other in product((True, False), _FLAGS):
        values = dict.fromkeys(_FLAGS, base) | {other: not base}
        off, on = (rule(Situation(**values | {flag: value})) for value in (False, True))
        if off != on:
            return True
    return False


def _suffices(rule: Rule, asked: dict[str, bool], flags: list[str]) -> bool:
    """Whether the rule holds with the values asked, whatever the other flags are."""
    tried = (
        dict(zip(flags, values, strict=True))
        for values in product((True, False), repeat=len(flags))
    )
    return all(rule(Situation(**_UNSET | values | asked)) for values in tried)
