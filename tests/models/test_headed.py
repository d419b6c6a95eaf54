"""Fitted heads: votes as scikit-learn counts them, and networks that carry such a head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from fula_fast.errors import FulaError
from fula_fast.models import (
    build,
    content_hash,
    load_checkpoint,
    read_description,
    save_checkpoint,
    stages,
)
from fula_fast.models import headed as ours
from fula_fast.models.headed import Votes, answering, classifier_of, embedding, features_of
from fula_fast.models.heads import FittedHead

SHAPE = (3, 8, 8)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(images=60, features=5, classes=4, neighbours=7):
    votes = Votes(features, images, classes, neighbours)
    bank = draw(images, features)
    votes.bank.copy_(bank / bank.norm(dim=1, keepdim=True))
    labels = torch.randint(classes - 1, (images,), generator=torch.Generator().manual_seed(1))
    votes.labels.copy_(labels)  # the last class has no image
    return votes


def theirs(votes: Votes, x: torch.Tensor) -> np.ndarray:
    """Class probabilities of scikit-learn's weighted vote; classes without images are left out."""
    known = KNeighborsClassifier(
        votes.neighbours, metric="cosine", algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / 0.07),
    )  # fmt: skip
    return known.fit(votes.bank.numpy(), votes.labels.numpy()).predict_proba(x.numpy())


@pytest.mark.parametrize("dtype, within", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_votes_are_those_of_scikit_learn(dtype, within):
    votes, x = filled().double(), draw(40, 5, seed=2).double()
    votes.bank /= votes.bank.norm(dim=1, keepdim=True)
    wanted = theirs(votes, x)
    found = votes.to(dtype)(x.to(dtype)).exp()
    known = wanted > 1e-6  # a class with less has the share 1e-6
    shares = found[:, :3].double().numpy()
    np.testing.assert_allclose(shares[known], wanted[known], atol=within)
    assert float(shares[~known].max()) <= 2e-6 and (found[:, 3] - 1e-6).abs().max() < 1e-12
    assert np.array_equal(shares.argmax(1), wanted.argmax(1))


def test_all_neighbours_of_one_class_give_no_gradient():
    """Why losses and attacks through votes are refused."""
    votes, x = filled(neighbours=1), draw(6, 5, seed=3).requires_grad_()
    torch.nn.functional.cross_entropy(votes(x), torch.zeros(6, dtype=torch.int64)).backward()
    assert not x.grad.any()


def test_few_rows_at_a_time_give_the_same(monkeypatch):
    votes, x = filled(), draw(33, 5, seed=4)
    whole = votes(x)
    monkeypatch.setattr(ours, "_ROOM", 4 * 60)
    torch.testing.assert_close(votes(x), whole, rtol=1e-6, atol=1e-6)


def test_narrow_activations_and_autocast_vote_in_float32():
    votes, x = filled(), draw(9, 5, seed=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(votes(x), votes(x))
        assert votes(x.bfloat16()).dtype == torch.float32
    plain = votes(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(votes(x), plain)


class Tower(torch.nn.Module):
    """Images to six numbers, no classifier."""

    def __init__(self):
        super().__init__()
        self.block = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 2, 2), torch.nn.ReLU())

    def forward(self, x):
        return self.block(x).mean((2, 3))


def tower():
    torch.manual_seed(0)
    staged = stages(Tower(), ["block"], input_shape=SHAPE).eval()
    staged.classifies = False
    return staged


def resnet():
    torch.manual_seed(0)
    return build("resnet18", num_classes=10, input_shape=SHAPE, width=4).eval()


@pytest.mark.parametrize("network", [tower, resnet])
@pytest.mark.parametrize("neighbours", [0, 3])
@torch.no_grad()
def test_a_head_takes_the_features_and_leaves_the_network(network, neighbours):
    staged, x = network(), draw(5, *SHAPE)
    before, state = staged(x), {n: v.clone() for n, v in staged.state().items()}
    with embedding(staged):
        taken = staged(x)
    assert torch.equal(staged(x), before) and taken.shape == (5, features_of(staged))
    head = FittedHead(features_of(staged), 4, neighbours, 20 if neighbours else 0)
    twin, module = answering(staged, head)
    for value in module.state_dict().values():
        value.copy_(torch.ones_like(value))
    assert torch.equal(twin(x), module(taken)) and twin(x).shape == (5, 4)
    assert (twin.num_classes, twin.classifies, twin.fitted) == (4, True, head)
    assert torch.equal(staged(x), before) and staged.fitted is None
    assert all(torch.equal(v, staged.state()[n]) for n, v in state.items())
    assert twin.stages is staged.stages


@pytest.mark.parametrize("neighbours", [0, 3])
@torch.no_grad()
def test_a_file_describes_its_head(tmp_path, neighbours):
    head = FittedHead(32, 3, neighbours, 20 if neighbours else 0)
    twin, module = answering(resnet(), head)
    for value in module.state_dict().values():
        value.copy_(torch.ones_like(value))
    twin.classes = ("a", "b", "c")
    save_checkpoint(twin, tmp_path / "a.safetensors")
    assert read_description(tmp_path / "a.safetensors").head == head
    again, x = load_checkpoint(tmp_path / "a.safetensors", hook="pre_relu"), draw(2, *SHAPE)
    torch.testing.assert_close(again(x), twin(x))
    assert (again.num_classes, again.fitted, again.classes) == (3, head, ("a", "b", "c"))
    assert again.hook == "pre_relu" and content_hash(again) == content_hash(twin)


def test_a_layer_that_gives_no_answers_is_no_classifier():
    class Odd(Tower):
        def __init__(self):
            super().__init__()
            self.early = torch.nn.Linear(6, 6)

        def forward(self, x):
            return self.early(super().forward(x)).repeat(1, 2)

    odd = stages(Odd(), ["block"], input_shape=SHAPE)
    with pytest.raises(FulaError, match="no linear layer in its head that gives its 12 answers"):
        classifier_of(odd)
