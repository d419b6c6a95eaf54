"""What an attack needs of the models: logits of a batch in which every image names its lane.

A batch of images in flight is packed across lanes (the cells of a wave, or several models), so
that it stays full. Which parts of the models an image passes through is its lane's route: images of
any lanes may share a batch where the host sorts them out, and those of one route where nothing may
ask the host, as in a CUDA graph. `Single` and `Lanes` adapt ordinary modules; an engine that shares
work between its lanes brings its own `PackedModel`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..device.compiling import compiled
from ..errors import FulaError
from ..models.copies import private_copy, unwrapped
from .fold import fold


@runtime_checkable
class PackedModel(Protocol):
    """Models side by side, all with the same classes and input shape.

    lanes: how many. device: where they are, None for functions that work anywhere.
    """

    lanes: int
    device: torch.device | None

    def logits(self, x: Tensor, lane: Tensor) -> Tensor:
        """Eval-mode logits (N, classes) of images x (N, C, H, W) in [0, 1], image i by model
        lane[i]; lane (N,) int64 on x's device. Images must not influence each other."""
        ...

    def route(self, lane: int) -> Hashable:
        """Lanes of equal routes (never None) may share a batch of `along`."""
        ...

    def along(self, route: Hashable) -> Callable[[Tensor, Tensor], Tensor]:
        """`logits` for images whose lanes all have this route, without host synchronisation: it may
        stand in a CUDA graph, whose replays read other lanes of that route."""
        ...

    def search(self, input_shape: Sequence[int], *, bf16: bool, folded: bool) -> PackedModel:
        """The same models for computing gradients only: in bfloat16, with batch norm folded."""
        ...


class Single:
    """One module, or any function of the images, as a `PackedModel` of one lane.

    A module is deep-copied, frozen and put into eval mode; the original is never touched. compile:
    run the copy used for gradients through torch.compile.
    """

    lanes = 1

    def __init__(
        self, model: nn.Module | Callable[[Tensor], Tensor], *, compile: bool = False,
        device: torch.device | str | None = None,
    ) -> None:  # fmt: skip
        self._compile = compile
        self._model = _frozen(model).to(device) if isinstance(model, nn.Module) else model
        weight = _weight(self._model)
        self._dtype = None if weight is None else weight.dtype
        self.device = None if weight is None else weight.device

    def logits(self, x: Tensor, lane: Tensor) -> Tensor:
        """Logits (N, classes) of x (N, C, H, W); see `PackedModel`."""
        return self._model(x if self._dtype is None else x.to(self._dtype))

    def route(self, lane: int) -> int:
        """There is one; see `PackedModel`."""
        return 0

    def along(self, route: int) -> Callable[[Tensor, Tensor], Tensor]:
        """The same function; see `PackedModel`."""
        return self.logits

    def search(self, input_shape: Sequence[int], *, bf16: bool, folded: bool) -> Single:
        """The copy that gradients are taken of; see `PackedModel`.

        Raises `FulaError` for bfloat16 of a function, which has no weights.
        """
        result = copy.copy(self)
        if self._dtype is not None:  # weights, so something to fold and to narrow
            result._model = fold(self._model, input_shape) if folded else private_copy(self._model)
        elif bf16:
            raise FulaError("a search in bfloat16 needs a module with weights")
        if bf16:
            result._dtype = torch.bfloat16
            result._model.to(torch.bfloat16, memory_format=torch.channels_last)
        if self._compile:
            result._model = compiled(result._model)
        return result


def _frozen(model: nn.Module) -> nn.Module:
    """An eval-mode copy that takes no gradient; half-precision weights are widened to float32."""
    result = private_copy(unwrapped(model)).eval().requires_grad_(False)
    weight = _weight(result)
    narrow = weight is not None and weight.dtype in (torch.float16, torch.bfloat16)
    return result.float() if narrow else result


def _weight(model: object) -> Tensor | None:
    """The first weight, if there is one."""
    return next(model.parameters(), None) if isinstance(model, nn.Module) else None


class PackedLanes:
    """Several modules (or functions) as a `PackedModel`; each sees its own images of a batch.

    Nothing is shared between the lanes, so each is a route of its own.
    """

    def __init__(self, singles: Sequence[Single]) -> None:
        self._singles = singles
        self.lanes = len(singles)
        self.device = singles[0].device

    def logits(self, x: Tensor, lane: Tensor) -> Tensor:
        """Logits (N, classes) of x (N, C, H, W); see `PackedModel`."""
        order = lane.argsort(stable=True)
        counts = torch.bincount(lane, minlength=self.lanes).tolist()
        parts = x[order].split(counts)
        seen = [
            single.logits(part, lane)
            for single, part in zip(self._singles, parts, strict=True)
            if len(part)
        ]
        return torch.cat(seen)[order.argsort()]

    def route(self, lane: int) -> int:
        """Each lane's own; see `PackedModel`."""
        return lane

    def along(self, route: int) -> Callable[[Tensor, Tensor], Tensor]:
        """One lane's logits; see `PackedModel`."""
        return self._singles[route].logits

    def search(self, input_shape: Sequence[int], *, bf16: bool, folded: bool) -> PackedLanes:
        """The copies that gradients are taken of; see `PackedModel`."""
        return PackedLanes([s.search(input_shape, bf16=bf16, folded=folded) for s in self._singles])


def as_packed(
    models: object, *, compile: bool = False, device: torch.device | str | None = None
) -> PackedModel:
    """A `PackedModel` from one, from a module or function, or from a sequence of those.

    device: where copies of modules go; a `PackedModel` and functions stay where they are. Raises
    `FulaError` for no model, and where a `PackedModel` is to be compiled.
    """
    if isinstance(models, PackedModel):
        if compile:
            raise FulaError(
                "a packed model is attacked as it is; compile its parts, or use mode = 'auto'"
            )
        return models
    several = list(models) if isinstance(models, Sequence) else [models]
    if not several:
        raise FulaError("no model to attack; give at least one")
    singles = [Single(model, compile=compile, device=device) for model in several]
    return singles[0] if len(singles) == 1 else PackedLanes(singles)


def by_route(
    model: PackedModel, pairs: Sequence[tuple[int, int]], routed: bool
) -> Iterator[tuple[Hashable | None, list[tuple[int, int]]]]:
    """(lane, image) pairs, in order, of one route after another; all together under None where
    they are not to be `routed`."""
    groups: dict[Hashable | None, list[tuple[int, int]]] = {}
    for pair in pairs:
        groups.setdefault(model.route(pair[0]) if routed else None, []).append(pair)
    yield from groups.items()


def logits_along(model: PackedModel, route: Hashable | None) -> Callable[[Tensor, Tensor], Tensor]:
    """`model.along(route)`; under None, where images of any lanes mix, `model.logits`."""
    return model.logits if route is None else model.along(route)
