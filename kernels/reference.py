"""Every noun in plain PyTorch: the oracle of tests and benches, and what runs, or what
`torch.compile` traces, where no compiled backend serves.

Shapes: L lanes, B samples a lane, C channels, H x W positions; lanes are concatenated along the
batch axis, lane-major: (L*B, C, H, W). Sums are float32 for float16, bfloat16 and float32 inputs,
float64 for float64 inputs. Targets and indices never carry gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import FulaError


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over tensors of `dtype` are taken."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def wide(x: Tensor) -> Tensor:
    """`x` in its accumulator's dtype."""
    return x.to(accumulator(x.dtype))


def by_lane(x: Tensor, lanes: int, samples: int) -> Tensor:
    """(L*B, ...) -> (L, B, ...)."""
    return x.reshape(lanes, samples, *x.shape[1:])


def squared_norm(target: Tensor) -> Tensor:
    """Per-sample sum of squares: (B, ...) -> (B,)."""
    return wide(target).square().sum(list(range(1, target.dim())))


def squared_distance(y: Tensor, target: Tensor) -> Tensor:
    """Per-sample squared distance of every lane to one shared target.

    `y` (L, B, ...), `target` (B, ...) -> (L, B).
    """
    return (y - target.detach().to(y.dtype)).square().flatten(2).sum(2)


def term(dist2: Tensor, norm2: Tensor, scope: str = "batch") -> Tensor:
    """The normalised distance of each lane, ||h - g|| / ||g|| (FuLA preprint, Eq. 5).

    dist2: (L, B) squared distances; norm2: (B,) or (L, B) squared target norms; -> (L,).
    scope: "batch" takes one norm over the whole batch, "sample" the mean of per-sample ratios.
    At zero distance the gradient is zero. A target of zero norm has no relative distance: its
    ratio and gradient are zero. Raises `FulaError` for another scope.
    """
    norm2 = norm2.detach().to(dist2.dtype).expand_as(dist2)
    if scope == "batch":
        return _ratio(dist2.sum(1), norm2.sum(1))
    if scope == "sample":
        return _ratio(dist2, norm2).mean(1)
    raise FulaError(f"scope = '{scope}': must be 'batch' or 'sample'")


def _ratio(dist2: Tensor, norm2: Tensor) -> Tensor:
    """sqrt(dist2 / norm2), with value and gradient zero where either is zero."""
    known = (dist2 != 0) & (norm2 != 0)  # true for NaN, which must come through
    one = torch.ones_like(dist2)
    root = torch.where(known, dist2, one).sqrt() / torch.where(known, norm2, one).sqrt()
    return torch.where(known, root, torch.zeros_like(root))


