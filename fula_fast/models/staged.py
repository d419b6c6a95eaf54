"""A model as an ordered chain of stages with a head: what can be stitched.

A site is the output of a stage; sites are numbered from 1. Inside a stage (and the head) every
module sits under its architecture's own dotted name, so that a canonical parameter name is the
name inside the stage: `stages.3.layer2.0.conv1.weight` is `layer2.0.conv1.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import FulaError
from .labels import HEAD_INSTEAD
from .subsampled import keep_in_bounds

if TYPE_CHECKING:
    from .heads import FittedHead
    from .preparation import Preparation

_PLACE = re.compile(r"^(stages\.\d+|head)\.")


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Everything in eval mode and no gradients inside; each submodule's own mode afterwards."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for child, training in modes:
            child.training = training


class Norm2d(nn.BatchNorm2d):
    """Batch norm over (B, C, H, W) with the residual sum and the ReLU behind it fused."""

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """relu?(bn(x) + residual); `residual` has the shape of x."""
        y = super().forward(x)
        if residual is not None:
            y = y + residual
        return y.relu_() if relu else y


class Chain(nn.Module):
    """Modules run in order, each under its architecture's own dotted name.

    `units` are (name, module, keyword arguments of its call). Modules are looked up by name at
    every call, so that one may be replaced by another (a norm by its per-lane form). Takes (B,
    ...), as its first module does.
    """

    def __init__(self, units: Iterable[tuple[str, nn.Module, Mapping[str, Any]]]) -> None:
        super().__init__()
        self._calls: list[tuple[tuple[str, ...], dict[str, Any]]] = []
        for name, module, arguments in units:
            path = tuple(name.split("."))
            self._place(path, module)
            self._calls.append((path, dict(arguments)))

    def _place(self, path: Sequence[str], module: nn.Module) -> None:
        parent: nn.Module = self
        for part in path[:-1]:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent._modules[part]
        parent.add_module(path[-1], module)

    def forward(self, x: Tensor) -> Tensor:
        for path, arguments in self._calls:
            module: nn.Module = self
            for part in path:
                module = getattr(module, part)
            x = module(x, **arguments)
        return x


class Staged(nn.Module):
    """A donor: `stages` (each maps one tensor to one tensor), then `head` (last site → logits).

    `name`, `options`, `num_classes`, `input_shape` (C, H, W) and `hook` say how it was built;
    `options` is JSON-able. `site_names` has one name per site. `moved_sites`: those that the
    network itself keeps in another layout (maps with channels last), moved at the cut. `classes`:
    the class names in the order of the labels that it was trained on, where they are known.
    `normalisation`: (mean, std) by channel, where its checkpoint stored one beside the network:
    images need it first. `preparation`: what it does to images itself (`models.with_input`).
    `classifies`: it gives logits; otherwise an embedding of `num_classes` numbers, and no answers.
    `network_classes`: what it was built for, where those are not `num_classes` (0: an embedding).
    `fitted`: the head that was fitted to its frozen features, where its answers are that one's.
    """

    classes: tuple[str, ...] | None = None
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    preparation: Preparation | None = None
    classifies: bool = True
    network_classes: int | None = None
    fitted: FittedHead | None = None

    def __init__(
        self,
        stages: Iterable[nn.Module],
        head: nn.Module,
        *,
        name: str,
        num_classes: int,
        input_shape: Sequence[int],
        hook: str = "post_relu",
        options: Mapping[str, Any] | None = None,
        site_names: Sequence[str],
        moved_sites: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.head = head
        self.name = name
        self.num_classes = num_classes
        self.input_shape = tuple(input_shape)
        self.hook = hook
        self.options = dict(options or {})
        self.site_names = tuple(site_names)
        self.moved_sites = tuple(moved_sites)
        self._shapes: tuple[tuple[int, ...], ...] | None = None
        keep_in_bounds(self)

    @property
    def num_sites(self) -> int:
        """Sites are 1 … num_sites."""
        return len(self.stages)

    @property
    def site_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each site's activation, without the batch axis (measured once)."""
        if self._shapes is None:
            self._shapes = _measure(self)
        return self._shapes

    def prepared(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) as the first stage takes them."""
        return x if self.preparation is None else self.preparation(x)

    def run(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Activation at site `stop` (the last one by default) from that at site `start`.

        Site 0 is the input, (B, C, H, W). `run(x, k, k)` is x.
        """
        stop = self.num_sites if stop is None else stop
        if start == 0 < stop:
            x = self.prepared(x)
        for index in range(start, stop):
            x = self.stages[index](x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, num_classes)."""
        return self.head(self.run(x))

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers (not copied) under the architecture's own names."""
        return {_PLACE.sub("", name): value for name, value in self.state_dict().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy `state`, tensors of any shape under the architecture's own names, into this model.

        `num_batches_tracked` counters may be missing or left over. Raises `FulaError` for any other
        missing or left-over name and for a wrong shape.
        """
        own = self.state()
        _check_names(self.name, own, state)
        if wrong := [n for n, v in own.items() if n in state and state[n].shape != v.shape]:
            raise FulaError(_shape_message(self, wrong, own, state))
        with torch.no_grad():
            for name, value in own.items():
                if name in state:
                    value.copy_(state[name])


class Normalised(nn.Module):
    """A model behind the per-channel normalisation that it was trained with: takes images
    (B, C, H, W) in [0, 1]. `model`: one with an `input_shape`. `mean`, `std`: one number a channel.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.input_shape = model.input_shape
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to logits (B, classes)."""
        return self.model((x - self.mean) / self.std)


def _measure(staged: Staged) -> tuple[tuple[int, ...], ...]:
    tensor = next(iter(staged.state().values()))
    x = tensor.new_zeros((1, *staged.input_shape))
    shapes = []
    with eval_mode(staged):
        x = staged.prepared(x)
        for stage in staged.stages:
            x = stage(x)
            shapes.append(tuple(x.shape[1:]))
    return tuple(shapes)


def _check_names(model: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    missing = [n for n in own if n not in given and not n.endswith("num_batches_tracked")]
    extra = sorted(n for n in given if n not in own and not n.endswith("num_batches_tracked"))
    if missing or extra:
        parts = [
            f"{what} {', '.join(names[:3])}{' …' if len(names) > 3 else ''} ({len(names)} in all)"
            for what, names in (("it lacks", missing), ("it has unknown", extra))
            if names
        ]
        raise FulaError(
            f"the weights do not fit model '{model}': {'; '.join(parts)}; "
            "check the model's name and options (stem, width, residuals, batch_norm)"
        )


def _shape_message(
    staged: Staged, wrong: Sequence[str], state: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> str:
    name, *others = wrong
    own, given = state[name], weights[name]
    classes = name.rsplit(".", 1)[0] == _last_linear(staged)
    if classes and own.shape[1:] == given.shape[1:]:
        return (
            f"the weights have {given.shape[0]} classes but model '{staged.name}' has "
            f"{staged.num_classes}; set num_classes = {given.shape[0]}, train a donor on this "
            f"data, or {HEAD_INSTEAD}"
        )
    also = f" ({', '.join(others[:2])} differ too, {len(wrong)} in all)" if others else ""
    side = _side_of_positions(staged, own.shape, given.shape) if "pos" in name else None
    usual = "check its options (stem, width) and input channels"
    return (
        f"weight '{name}' has shape {tuple(given.shape)}, but model '{staged.name}' needs "
        f"{tuple(own.shape)}{also}; "
        + (f"it is of images of {side} pixels: set input.size = {side}" if side else usual)
    )


def _side_of_positions(staged: Staged, own: Sequence[int], given: Sequence[int]) -> int | None:
    """Side of the images that a position embedding (..., tokens, width) is made for, class and
    register tokens among them; None where that cannot be told."""
    if len(own) < 2 or len(given) < 2 or own[-1] != given[-1]:
        return None
    for more in (0, 1, 2, 5):  # tokens that are no patches
        patches = [max(shape[-2] - more, 0) for shape in (own, given)]
        ours, theirs = map(isqrt, patches)
        if ours and theirs and [ours**2, theirs**2] == patches:
            return staged.input_shape[1] * theirs // ours
    return None


def _last_linear(staged: Staged) -> str:
    names = [n for n, m in staged.head.named_modules() if isinstance(m, nn.Linear)]
    return names[-1] if names else ""
