"""1×1 convolutions with a stride that take their pixels first: W x[s h, s w] either way.

On a CPU this keeps them away from a fault of oneDNN that overwrites memory, on CUDA from a slow
path of cuDNN.

The weight gradient of such a convolution first gathers the pixels that the stride keeps. Where
channels are last, oneDNN writes whole vectors of channels there (8 wide with AVX2, 16 with
AVX-512) into a buffer sized for the channels that exist: with fewer, it writes past the end. One
thread then damages the heap, several spoil each other's pixels and the gradient is wrong. Source:
oneDNN issue 6035, open at 3.12 (torch 2.14); seen with AVX2, float32, 2 to 7 channels, sides that
the stride divides, and channels last in the activations or only in the weight.

With up to 64 channels in bfloat16, cuDNN 9 (torch 2.11) runs such a forward pass in plain
arithmetic between two changes of layout: 12 TFLOP/s on an H100 (64 to 128 channels, 32x32), where
memory would allow 200. Its gradient of the input has no such fault, and stays.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SLOW = 64
"""Channels up to which cuDNN is slow."""
VECTOR = 16
"""Channels of the widest vector, AVX-512's: what is safe there is safe with AVX2."""


class Subsampled2d(nn.Conv2d):
    """A 1×1 `Conv2d` that on a CPU takes every s-th pixel first, and then has no stride."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, K, ceil(H / s), ceil(W / s))."""
        if x.device.type != "cpu":
            return super().forward(x)
        return functional.conv2d(_kept(x, self.stride), self.weight, self.bias, groups=self.groups)


class FrozenSubsampled2d(nn.Conv2d):
    """A 1×1 `Conv2d` whose weights are not trained, that takes every s-th pixel first."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, K, ceil(H / s), ceil(W / s))."""
        y = _Pointwise.apply(x, self.weight, self.stride, self.groups)
        return y if self.bias is None else y + self.bias[:, None, None]


class _Pointwise(torch.autograd.Function):
    """A strided 1×1 convolution without bias; its gradient is the library's, of the whole map."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: tuple[int, int], groups: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.stride, ctx.groups = x.shape, stride, groups
        return functional.conv2d(_kept(x, stride), weight, groups=groups)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        dx = nn.grad.conv2d_input(ctx.shape, weight, grad, ctx.stride, groups=ctx.groups)
        return dx, None, None, None


def _kept(x: Tensor, stride: tuple[int, int]) -> Tensor:
    """Every s-th pixel."""
    down, right = stride
    return x[..., ::down, ::right]


def overruns(conv: nn.Conv2d) -> bool:
    """Whether oneDNN may write past its buffer in the weight gradient of this convolution."""
    return _pointwise(conv) and conv.in_channels // conv.groups < VECTOR


def _pointwise(conv: nn.Conv2d) -> bool:
    """Whether it is a 1×1 convolution with a stride."""
    return max(conv.kernel_size) == 1 and max(conv.stride) > 1 and conv.padding in ((0, 0), "valid")


def keep_in_bounds(module: nn.Module) -> None:
    """Make every convolution of `module` that could overrun a `Subsampled2d`, in place.

    Parameters, their names and the function computed stay as they are.
    """
    for child in module.modules():
        if type(child) is nn.Conv2d and overruns(child):
            child.__class__ = Subsampled2d


def take_pixels_first(module: nn.Module) -> None:
    """Make every frozen convolution of `module` that cuDNN runs slowly a `FrozenSubsampled2d`, in
    place; names and the function computed stay as they are."""
    for child in module.modules():
        slow = type(child) is nn.Conv2d and _pointwise(child) and child.in_channels <= SLOW
        if slow and not child.weight.requires_grad:
            child.__class__ = FrozenSubsampled2d