def lane_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    lanes: int,
    training: bool,
    eps: float,
    residual: Tensor | None = None,
    relu: bool = False,
    target: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Batch norm with every lane's own statistics, residual add, ReLU, and distance to a target.

        y = relu(weight * (x - mean_l) / sqrt(var_l + eps) + bias + residual)

    x, residual: (L*B, C, H, W); weight, bias: (C,) shared, or (L, C); running_mean, running_var:
    (L, C), read only when not training; target: (B, C, H, W), shared by the lanes.
    Returns y, the statistics used (mean and *biased* variance, (L, C), without gradient), and
    dist2 (L, B) = sum over a sample of (y - target)**2, or None without a target. In training the
    caller updates its running statistics.
    """
    samples = x.shape[0] // lanes if lanes else len(x if target is None else target)
    value = wide(by_lane(x, lanes, samples))  # (L, B, C, H, W)
    if training:
        mean = value.mean((1, 3, 4))
        var = (value - _per_channel(mean)).square().mean((1, 3, 4))
    else:
        mean, var = running_mean.to(value.dtype), running_var.to(value.dtype)
    scale = (var + eps).rsqrt() * weight.to(value.dtype)
    y = (value - _per_channel(mean)) * _per_channel(scale)
    y = y + _per_channel(bias.to(value.dtype).expand_as(mean))
    if residual is not None:
        y = y + wide(by_lane(residual, lanes, samples))
    if relu:
        y = y.relu()
    dist2 = None if target is None else squared_distance(y, target)
    return y.flatten(0, 1).to(x.dtype), mean.detach(), var.detach(), dist2


def _per_channel(x: Tensor) -> Tensor:
    """(L, C) -> (L, 1, C, 1, 1)."""
    return x[:, None, :, None, None]


def stitch_hint(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_index: Sequence[int],
    target: Tensor | None = None,
    target_index: Sequence[int] | None = None,
    write: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """Each lane's affine stitch, and its distance to its target.

        y_l = weight_l . x[x_index_l] + bias_l

    x: front activations (S, B, C1, H, W), or tokens (S, B, T, C1), or vectors (S, B, C1), shared by
    the lanes through x_index (L,); weight (L, C2, C1), used in x's dtype; bias (L, C2); target
    (T, B, C2, H, W) (or tokens, or vectors) and target_index (L,).
    Returns y (L*B, C2, H, W), channels-last (or tokens (L*B, T, C2), or vectors), None when
    not `write`; and dist2 (L, B), None without a target.
    """
    features = gather(channels_last(x), x_index)  # (L, B, ..., C1)
    rows = features.flatten(1, -2)
    y = torch.baddbmm(bias.to(x.dtype).unsqueeze(1), rows, weight.to(x.dtype).mT)
    y = y.reshape(*features.shape[:-1], weight.shape[1])
    dist2 = None
    if target is not None:
        aimed = gather(channels_last(target.detach()), target_index)
        dist2 = (wide(y) - wide(aimed)).square().flatten(2).sum(2)
    return (channels_second(y).flatten(0, 1) if write else None), dist2


def gather(x: Tensor, index: Sequence[int]) -> Tensor:
    """x[index] along the first axis, without a copy where all want the same one, or each its own."""
    if len(set(index)) == 1:
        return x[index[0]].expand(len(index), *x.shape[1:])
    return x if list(index) == list(range(len(x))) else x[list(index)]


def channels_last(x: Tensor) -> Tensor:
    """(S, B, C, H, W) -> (S, B, H, W, C); tokens and vectors already end in their features."""
    return x.movedim(2, -1) if x.dim() == 5 else x


def channels_second(x: Tensor) -> Tensor:
    """The inverse: (S, B, H, W, C) -> (S, B, C, H, W)."""
    return x.movedim(-1, 2) if x.dim() == 5 else x


def hint_terms(activations: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
    """Distances of any number of depths.

    activations[i]: (L_i*B, ...), targets[i]: (B, ...), shared by that depth's lanes -> (L_i, B).
    """
    return [
        squared_distance(wide(by_lane(a, len(a) // max(len(t), 1), len(t))), t)
        for a, t in zip(activations, targets, strict=True)
    ]


def pgd_step(
    x_adv: Tensor, grad: Tensor, x_clean: Tensor, step: float, eps: float, norm: str = "linf"
) -> Tensor:
    """One projected ascent step in pixels: (N, ...) -> (N, ...), inside [0, 1].

    linf: x + step * sign(grad), clipped to x_clean +- eps. l2: x + step * grad / ||grad|| per
    sample, its offset from x_clean shortened to eps (Madry et al. 2018). A zero gradient moves
    nothing. Raises `FulaError` for another norm.
    """
    x, g, clean = wide(x_adv), wide(grad), wide(x_clean)
    if norm == "linf":
        offset = (x + step * g.sign() - clean).clamp(-eps, eps)
    elif norm == "l2":
        offset = x + step * g * _inverse_norm(g) - clean
        offset = offset * (eps * _inverse_norm(offset)).clamp(max=1)
    else:
        raise FulaError(f"norm = '{norm}': must be 'linf' or 'l2'")
    return (clean + offset).clamp(0, 1).to(x_adv.dtype)


def _inverse_norm(x: Tensor) -> Tensor:
    """1 / ||x|| per sample, shaped to multiply x; infinity is replaced by 0 at x = 0."""
    norm = x.flatten(1).square().sum(1).sqrt().reshape(-1, *[1] * (x.dim() - 1))
    return torch.where(norm > 0, 1 / norm, torch.zeros_like(norm))


def augment(
    images: Tensor,
    index: Tensor,
    dy: Tensor,
    dx: Tensor,
    flip: Tensor,
    pad: int,
    markers: Tensor | None = None,
    marker_index: Tensor | None = None,
    marker_y: Tensor | None = None,
    marker_x: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A batch from the resident data set: zero-pad, crop, flip, scale to [0, 1], paste markers.

        out[b, y, x] = images[i, y + dy[i] - pad, x' + dx[i] - pad] / 255,  i = index[b],
        x' = W - 1 - x where flip[i], else x; zero outside the image

    images: uint8 (N, H, W, C); index: (B,); dy, dx in [0, 2*pad] and flip (bool): (N,), by sample.
    markers: float32 (M, h, w, C) in [0, 1], pasted last, at (marker_y[i], marker_x[i]), the one
    numbered marker_index[i]; all three (N,). Returns (B, C, H, W) of `dtype`, channels-last.
    """
    height, width = images.shape[1:3]
    rows = torch.arange(height, device=images.device) + (dy[index].long() - pad)[:, None]
    columns = torch.arange(width, device=images.device).expand(len(index), width)
    columns = torch.where(flip[index][:, None], width - 1 - columns, columns)
    columns = columns + (dx[index].long() - pad)[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[
        :, None, :
    ]
    pixels = images[
        index[:, None, None],
        rows.clamp(0, height - 1)[:, :, None],
        columns.clamp(0, width - 1)[:, None, :],
    ]  # (B, H, W, C)
    whole = torch.full((), 255.0, device=images.device)  # a number would become a multiplication
    out = torch.where(inside[..., None], pixels.to(torch.float32) / whole, 0.0)
    if markers is not None:
        out = _paste(out, markers[marker_index[index]], marker_y[index], marker_x[index])
    return out.to(dtype).contiguous().permute(0, 3, 1, 2)


def _paste(out: Tensor, marker: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """`marker` (B, h, w, C) over `out` (B, H, W, C) at rows `top`, columns `left` (B,)."""
    y = torch.arange(out.shape[1], device=out.device) - top.long()[:, None]  # (B, H)
    x = torch.arange(out.shape[2], device=out.device) - left.long()[:, None]
    covered = ((y >= 0) & (y < marker.shape[1]))[:, :, None] & ((x >= 0) & (x < marker.shape[2]))[
        :, None, :
    ]
    batch = torch.arange(out.shape[0], device=out.device)[:, None, None]
    y, x = y.clamp(0, marker.shape[1] - 1), x.clamp(0, marker.shape[2] - 1)
    return torch.where(covered[..., None], marker[batch, y[:, :, None], x[:, None, :]], out)


def gram(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Normal equations of least squares with a bias, in float64.

    x (rows, c1), y (rows, c2), any float dtype; with X = [x, 1]: returns XᵀX (c1+1, c1+1) and
    Xᵀy (c1+1, c2). The last entry of XᵀX is the number of rows; results of chunks add up.
    """
    ones = x.new_ones(x.shape[0], 1, dtype=torch.float64)
    wide_x = torch.cat([x.double(), ones], 1)
    return wide_x.mT @ wide_x, wide_x.mT @ y.double()
