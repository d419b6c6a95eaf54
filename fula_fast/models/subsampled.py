"""1×1 convolutions with a stride, kept away from a fault of oneDNN that overwrites memory.

The weight gradient of such a convolution first gathers the pixels that the stride keeps. Where
channels are last, oneDNN writes whole vectors of channels there (8 wide with AVX2, 16 with
AVX-512) into a buffer sized for the channels that exist: with fewer, it writes past the end. One
thread then damages the heap, several spoil each other's pixels and the gradient is wrong. Source:
oneDNN issue 6035, open at 3.12 (torch 2.14); seen with AVX2, float32, 2 to 7 channels, sides that
the stride divides, and channels last in the activations or only in the weight. Gathering the pixels
ourselves is exact: out[h, w] = W x[s h, s w] either way.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

VECTOR = 16
"""Channels of the widest vector, AVX-512's: what is safe there is safe with AVX2."""


class Subsampled2d(nn.Conv2d):
    """A 1×1 `Conv2d` that on a CPU takes every s-th pixel first, and then has no stride."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, K, ceil(H / s), ceil(W / s))."""
        if x.device.type != "cpu":
            return super().forward(x)
        down, right = self.stride
        kept = x[..., ::down, ::right]
        return functional.conv2d(kept, self.weight, self.bias, groups=self.groups)


def overruns(conv: nn.Conv2d) -> bool:
    """Whether oneDNN may write past its buffer in the weight gradient of this convolution."""
    return (
        max(conv.kernel_size) == 1
        and max(conv.stride) > 1
        and conv.padding in ((0, 0), "valid")
        and conv.in_channels // conv.groups < VECTOR
    )


def keep_in_bounds(module: nn.Module) -> None:
    """Make every convolution of `module` that could overrun a `Subsampled2d`, in place.

    Parameters, their names and the function computed stay as they are.
    """
    for child in module.modules():
        if type(child) is nn.Conv2d and overruns(child):
            child.__class__ = Subsampled2d
