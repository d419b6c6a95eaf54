"""Adversarial attacks in pixel space: PGD, Auto-PGD and AutoAttack, for one model or many lanes.

`names` and `options` need no torch; everything else is loaded when it is first asked for (functions
of a module's own name are taken from there: `from fula_fast.attacks.pgd import pgd`). Add an attack
of your own with `fula_fast.attacks.register(NamedAttack(...))`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .names import AttackStage, NamedAttack, attacks, register
from .options import AttackOptions, Savings

_LAZY = {
    "Attack": "fula_fast.attacks.settings",
    "Replay": "fula_fast.device.replay",
    "RobustResult": "fula_fast.attacks.robustness",
    "attack_checkpoint": "fula_fast.attacks.robustness",
    "robust_evaluate": "fula_fast.attacks.robustness",
    "save_examples": "fula_fast.attacks.robustness",
    "PackedModel": "fula_fast.attacks.packed",
    "PGD": "fula_fast.attacks.pgd",
    "eval_mode": "fula_fast.attacks.pgd",
    "pgd_from": "fula_fast.attacks.pgd",
}
__all__ = [
    "AttackOptions", "NamedAttack", "Savings", "AttackStage", "attacks", "register", *_LAZY,
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        found = globals()[name] = getattr(import_module(_LAZY[name]), name)
        return found
    raise AttributeError(f"module 'fula_fast.attacks' has no attribute '{name}'")
