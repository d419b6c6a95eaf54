"""Launches every Triton kernel as a GPU's process would, with a stand-in for the driver alone.

Triton binds and specialises the real arguments and compiles for sm_90 down to machine code; only
loading and running it are pretended. Prints the kernels launched. Run by `test_jit.py`, in a
process of its own.
"""

from __future__ import annotations

from itertools import product

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from fula_fast.kernels.augment.arguments import AugmentArguments
from fula_fast.kernels.hint_terms.arguments import HintTermsArguments
from fula_fast.kernels.lane_conv.arguments import ConvGradients, LaneConvArguments
from fula_fast.kernels.lane_norm.arguments import LaneNormArguments, ResidualNorm
from fula_fast.kernels.pgd_step.arguments import PgdStepArguments
from fula_fast.kernels.shared.backend import implementation
from fula_fast.kernels.shared.operators import Incoming
from fula_fast.kernels.stitch_hint.arguments import StitchHintArguments

SHARED = 232_448  # bytes a block may take on sm_90
LANES, SAMPLES = 3, 4
launched: dict[str, int] = {}


class Utilities:
    """Loads nothing; knows the chip's limits."""

    def load_binary(self, name, kernel, shared, device):
        assert shared <= SHARED, (name, shared)
        return 1, 1, 0, 0, 1024

    def get_device_properties(self, device):
        return {"max_shared_mem": SHARED, "multiprocessor_count": 132, "warpSize": 32}


class Launcher:
    """Counts launches, and checks the grid: y and z end at 65,535, so nothing stands there."""

    def __init__(self, source, metadata) -> None:
        self.name = metadata.name

    def __call__(self, x, y, z, *rest) -> None:
        assert 0 < x < 2**31 and (y, z) == (1, 1), (self.name, x, y, z)
        launched[self.name] = launched.get(self.name, 0) + 1


class Driver:
    """An H100 that is not there."""

    utils, launcher_cls = Utilities(), Launcher

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


def maps(count: int, channels: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    x = torch.randn(count, channels, size, size).to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def norms(dtype: torch.dtype, channels: int, size: int) -> None:
    """Forward and backward, training and eval, with and without residual and target."""
    x, residual, dy = (maps(LANES * SAMPLES, channels, size, dtype) for _ in range(3))
    target, ddist2 = maps(SAMPLES, channels, size, dtype), torch.rand(LANES, SAMPLES)
    affine, running = torch.rand(2, channels), torch.rand(2, LANES, channels)
    for training, whole in product((True, False), (True, False)):
        extras = (residual, target) if whole else (None, None)
        a = LaneNormArguments(x, *affine, *running, *extras, LANES, training, 1e-5, True)
        implementation("lane_norm", "triton").forward(a)
        given = Incoming(dy, ddist2 if whole else None)
        implementation("lane_norm", "triton").backward(a, given, False)


def stitches(dtype: torch.dtype, channels: int, size: int) -> None:
    """Shared fronts and own ones; with y, with a target, with both; with a gradient to the front."""
    serve = implementation("stitch_hint", "triton")
    shared = maps(SAMPLES, channels, size, dtype)[None]
    own = maps(LANES * SAMPLES, channels, size, dtype).unflatten(0, (LANES, SAMPLES))
    dy, target = maps(LANES * SAMPLES, channels, size, dtype), shared
    ddist2 = torch.rand(LANES, SAMPLES)
    weight, bias = torch.randn(LANES, channels, channels), torch.randn(LANES, channels)
    for x, index in ((shared, [0] * LANES), (own, [0, 1, 2])):
        plain = StitchHintArguments(x, weight, bias, index, None, [], True)
        both = plain._replace(target=target, target_index=[0] * LANES)
        aimed = both._replace(write=False)
        for a in (plain, both, aimed):
            serve.forward(a)
        serve.backward(plain, Incoming(dy, None), False)
        serve.backward(aimed, Incoming(None, ddist2), False)
        serve.backward(both, Incoming(dy, ddist2), False)
        serve.backward(plain, Incoming(dy, None), True)


def convolutions(dtype: torch.dtype, channels: int, size: int) -> None:
    """A block's first convolution and one behind a norm, forward and backward."""
    serve = implementation("lane_conv", "triton")
    x, weight = maps(LANES * SAMPLES, channels, size, dtype), maps(channels, channels, 3, dtype)
    norm = [torch.rand(channels) for _ in range(2)]
    norm += [torch.rand(LANES, channels) for _ in range(2)]
    for stride, given in ((1, norm), (2, [None] * 4)):
        a = LaneConvArguments(x, weight, *given, LANES, stride, 1, 1e-5)
        y, mean, var = serve.forward(a)
        beside, scale = (None, mean) if stride == 1 else (x, None)
        serve.backward(a, ConvGradients(y, mean, var, y, mean, beside, scale))


def ends(dtype: torch.dtype, channels: int, size: int) -> None:
    """Blocks' ends with a norm of the residual's own and without; with each output's gradient."""
    x, residual, dy = (maps(LANES * SAMPLES, channels, size, dtype) for _ in range(3))
    target, ddist2 = maps(SAMPLES, channels, size, dtype), torch.rand(LANES, SAMPLES)
    affine, running = torch.rand(2, channels), torch.rand(2, LANES, channels)
    serve = implementation("lane_norm", "triton")
    own = ResidualNorm(*affine, *running, 1e-5)
    for beside, aim in product((own, ResidualNorm(None, None, None, None, 0.0)), (target, None)):
        a = LaneNormArguments(x, *affine, *running, residual, aim, LANES, False, 1e-5, True)
        serve.joined(a, beside)
        serve.joined_backward(a, beside, Incoming(dy, None))
        if aim is not None:
            serve.joined_backward(a, beside, Incoming(None, ddist2))


def terms(dtype: torch.dtype, channels: int, size: int) -> None:
    x, target = (maps(n, channels, size, dtype) for n in (LANES * SAMPLES, SAMPLES))
    a = HintTermsArguments([x], [target])
    implementation("hint_terms", "triton").forward(a)
    implementation("hint_terms", "triton").backward(a, [torch.rand(LANES, SAMPLES)])


def pixels() -> None:
    x, gradient, clean = torch.rand(3, 128, 3, 32, 32)
    for norm in ("linf", "l2"):
        a = PgdStepArguments(x, gradient, clean, 0.01, 0.03, norm)
        implementation("pgd_step", "triton").forward(a)
    images = torch.randint(0, 256, (64, 32, 32, 3), dtype=torch.uint8)
    draws = torch.randint(0, 9, (64,), dtype=torch.int32)
    common = images, torch.arange(16), draws, draws, draws > 4, 4
    serve = implementation("augment", "triton")
    serve.forward(AugmentArguments(*common, None, None, None, None, torch.bfloat16))
    markers = torch.rand(10, 4, 4, 3)
    serve.forward(AugmentArguments(*common, markers, draws.long(), draws, draws, torch.float32))


def main() -> None:
    driver.set_active(Driver())
    for dtype in (torch.bfloat16, torch.float32):
        for channels, size in ((64, 32), (512, 4)):
            norms(dtype, channels, size)
            stitches(dtype, channels, size)
            convolutions(dtype, channels, size)
            ends(dtype, channels, size)
            terms(dtype, channels, size)
    pixels()
    print(*sorted(launched))


if __name__ == "__main__":
    main()
