"""The settings of a PGD attack, as a spec's tables hold them. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from ..errors import FulaError
from .options import check_ball, own_names


class Settings(BaseModel):
    """Frozen, with no key but the declared ones, and `true` for no number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic takes True for 1."""
        return value if _is_switch(cls, info.field_name or "") else no_truth(value)


@cache
def _is_switch(model: type[BaseModel], field: str) -> bool:
    """Whether a boolean is a value of the field; asked for every value of a large grid."""
    return _takes_truth(model.model_fields[field].annotation)


def no_truth(value: Any) -> Any:
    """The value; raises `ValueError` for a boolean, and for a list that holds one."""
    listed = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(each, bool) for each in listed):
        raise ValueError(f"{value!r} is no value of it; true and false are for switches")
    return value


def _takes_truth(annotation: Any) -> bool:
    """Whether a boolean is a value; a table has its own words for what it is not."""
    table = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    if table or annotation in (bool, Any, object):
        return True
    return any(isinstance(a, bool) or _takes_truth(a) for a in get_args(annotation))


class Attack(Settings):
    """An l-inf or l2 PGD attack on pixels in [0, 1].

    - `norm`: of the ball around an image.
    - `eps`: its radius, in pixels of [0, 1]; a text such as "8/255" is understood.
    - `step`: length of one step, in the same units.
    - `steps`: how many.
    - `random_start`: from a random point of the ball; else from the image itself.
    """

    norm: Literal["linf", "l2"] = "linf"
    eps: float = Field(default=8 / 255, ge=0)
    step: float = Field(default=2 / 255, ge=0)
    steps: int = Field(default=10, ge=0)
    random_start: bool = False

    @model_validator(mode="before")
    @classmethod
    def _own_names(cls, values: Any) -> Any:
        try:
            return own_names(values) if isinstance(values, Mapping) else values
        except FulaError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _in_pixels(self) -> Attack:
        try:
            check_ball(self.norm, self.eps)
        except FulaError as error:
            raise ValueError(str(error)) from None
        return self
