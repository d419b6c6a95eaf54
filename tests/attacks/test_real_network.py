"""AutoAttack on a real network and real images: the reference package's adversarial images and
flags.

Sizes of one comparison: a glance in CI, and by hand (`pytest -m long tests/attacks`) more images,
all iterations, and the whole of AutoAttack's "rand". `python -m
fula_fast.bench.suites.agreement` runs it on any number of images and keeps the figures.
"""

import pytest
import torch

from fula_fast.bench.suites.agreement import ALL_OFF, RAND, reference

from .test_autoattack import ours


def compared(net, x, labels, eps, **short):
    """From the same starts the reference and we find the same adversarial images, pixel for pixel,
    with every saving off but one (20 equal gradients are one), and the same flags with all on."""
    found, robust = reference(net, x, labels, RAND, "linf", eps, **short)
    plain = ours(
        net, x, labels, "autoattack-rand", eps=eps, savings=ALL_OFF, single_sample=True, **short
    )
    assert torch.equal(plain.adversarial, found) and torch.equal(plain.robust, robust)
    saved = ours(net, x, labels, "autoattack-rand", eps=eps, **short)
    assert torch.equal(saved.robust, robust)
    assert 0 < robust.sum() < plain.correct.sum()


@pytest.mark.slow
def test_a_glance(robust_net, cifar):
    compared(robust_net, cifar[0][:8], cifar[1][:8], 0.5 / 255, eot=1, steps=4)


@pytest.mark.long
def test_thirty_two_images_at_twenty_samples(robust_net, cifar):
    """32 images and 20 samples, as "rand" has them, but 3 of its 100 iterations: all of a stage's
    machinery, with a checkpoint at every iteration. Every adversarial image equals the
    reference's, pixel for pixel."""
    compared(robust_net, cifar[0][:32], cifar[1][:32], 1 / 255, eot=20, steps=3)


@pytest.mark.long
def test_a_hundred_iterations(robust_net, cifar):
    """All of the 100 iterations, so all of the published checkpoints and step sizes, of both
    stages; 5 images and one sample. Every adversarial image equals the reference's, pixel for
    pixel."""
    compared(robust_net, cifar[0][3:8], cifar[1][3:8], 1 / 255, eot=1, steps=100)


@pytest.mark.long
def test_the_whole_of_rand(robust_net, cifar):
    """32 images, 20 samples and 100 iterations together: 62,000 gradients of the reference, a
    quarter of an hour on two free cores. What the two slow tests leave open: 27 more images over
    the late iterations, and 20 samples there (rounding of means of equal gradients)."""
    compared(robust_net, cifar[0][:32], cifar[1][:32], 1 / 255, eot=20, steps=100)
