"""Argument checks of the public operators: argument, value, rule, in one line.

Everything is decided from shapes, dtypes, devices and host numbers; nothing is read back from a
device, so checks are free inside a captured step. Lane indices are host numbers for that reason.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from reprlib import repr as shortened

import torch
from torch import Tensor

from ...errors import FulaError

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int32, torch.int64)


def _fail(noun: str, name: str, value: object, rule: str) -> None:
    raise FulaError(f"{noun}: {name} = {value}: {rule}")


def _short(value: object) -> str:
    return " ".join(shortened(value).split())


def _tensors(noun: str, tensors: Mapping[str, object]) -> None:
    """Each is a tensor of the ordinary kind: with strides, not sparse, not nested."""
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            _fail(noun, name, _short(x), "must be a tensor")
        if x.layout != torch.strided or x.is_nested:
            layout = "nested" if x.is_nested else x.layout
            _fail(noun, f"{name}.layout", layout, "must be torch.strided")


def _present(**optional: object) -> dict[str, object]:
    return {name: value for name, value in optional.items() if value is not None}


def _integer(noun: str, name: str, value: object) -> None:
    if not isinstance(value, (int, torch.SymInt, Integral)):
        _fail(noun, name, _short(value), "must be an integer")


def _shape(noun: str, name: str, x: Tensor, *shapes: Sequence[int], meaning: str) -> None:
    if all(tuple(x.shape) != tuple(shape) for shape in shapes):
        wanted = " or ".join(str(tuple(shape)) for shape in shapes)
        _fail(noun, f"{name}.shape", tuple(x.shape), f"must be {wanted}, {meaning}")


def _like(noun: str, name: str, x: Tensor, main: str, other: Tensor, dtype: bool = True) -> None:
    """`x` lives where `other` does, and shares its dtype if `dtype`."""
    if x.device != other.device:
        _fail(noun, f"{name}.device", x.device, f"must be that of {main}, {other.device}")
    if dtype and x.dtype != other.dtype:
        _fail(noun, f"{name}.dtype", x.dtype, f"must be that of {main}, {other.dtype}")
    if not dtype and x.dtype not in FLOATS:
        _fail(noun, f"{name}.dtype", x.dtype, "must be a float")


def _float(noun: str, name: str, x: Tensor) -> None:
    if x.dtype not in FLOATS:
        _fail(noun, f"{name}.dtype", x.dtype, "must be float32, bfloat16, float16 or float64")


def _number(noun: str, name: str, value: float) -> None:
    if not isinstance(value, (int, float, Real)):
        _fail(noun, name, _short(value), "must be a number")
    if not 0 <= value < math.inf:  # `math.isfinite` breaks the graph where a number is a symbol
        _fail(noun, name, value, "must be finite and at least 0")


def lane_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    lanes: int,
    training: bool,
    eps: float,
    residual: Tensor | None,
    target: Tensor | None,
) -> None:
    """Refuse what `lane_norm` cannot mean."""
    noun = "lane_norm"
    given = {"x": x, "weight": weight, "bias": bias}
    given |= {"running_mean": running_mean, "running_var": running_var}
    _tensors(noun, given | _present(residual=residual, target=target))
    _integer(noun, "lanes", lanes)
    _float(noun, "x", x)
    if x.dim() != 4:
        _fail(noun, "x.shape", tuple(x.shape), "must be (L*B, C, H, W)")
    if lanes < 0 or (x.shape[0] % lanes if lanes else x.shape[0]):
        _fail(noun, "lanes", lanes, f"must divide the batch axis of x, {x.shape[0]}")
    channels = x.shape[1]
    for name, tensor in (("weight", weight), ("bias", bias)):
        _like(noun, name, tensor, "x", x, dtype=False)
        _shape(noun, name, tensor, (channels,), (lanes, channels), meaning="(C,) or (L, C)")
    _shape(noun, "bias", bias, weight.shape, meaning="that of weight")
    for name, tensor in (("running_mean", running_mean), ("running_var", running_var)):
        _like(noun, name, tensor, "x", x, dtype=False)
        _shape(noun, name, tensor, (lanes, channels), meaning="(L, C)")
    _number(noun, "eps", eps)
    if training and lanes and not x.shape[0] * x.shape[2] * x.shape[3]:
        _fail(noun, "x.shape", tuple(x.shape), "training needs at least one value a channel")
    if residual is not None:
        _like(noun, "residual", residual, "x", x)
        _shape(noun, "residual", residual, x.shape, meaning="that of x")
    if target is not None:
        _like(noun, "target", target, "x", x)
        samples = x.shape[0] // lanes if lanes else len(target)
        _shape(noun, "target", target, (samples, *x.shape[1:]), meaning="(B, C, H, W)")


def _index(noun: str, name: str, number: object) -> int:
    try:
        return operator.index(number)
    except TypeError:
        _fail(noun, name, _short(number), "must be an integer")


def lane_index(noun: str, name: str, index: Tensor | Sequence[int] | None, count: int, lanes: int):
    """The lane index as a list of host numbers, each in [0, count), one a lane.

    Sequences, and tensors in host memory. A device tensor is refused: reading it would stall the
    device, and cannot be done inside a capture.
    """
    if index is None:
        _fail(noun, name, None, "must be given with its tensor")
    if isinstance(index, Tensor):
        if index.device.type != "cpu":
            _fail(noun, f"{name}.device", index.device, "must be host numbers, or a CPU tensor")
        _tensors(noun, {name: index})
        index = index.tolist()
    if not isinstance(index, Iterable):
        _fail(noun, name, _short(index), "must be a sequence of integers, one a lane")
    index = [_index(noun, f"{name}[{lane}]", number) for lane, number in enumerate(index)]
    if len(index) != lanes:
        _fail(noun, f"len({name})", len(index), f"must be the number of lanes, {lanes}")
    for lane, number in enumerate(index):
        if not 0 <= number < count:
            _fail(noun, f"{name}[{lane}]", number, f"must lie in 0 ... {count - 1}")
    return index


def stitch_hint(
    x: Tensor, weight: Tensor, bias: Tensor, target: Tensor | None, write: bool
) -> None:
    """Refuse what `stitch_hint` cannot mean; the indices have `lane_index`."""
    noun = "stitch_hint"
    _tensors(noun, {"x": x, "weight": weight, "bias": bias} | _present(target=target))
    _float(noun, "x", x)
    if x.dim() not in (3, 4, 5):
        rule = "must be (S, B, C1, H, W), tokens (S, B, T, C1) or vectors (S, B, C1)"
        _fail(noun, "x.shape", tuple(x.shape), rule)
    features = x.shape[2] if x.dim() == 5 else x.shape[-1]
    _like(noun, "weight", weight, "x", x, dtype=False)
    if weight.dim() != 3 or weight.shape[2] != features:
        rule = f"must be (L, C2, {features}), the features of x last"
        _fail(noun, "weight.shape", tuple(weight.shape), rule)
    _like(noun, "bias", bias, "x", x, dtype=False)
    _shape(noun, "bias", bias, weight.shape[:2], meaning="(L, C2)")
    if target is not None:
        _like(noun, "target", target, "x", x)
        places = x.shape[3:] if x.dim() == 5 else x.shape[2:-1]
        outputs = weight.shape[1]
        shape = (outputs, *places) if x.dim() == 5 else (*places, outputs)
        if target.dim() != x.dim() or tuple(target.shape[1:]) != (x.shape[1], *shape):
            rule = f"must be (T, {', '.join(str(n) for n in (x.shape[1], *shape))})"
            _fail(noun, "target.shape", tuple(target.shape), rule)
    elif not write:
        _fail(noun, "write", write, "must be True where there is no target")


def hint_terms(activations: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Refuse what `hint_terms` cannot mean."""
    noun = "hint_terms"
    for name, given in (("activations", activations), ("targets", targets)):
        if not isinstance(given, Sequence):
            _fail(noun, name, _short(given), "must be a sequence of tensors, one a depth")
        _tensors(noun, {f"{name}[{i}]": x for i, x in enumerate(given)})
    if len(activations) != len(targets):
        _fail(
            noun, "len(targets)", len(targets), f"must be that of activations, {len(activations)}"
        )
    for i, (activation, target) in enumerate(zip(activations, targets, strict=True)):
        _float(noun, f"activations[{i}]", activation)
        _like(noun, f"activations[{i}]", activation, "activations[0]", activations[0])
        _like(noun, f"targets[{i}]", target, f"activations[{i}]", activation)
        if not target.dim() or target.shape[1:] != activation.shape[1:]:
            rule = f"must be (B, ...) with {tuple(activation.shape[1:])} after B"
            _fail(noun, f"targets[{i}].shape", tuple(target.shape), rule)
        if len(activation) % len(target) if len(target) else len(activation):
            rule = f"must be a multiple of the target's batch, {len(target)}"
            _fail(noun, f"len(activations[{i}])", len(activation), rule)


