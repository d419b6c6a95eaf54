"""FAB and Square, which remain the reference package's (pyautoattack)."""

from __future__ import annotations

from types import ModuleType

import torch

from ..errors import FulaError
from .packed import PackedModel
from .record import Record

_NORMS = {"linf": "Linf", "l2": "L2"}


def hand_over(
    exact: PackedModel, record: Record, attacks: tuple[str, ...], *, norm: str, eps: float,
    seed: int, batch_size: int,
) -> None:  # fmt: skip
    """Let the package attack the survivors, lane by lane; what fools them goes to `record`.

    Its gradients and queries are not counted. Raises `FulaError` where it is not installed.
    """
    reference = reference_package()
    survivors = record.surviving()
    for lane in range(exact.lanes):
        index = [image for own, image in survivors if own == lane]
        if not index:
            continue
        x = record.pixels(index)

        def logits(z: torch.Tensor, lane: int = lane) -> torch.Tensor:
            return exact.logits(z, torch.full((len(z),), lane, device=z.device))

        runner = reference.AutoAttack(
            logits, norm=_NORMS[norm], eps=eps, seed=seed, device=x.device, version="standard"
        )
        runner.attacks_to_run = list(attacks)
        runner.fab.n_target_classes = min(9, record.num_classes - 1)
        found, _ = runner.run_standard_evaluation(x, record.labels[index], batch_size=batch_size)
        moved = (found != x).flatten(1).any(1).nonzero()[:, 0].tolist()
        if moved:
            record.confirm([(lane, index[i]) for i in moved], found[moved])


def reference_package() -> ModuleType:
    """The package pyautoattack; raises `FulaError` where it is not installed."""
    try:
        import pyautoattack
    except ImportError:
        raise FulaError(
            "attack 'autoattack-full' hands FAB and Square to the package pyautoattack, which is "
            "not installed; install it, or use 'autoattack-standard'"
        ) from None
    return pyautoattack
