"""Adversarial attacks in pixel space: PGD, Auto-PGD and AutoAttack, for one model or many lanes."""

from ..device.replay import Replay
from .evaluate import RobustResult, attack_checkpoint, robust_evaluate, save_examples
from .fold import fold
from .options import AttackOptions, Savings
from .packed import PackedModel
from .pgd import PGD, eval_mode, pgd, pgd_from
from .start_noise import start_noise

__all__ = [
    "PGD",
    "AttackOptions",
    "PackedModel",
    "Replay",
    "RobustResult",
    "Savings",
    "attack_checkpoint",
    "eval_mode",
    "fold",
    "pgd",
    "pgd_from",
    "robust_evaluate",
    "save_examples",
    "start_noise",
]