def pgd_step(
    x_adv: Tensor, grad: Tensor, x_clean: Tensor, step: float, eps: float, norm: str
) -> None:
    """Refuse what `pgd_step` cannot mean."""
    noun = "pgd_step"
    _tensors(noun, {"x_adv": x_adv, "grad": grad, "x_clean": x_clean})
    _float(noun, "x_adv", x_adv)
    for name, tensor in (("grad", grad), ("x_clean", x_clean)):
        _like(noun, name, tensor, "x_adv", x_adv)
        _shape(noun, name, tensor, x_adv.shape, meaning="that of x_adv")
    if not x_adv.dim():
        _fail(noun, "x_adv.shape", (), "must be (N, ...)")
    _number(noun, "step", step)
    _number(noun, "eps", eps)
    if norm not in ("linf", "l2"):
        _fail(noun, "norm", f"'{norm}'", "must be 'linf' or 'l2'")


def augment(
    images: Tensor,
    index: Tensor,
    by_sample: dict[str, Tensor | None],
    flip: Tensor,
    pad: int,
    markers: Tensor | None,
    dtype: torch.dtype,
) -> None:
    """Refuse what `augment` cannot mean. Values of `index` and the draws are the caller's care:
    they live on the device."""
    noun = "augment"
    vectors = {"index": index, "flip": flip, **by_sample}
    _tensors(noun, {"images": images} | _present(markers=markers))
    for name, tensor in vectors.items():
        if tensor is None and name.startswith("marker"):
            _fail(noun, name, None, "must be given with markers")
    _tensors(noun, vectors)
    _integer(noun, "pad", pad)
    if images.dtype != torch.uint8 or images.dim() != 4:
        rule = "must be uint8 (N, H, W, C)"
        _fail(noun, "images", f"{images.dtype} {tuple(images.shape)}", rule)
    if index.dtype not in INTEGERS or index.dim() != 1:
        rule = "must be int32 or int64 (B,)"
        _fail(noun, "index", f"{index.dtype} {tuple(index.shape)}", rule)
    for name, tensor in vectors.items():
        if tensor.device != images.device:
            _fail(noun, f"{name}.device", tensor.device, f"must be that of images, {images.device}")
    for name, tensor in {"flip": flip, **by_sample}.items():
        _shape(noun, name, tensor, (len(images),), meaning="(N,), one a sample")
        if name != "flip" and tensor.dtype not in INTEGERS:
            _fail(noun, f"{name}.dtype", tensor.dtype, "must be int32 or int64")
    if flip.dtype != torch.bool:
        _fail(noun, "flip.dtype", flip.dtype, "must be bool")
    if pad < 0:
        _fail(noun, "pad", pad, "must be at least 0")
    if dtype not in FLOATS:
        _fail(noun, "dtype", dtype, "must be a float")
    if markers is not None:
        _markers(markers, images)


def _markers(markers: Tensor, images: Tensor) -> None:
    noun, (_, height, width, channels) = "augment", images.shape
    if markers.dtype != torch.float32 or markers.device != images.device:
        rule = f"must be float32 on {images.device}"
        _fail(noun, "markers", f"{markers.dtype} on {markers.device}", rule)
    fits = markers.dim() == 4 and markers.shape[3] == channels
    if not fits or markers.shape[1] > height or markers.shape[2] > width:
        rule = f"must be (M, h, w, {channels}) with h <= {height}, w <= {width}"
        _fail(noun, "markers.shape", tuple(markers.shape), rule)


def gram(x: Tensor, y: Tensor) -> None:
    """Refuse what `gram` cannot mean."""
    _tensors("gram", {"x": x, "y": y})
    _float("gram", "x", x)
    _like("gram", "y", y, "x", x, dtype=False)
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y):
        rule = "must be (rows, c1) and (rows, c2)"
        _fail("gram", "x.shape, y.shape", f"{tuple(x.shape)}, {tuple(y.shape)}", rule)
