"""How kernels are compared: against the float64 reference, within twice PyTorch's own error."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from fula_fast import kernels as K
from fula_fast.kernels import backend

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Tiny tensors gain nothing from threads."""


@pytest.fixture(autouse=True)
def _no_python_behind_c(monkeypatch):
    """A Ctrl-C is dropped that lands in the Python that the C++ library calls to have a tensor."""
    calls = []
    usual = Tensor.__dlpack__
    monkeypatch.setattr(
        Tensor, "__dlpack__", lambda t, **options: calls.append(t) or usual(t, **options)
    )
    yield
    assert not calls


@pytest.fixture
def device(request) -> torch.device:
    """Where Triton kernels run: `interpreter` (TRITON_INTERPRET=1, its own process) or `cuda`."""
    if request.param == "interpreter":
        if not INTERPRETED:
            pytest.skip("runs in a process of its own with TRITON_INTERPRET=1")
        return torch.device("cpu")
    if INTERPRETED or not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, without TRITON_INTERPRET")
    return torch.device("cuda")


def pytest_generate_tests(metafunc):
    """Tests that ask for `device` run in the interpreter and, marked gpu, on a device."""
    if "device" in metafunc.fixturenames:
        params = ["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)]
        metafunc.parametrize("device", params, indirect=True)


class Maker:
    """Random tensors from one seed, on the CPU, moved and laid out afterwards."""

    def __init__(self, dtype: torch.dtype = torch.float64, layout: str = "last") -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.dtype, self.layout = dtype, layout

    def __call__(self, *shape: int, grad: bool = False, shift: float = 0.0) -> Tensor:
        x = (torch.randn(shape, generator=self.generator) + shift).to(self.dtype)
        return laid(x, self.layout).requires_grad_(grad)

    def wide(self, *shape: int, grad: bool = False, shift: float = 0.0) -> Tensor:
        """float32 (float64 with it), whatever the activations are."""
        x = torch.randn(shape, generator=self.generator) + shift
        return x.to(torch.promote_types(self.dtype, torch.float32)).requires_grad_(grad)


def laid(x: Tensor, layout: str) -> Tensor:
    """Maps (.., C, H, W) as channels-`last`, contiguous (`first`), or with `gaps` in between."""
    if layout == "gaps" and x.dim() > 2:
        holed = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])[..., ::2]
        return holed.copy_(x)
    if layout == "last" and x.dim() in (4, 5):
        maps = x.reshape(-1, *x.shape[-3:]).contiguous(memory_format=torch.channels_last)
        return maps.view(x.shape) if x.dim() == 4 else maps.unflatten(0, x.shape[:2])
    return x


@pytest.fixture
def maker() -> type[Maker]:
    """The class `Maker`."""
    return Maker


def _run(call: Callable, inputs: Sequence, name: str) -> list[Tensor]:
    """Outputs of `call`, then gradients of a fixed weighted sum of them, under a backend."""
    with backend.using(name):
        outputs = [y for y in call(*inputs) if y is not None]
    differentiable = [y for y in outputs if y.requires_grad]
    if not differentiable:
        return outputs
    generator = torch.Generator().manual_seed(1)
    weights = [torch.rand(y.shape, generator=generator).to(y.device) for y in differentiable]
    total = sum((y.double() * w).sum() for y, w in zip(differentiable, weights, strict=True))
    wanted = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    return [y.detach() for y in outputs] + list(torch.autograd.grad(total, wanted))


def _moved(x, device=None, dtype=None):
    if not isinstance(x, Tensor):
        return x
    dtype = dtype if x.is_floating_point() else None
    return x.detach().to(device=device, dtype=dtype).requires_grad_(x.requires_grad)


class Agree:
    """Compare `call(*inputs)` under a backend with the float64 reference, gradients included.

    Allowed: twice the error of the reference in the inputs' own dtypes, plus `atol` times the
    largest magnitude. `passed_on`: numbers of values made from what was stored, and so rounded,
    in the first input's dtype before: half a unit of it more.
    """

    def __call__(
        self,
        call: Callable,
        inputs: Sequence,
        name: str,
        device: torch.device | str = "cpu",
        atol: float = 2e-6,
        passed_on: Sequence[int] = (),
    ) -> None:
        exact = _run(call, [_moved(x, dtype=torch.float64) for x in inputs], "reference")
        own = _run(call, [_moved(x) for x in inputs], "reference")
        ours = _run(call, [_moved(x, device=device) for x in inputs], name)
        assert len(exact) == len(ours)
        for i, (want, plain, got) in enumerate(zip(exact, own, ours, strict=True)):
            assert got.shape == want.shape, i
            assert got.dtype == plain.dtype, i
            if not want.numel():
                continue
            share = atol + (torch.finfo(inputs[0].dtype).eps / 2 if i in passed_on else 0)
            allowed = 2 * _error(plain, want) + share * want.abs().max().item()
            assert _error(got.cpu(), want) <= allowed, f"value {i} of shape {tuple(want.shape)}"


def _error(x: Tensor, want: Tensor) -> float:
    return (x.double() - want).abs().max().item()


@pytest.fixture
def agree() -> Agree:
    """The comparison."""
    return Agree()


@pytest.fixture
def room_is_left() -> Callable[..., None]:
    """Asserts that samples behind y change neither y nor, whatever gradient comes to them, any
    gradient: room_is_left(make, backend, device)."""

    def check(make: Maker, name: str, device: str | torch.device = "cpu") -> None:
        x, residual = (make(6, 4, 3, 2, grad=True).to(device) for _ in range(2))
        vectors = [make.wide(4), make.wide(4), make.wide(2, 4), make.wide(2, 4).abs()]
        vectors = [v.to(device) for v in vectors]
        target, dy = make(3, 4, 3, 2).to(device), make(9, 4, 3, 2).to(device)
        options = {"lanes": 2, "training": True, "eps": 1e-5, "relu": True, "residual": residual}
        found = []
        for room in (0, 3):
            with backend.using(name):
                y, *_, dist2 = K.lane_norm(x, *vectors, **options, target=target, room=room)
            assert len(y) == 6 + room
            given = [dy[: len(y)], torch.ones_like(dist2)]
            found.append([y[:6], dist2, *torch.autograd.grad([y, dist2], [x, residual], given)])
        for roomy, plain in zip(*found, strict=True):
            assert torch.equal(roomy, plain)

    return check
