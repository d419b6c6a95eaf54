"""Adversarial attacks in pixel space: PGD, Auto-PGD and AutoAttack, for one model or many lanes."""
