"""The C++ library, as `cpp/python/module.cpp` binds it: outputs come last and are written into.

Arrays are anything that DLPack carries and that lies on the CPU.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

Array: TypeAlias = Any

def get_num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...
def get_cpu() -> str: ...
def set_cpu(name: str) -> None: ...
def lane_norm_forward(
    x: Array, weight: Array, bias: Array, mean: Array, var: Array, residual: Array | None,
    target: Array | None, lanes: int, training: bool, eps: float, relu: bool, y: Array,
    dist2: Array | None,
) -> None: ...  # fmt: skip
def lane_norm_backward(
    dy: Array | None, ddist2: Array | None, x: Array, weight: Array, bias: Array, mean: Array,
    var: Array, residual: Array | None, target: Array | None, lanes: int, training: bool,
    eps: float, relu: bool, dx: Array | None, dresidual: Array | None, dweight: Array | None,
    dbias: Array | None,
) -> None: ...  # fmt: skip
def hint_terms_forward(
    activations: Sequence[Array], targets: Sequence[Array], dist2: Sequence[Array]
) -> None: ...
def hint_terms_backward(
    activations: Sequence[Array], targets: Sequence[Array], ddist2: Sequence[Array],
    dactivations: Sequence[Array],
) -> None: ...  # fmt: skip
def stitch_hint_forward(
    x: Array, weight: Array, bias: Array, x_index: Array, target: Array | None,
    target_index: Array | None, y: Array | None, dist2: Array | None,
) -> None: ...  # fmt: skip
def stitch_hint_backward(
    dy: Array | None, ddist2: Array | None, x: Array, weight: Array, bias: Array, x_index: Array,
    target: Array | None, target_index: Array | None, y: Array | None, dweight: Array | None,
    dbias: Array | None, dx: Array | None,
) -> None: ...  # fmt: skip
def pgd_step(
    x_adv: Array, grad: Array, x_clean: Array, step: float, eps: float, norm: str, out: Array
) -> None: ...
def augment(
    images: Array, index: Array, dy: Array, dx: Array, flip: Array, pad: int,
    markers: Array | None, marker_index: Array | None, marker_y: Array | None,
    marker_x: Array | None, out: Array,
) -> None: ...  # fmt: skip
def gram(x: Array, y: Array, accumulate: bool, xtx: Array, xty: Array | None) -> None: ...
