"""Labels mean the same to a model and to data only where their classes stand in one order."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import FulaError


def check_labels(known: Sequence[str] | None, classes: Sequence[str], role: str, data: str) -> None:
    """Raise `FulaError` where a class of `data` had another label when the model was trained.

    `known` None, and names that only one side has, say nothing: other data may name classes anew.
    """
    label = {name: number for number, name in enumerate(known or ())}
    for number, name in enumerate(classes):
        if label.get(name, number) != number:
            raise FulaError(
                f"class '{name}' has label {label[name]} in {role} and {number} in {data}; give "
                f"the data that order (imagefolder: options.classes = {list(known)})"
            )
