"""What each donor of a run takes of its images, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..study.donor_spec import InputSpec
from ..study.spec import parse_table


def inputs_in_words(spec: Mapping[str, Any]) -> dict[str, str]:
    """By donor, of a run's stored spec."""
    return {name: _in_words(donor) for name, donor in spec.get("donors", {}).items()}


def _in_words(donor: Mapping[str, Any]) -> str:
    asked = parse_table(InputSpec, donor.get("input") or {}, "input")
    data = donor.get("data") or {}
    mean, std = asked.mean or data.get("mean"), asked.std or data.get("std")
    parts = [str(asked.frame or "images as [data] gives them")]
    if mean and std:
        parts.append(f"mean {list(mean)}, std {list(std)}")
    return "; ".join(parts)
