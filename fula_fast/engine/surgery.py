"""Gradients of the parts of a loss become one: PCGrad (Yu et al. 2020, arXiv 2001.06782).

Each part's gradient is projected, one after another in a random order, onto the normal plane of
every other part's own gradient that it conflicts with (negative inner product); the results are
summed. Lanes do so each for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import Tensor

from .bank import Bank
from .lanes import Lane
from .optimiser import FlatOptimiser

_TAG = 0x9C64


@lru_cache(maxsize=8)
def projection_orders(seed: int, steps: int, count: int) -> np.ndarray:
    """For every step and each of `count` parts the order of the others, (steps, count, count - 1).

    Part i meets the others by rising random numbers: of j, the words of Philox with the key (seed,
    tag) at (0, 0, j, i), a word for each step. Fewer parts keep their order among themselves.
    """
    key = np.array([seed, _TAG], dtype=np.uint64)
    found = np.empty((steps, count, count - 1), np.int64)
    for i in range(count):
        others = np.array([j for j in range(count) if j != i])
        words = [np.random.Philox(key=key, counter=[0, 0, j, i]).random_raw(steps) for j in others]
        found[:, i] = others[np.argsort(np.stack(words, 1), axis=1, kind="stable")]
    return found


def projected(grads: Tensor, order: np.ndarray) -> Tensor:
    """The gradients (K, P) of one cell's parts as one, (P,), written out; order (K, K - 1)."""
    whole = torch.zeros_like(grads[0])
    for i, others in enumerate(order.tolist()):
        own = grads[i].clone()
        for j in others:
            inner = torch.dot(own, grads[j])
            if inner < 0:
                own -= inner / torch.dot(grads[j], grads[j]) * grads[j]
        whole += own
    return whole


def combine(parts: Sequence[Tensor], parameters: Sequence[Tensor], order: np.ndarray) -> None:
    """Give one cell's parameters the combined gradient of the parts () of its loss."""
    grads = []
    for part in parts:
        found = torch.autograd.grad(part, parameters, retain_graph=True, materialize_grads=True)
        grads.append(torch.cat([g.flatten() for g in found]))
    whole = projected(torch.stack(grads), order).split([p.numel() for p in parameters])
    for parameter, gradient in zip(parameters, whole, strict=True):
        parameter.grad = gradient.view_as(parameter)


class Surgery:
    """What becomes of a wave's gradients; its `lanes` all draw from the data seed of the first.

    With c the coefficients of the projected gradients in the parts' own, and M their inner
    products, part i meets j with (c M)_ij: all lanes take that step together, on small matrices.
    """

    def __init__(self, bank: Bank, times: Sequence[Sequence[Lane]], steps: int) -> None:
        self.bank, self.lanes = bank, len(times[0])
        seed = times[0][0].cell.data_seed
        counts = {max(len(lane.parts) for lane in lanes) for lanes in times} - {1}
        self._orders = {
            count: torch.from_numpy(projection_orders(seed, steps, count)).to(bank.flat.device)
            for count in counts
        }

    def buffers(self, count: int, optimiser: FlatOptimiser) -> Tensor:
        """Where the gradients of `count` parts of all losses go, (count, P): a single one's is the
        optimiser's own."""
        if count == 1:
            return optimiser.grad[None]
        return optimiser.grad.new_empty(count, len(optimiser.grad))

    def combine(self, grads: Tensor, optimiser: FlatOptimiser) -> None:
        """Give the optimiser the gradients (count, P) in those buffers; of several parts, as each
        lane combines its own."""
        if len(grads) == 1:
            return
        order = self._orders[len(grads)].index_select(0, optimiser.done.view(1))[0]
        shares = _shares(self._products(grads), order).to(grads.dtype)  # (L, K)
        for places, part in self.bank.parts():
            own = grads[:, part].unflatten(1, (len(places), -1))
            share = shares.index_select(0, places)
            found = optimiser.grad[part].view(own[0].shape)
            torch.mul(own[0], share[:, :1], out=found)
            for k in range(1, len(grads)):  # stacked, they would be held three times
                found.addcmul_(own[k], share[:, k : k + 1])

    def _products(self, grads: Tensor) -> Tensor:
        """Inner products of the parts' gradients of every lane, (L, K, K) float64."""
        count = len(grads)
        found = grads.new_zeros((count, count, self.lanes), dtype=torch.float64)
        for places, part in self.bank.parts():
            own = grads[:, part].unflatten(1, (len(places), -1))
            for i, j in combinations_with_replacement(range(count), 2):
                inner = (own[i] * own[j]).sum(-1, dtype=torch.float64)
                for a, b in {(i, j), (j, i)}:
                    found[a, b].index_add_(0, places, inner)
        return found.permute(2, 0, 1)


def _shares(products: Tensor, order: Tensor) -> Tensor:
    """How much of each part's own gradient is in the combined one, (L, K); order (K, K - 1)."""
    count = len(order)
    one = torch.eye(count, dtype=products.dtype, device=products.device)
    mixed = one.expand_as(products)
    norms = products.diagonal(dim1=1, dim2=2)
    for met in order.unbind(1):  # (K,): whom each part meets now
        inner = (mixed @ products).gather(2, met.expand(len(products), -1)[..., None])[..., 0]
        length = norms.index_select(1, met)
        taken = torch.where(inner < 0, inner / length, 0.0)
        mixed = mixed - taken[..., None] * one.index_select(0, met)
    return mixed.sum(1)
