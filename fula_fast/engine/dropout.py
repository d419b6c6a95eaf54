"""Dropout with keyed masks, for `dropout = "train"`: what the published code does by calling
train().

A mask is a pure function of (data seed, epoch, image, layer, pass), from the counter-based Philox
generator: the same for a lane and for its cell alone, however cells are grouped or resumed. All
lanes of a wave share it, as they share the front's pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from ..errors import FulaError
from ..pipelines.draws.philox import sample_words, uniforms

_PURPOSE = 1 << 16  # apart from every other keyed stream of the project
PASSES = {"front": 0, "native": 1, "tail": 2}


@dataclass(frozen=True)
class Key:
    """What a step's masks depend on. `index` (B,): numbers of the batch's images."""

    seed: int
    epoch: int
    index: Tensor


class KeyedDropout(nn.Module):
    """x * mask / (1 - p) with a keyed mask; the identity while no key is set.

    x is (n*B, ...): every lane's batch holds the same B images.
    """

    def __init__(self, p: float, purpose: int) -> None:
        super().__init__()
        self.p, self.purpose = p, purpose
        self.key: Key | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.key is None:
            return x
        images = len(self.key.index)
        words = sample_words(
            self.key.index, x[0].numel(), seed=self.key.seed, epoch=self.key.epoch,
            purpose=self.purpose,
        )  # fmt: skip
        kept = (uniforms(words) >= self.p).view(images, *x.shape[1:]).to(x.dtype)
        return (x.unflatten(0, (-1, images)) * (kept / (1 - self.p))).flatten(0, 1)


def use_keyed_dropout(model: nn.Module, which: str) -> None:
    """Replace the dropout layers of a donor's copy (in place); `which`: front, native or tail.

    Raises `FulaError` for a kind of dropout other than `nn.Dropout`.
    """
    layers = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, _DropoutNd)
    ]
    for number, (parent, name, child) in enumerate(layers):
        if type(child) is not nn.Dropout:
            raise FulaError(
                f"dropout = 'train' knows nn.Dropout, not {type(child).__name__}; use 'eval'"
            )
        purpose = _PURPOSE + len(PASSES) * number + PASSES[which]
        setattr(parent, name, KeyedDropout(child.p, purpose))


def set_key(model: nn.Module, key: Key | None) -> None:
    """Masks for the next passes; None switches dropout off."""
    for module in model.modules():
        if isinstance(module, KeyedDropout):
            module.key = key


__all__ = ["Key", "KeyedDropout", "set_key", "use_keyed_dropout"]
