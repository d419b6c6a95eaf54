"""FAB and Square, which remain the reference package's (pyautoattack)."""

from __future__ import annotations

from torch import Tensor

from .losses import LogitsFn
from .options import AttackOptions

_NORMS = {"linf": "Linf", "l2": "L2"}
_ATTACKS = ["fab-t", "square"]


def fab_and_square(logits: LogitsFn, x: Tensor, labels: Tensor, options: AttackOptions) -> Tensor:
    """What the package makes of images (n, C, H, W) with labels (n,): those that it cannot fool the
    model with come back as they are. Its gradients and queries are not counted."""
    import pyautoattack

    runner = pyautoattack.AutoAttack(
        logits, norm=_NORMS[options.norm], eps=options.eps, seed=options.seed, device=x.device,
        version="standard",
    )  # fmt: skip
    runner.attacks_to_run = list(_ATTACKS)
    runner.fab.n_target_classes = min(9, logits(x[:1]).shape[1] - 1)
    found, _ = runner.run_standard_evaluation(x, labels, batch_size=options.batch)
    return found
