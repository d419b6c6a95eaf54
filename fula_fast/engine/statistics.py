"""The running statistics that a stitched model is evaluated with, by name.

Where a wave or a lone cell has moved them, they are stored with the stitch: without them the model
cannot be put together again.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..models import Staged
from ..study.cell import Cell

_KINDS = ("running_mean", "running_var")


def moves(cell: Cell) -> bool:
    """Whether training leaves a cell with running statistics other than its donors'."""
    return cell.trains and cell.protocol.bn == "train"


def statistics_of(
    front: Staged, tail: Staged, front_site: int, end_site: int, norm: type[nn.Module]
) -> dict[str, Tensor]:
    """Statistics of the norms (modules of type `norm`) that a stitched model passes through.

    Names: `front.` or `tail.`, then the module's own name; not copied.
    """
    found = {}
    for part, model in (("front", front), ("tail", tail)):
        for name, module in model.named_modules():
            used = _site(name) <= front_site if part == "front" else _site(name) > end_site
            if isinstance(module, norm) and used:
                found |= {f"{part}.{name}.{kind}": getattr(module, kind) for kind in _KINDS}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _site(name: str) -> float:
    """The site at the end of the stage that a module belongs to; the head lies behind all."""
    parts = name.split(".")
    return int(parts[1]) + 1 if parts[0] == "stages" and len(parts) > 1 else float("inf")
