"""The settings of a PGD attack, as a spec's tables hold them. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..errors import FulaError
from .options import check_ball, own_names


class Attack(BaseModel):
    """An l-inf or l2 PGD attack on pixels in [0, 1].

    - `norm`: of the ball around an image.
    - `eps`: its radius, in pixels of [0, 1]; a text such as "8/255" is understood.
    - `step`: length of one step, in the same units.
    - `steps`: how many.
    - `random_start`: from a random point of the ball; else from the image itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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
