"""Networks whose answers come from a head that was fitted to their frozen features."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..errors import FulaError
from .heads import FittedHead
from .staged import Staged

TEMPERATURE = 0.07
NO_VOTE = 1e-6
"""The share of a class that no neighbour has: its logit stays finite."""
_ROOM = 2**25
"""Numbers that the comparison with the training images holds at once."""


@dataclass(frozen=True)
class Classifier:
    """The last linear layer of a network's head, and its place. `path`: its name in the network."""

    parent: nn.Module
    name: str
    module: nn.Linear
    path: str

    def put(self, module: nn.Module) -> None:
        """Let `module` stand in its place."""
        self.parent.add_module(self.name, module)


def classifier_of(staged: Staged) -> Classifier:
    """Raises `FulaError` for a head of which no linear layer gives the answers."""
    found = None
    for place, parent in staged.head.named_modules():
        for name, module in parent.named_children():
            if isinstance(module, nn.Linear):
                found = Classifier(parent, name, module, f"{place}.{name}".lstrip("."))
    if found is None or found.module.out_features != staged.num_classes:
        raise FulaError(
            f"model '{staged.name}' has no linear layer in its head that gives its "
            f"{staged.num_classes} answers, so no classifier; where it gives an embedding, say so: "
            "model.classifies = False"
        )
    return found


def without_classifier(
    staged: Staged, state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights for the network whose own classifier is not asked: where those of `state` are of
    another classifier, or of none, zeros of its weight (classes, features) and bias (classes,)
    stand in their place; and the names that are left out."""
    if not staged.classifies:
        return dict(state), []
    start, own = f"{classifier_of(staged).path}.", staged.state()
    mine = {name: value for name, value in own.items() if name.startswith(start)}
    theirs = {name: value for name, value in state.items() if name.startswith(start)}
    if _shapes(mine) == _shapes(theirs):
        return dict(state), []
    kept = {name: value for name, value in state.items() if name not in theirs}
    return kept | {name: torch.zeros_like(v) for name, v in mine.items()}, sorted(theirs)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def features_of(staged: Staged) -> int:
    """How many numbers a head takes: what the classifier does, or the whole embedding."""
    return classifier_of(staged).module.in_features if staged.classifies else staged.num_classes


@contextmanager
def embedding(staged: Staged) -> Iterator[None]:
    """Inside, the network gives what a head takes of images, (B, features)."""
    if not staged.classifies:
        yield
        return
    classifier = classifier_of(staged)
    classifier.put(nn.Identity())
    try:
        yield
    finally:
        classifier.put(classifier.module)


class Votes(nn.Module):
    """The vote of the K nearest training images by cosine, each with weight exp(cosine / 0.07)
    (Wu et al. 2018, "Unsupervised feature learning via non-parametric instance discrimination",
    section 3.4): features (B, d) to (B, classes), the log of each class's share, so that a softmax
    gives the shares. A class without a vote has the share 1e-6.

    `bank` (N, d): the training images' features, of length 1; `labels` (N,). Where all neighbours
    are of one class the answer has no gradient.
    """

    bank: Tensor
    labels: Tensor

    def __init__(self, features: int, images: int, classes: int, neighbours: int) -> None:
        super().__init__()
        self.classes, self.neighbours = classes, neighbours
        self.register_buffer("bank", torch.zeros(images, features))
        self.register_buffer("labels", torch.zeros(images, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        rows = max(_ROOM // max(len(self.bank), self.neighbours * self.classes), 1)
        with torch.autocast(x.device.type, enabled=False):
            bank = self.bank.to(wide.dtype)
            shares = [self._shares(part, bank) for part in normalize(wide, dim=1).split(rows)]
        return torch.cat(shares).clamp_min(NO_VOTE).log()

    def _shares(self, x: Tensor, bank: Tensor) -> Tensor:
        """(b, d) of length 1 to (b, classes): the votes, of sum 1."""
        near, places = (x @ bank.T).topk(self.neighbours, dim=1)
        votes = ((near - near[:, :1]) / TEMPERATURE).exp()
        classes = torch.arange(self.classes, device=x.device)
        of_classes = (self.labels[places][..., None] == classes).to(votes.dtype)
        # no scatter: on a GPU its sums differ from run to run
        return (votes[:, None] @ of_classes).squeeze(1) / votes.sum(1, keepdim=True)


class Embedded(nn.Module):
    """A head of its own (`embed`: last site (B, ...) to an embedding) with a classifier behind it
    (`answer`: to logits (B, classes))."""

    def __init__(self, embed: nn.Module, answer: nn.Module) -> None:
        super().__init__()
        self.embed, self.answer = embed, answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.embed(x))


def answering(staged: Staged, head: FittedHead) -> tuple[Staged, nn.Module]:
    """The network with such a head in the place of its classifier, or behind its embedding; and the
    head itself, yet to be filled. It shares all else with `staged`, which is left as it was."""
    module = _unfilled(head)
    twin = copy.copy(staged)
    twin._modules = dict(staged._modules)
    if staged.classifies:
        twin.head = copy.deepcopy(staged.head)
        classifier_of(twin).put(module)
    else:
        twin.head = Embedded(staged.head, module)
    if twin.network_classes is None:
        twin.network_classes = staged.num_classes
    twin.num_classes, twin.classifies, twin.fitted = head.classes, True, head
    twin.classes = None
    return twin.eval(), module


def _unfilled(head: FittedHead) -> nn.Module:
    """Draws nothing: it is filled."""
    if head.votes:
        return Votes(head.features, head.images, head.classes, head.neighbours)
    return nn.utils.skip_init(nn.Linear, head.features, head.classes)
