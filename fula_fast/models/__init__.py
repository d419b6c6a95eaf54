"""Donor models: chains of stages, their checkpoints, and their description without torch."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Chain": "staged",
    "Description": "description",
    "Norm2d": "staged",
    "Normalised": "staged",
    "SiteInfo": "description",
    "Staged": "staged",
    "build": "named",
    "content_hash": "checkpoint",
    "describe": "description",
    "describe_staged": "description",
    "load_checkpoint": "checkpoint",
    "read_description": "stored",
    "read_meta": "stored",
    "save_checkpoint": "checkpoint",
    "sites_table": "description",
    "stages": "cut",
    "with_input": "preparation",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import on first use, so that describing a model does not import torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
