"""Small random networks, the reference package's robust CIFAR-10 network, and real images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fula_fast.bench.suites.attack import cifar_images, robust_network

no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Tiny networks gain nothing from threads, and lose much on a busy machine."""


def small_net(classes: int = 6, seed: int = 0, dropout: nn.Module | None = None) -> nn.Module:
    """A convolutional net for 3x8x8 images, in eval mode, with lively batch-norm statistics."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        dropout or nn.Identity(),
        nn.Flatten(),
        nn.Linear(12 * 16, classes),
    )
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if "num_batches" not in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.25)
            if name.endswith("running_var") or (value.dim() == 1 and name.endswith("weight")):
                value.abs_().add_(0.5)
    return net.eval()


def small_batch(net: nn.Module, count: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images with the labels that `net` gives them, the last one of five mislabelled."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 3, 8, 8, generator=generator)
    with torch.no_grad():
        logits = net(x)
    labels = logits.argmax(1)
    labels[4::5] = (labels[4::5] + 1) % logits.shape[1]
    return x, labels


@pytest.fixture(scope="session")
def robust_net() -> nn.Module:
    """The adversarially trained ResNet-18 shipped with the reference package, in eval mode."""
    pytest.importorskip("pyautoattack")
    return robust_network()


@pytest.fixture(scope="session")
def cifar(data_folder) -> tuple[torch.Tensor, torch.Tensor]:
    """Fifty CIFAR-10 test images of each class, classes interleaved: (500, 3, 32, 32), (500,)."""
    return cifar_images(500)
