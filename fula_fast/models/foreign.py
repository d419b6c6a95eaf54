"""Weights that other programs wrote: PyTorch files, archives of NumPy, foreign safetensors.

Only tensors, arrays and plain values are unpickled, never code. The state dict is looked for at any
depth, its names are brought to the model's own whatever prefixes wrappers have put before them, and
what stands beside the network is left out only where it cannot change what the network computes.
"""

from __future__ import annotations

import argparse
import codecs
import collections
import logging
import pathlib
import pickle
import re
import types
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ..errors import FulaError
from ..files.sealed import FOREIGN, Damaged

_log = logging.getLogger(__name__)
_RENAMES = (("shortcut", "downsample"), ("linear", "fc"))
_DEPTH = 4
_BESIDE = re.compile(
    r"(criterion|loss\w*|optimi[sz]er\w*|(lr_)?scheduler\w*|epochs?|(global_)?steps?|iterations?|"
    r"n_averaged|queue\w*|best_\w+)(\.|$)"
)
"""Names of what a training keeps beside a network, which no forward pass of it reads."""
_MEAN, _STD = re.compile(r"(^|\.)_?(mean|mu)$"), re.compile(r"(^|\.)_?(std|sigma)$")


@dataclass(frozen=True)
class Foreign:
    """A network's weights by the model's own names, and the normalisation stored beside them."""

    state: dict[str, Tensor]
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def read_foreign(path: Path) -> Any:
    """What the file holds, unpickled without code; raises `FulaError` naming what it is."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        with torch.serialization.safe_globals(_safe()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FulaError(f"checkpoint '{path}' {_unpickled(str(error))}") from None
    except (ValueError, BadZipFile, OSError) as error:
        raise unreadable(path, error) from error
    except Exception as error:  # damaged bytes may raise anything
        if "TorchScript" in str(error):
            raise FulaError(
                f"checkpoint '{path}' is a TorchScript program, not weights; save "
                "model.state_dict() instead"
            ) from None
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception | str) -> FulaError:
    """The error for a file that cannot be read as weights."""
    reason = str(error).split("\n")[0][:120] or type(error).__name__
    return Damaged(path, FOREIGN, f"it is truncated or no checkpoint ({reason})")


def _safe() -> list[Any]:
    """Plain values that checkpoints hold beside weights."""
    multiarray = np._core.multiarray
    kinds = {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdFDSUO"}
    found = [
        np.ndarray, np.dtype, *kinds, argparse.Namespace, types.SimpleNamespace, codecs.encode,
        collections.defaultdict, dict, list, set,
        multiarray.scalar, multiarray._reconstruct,
        (multiarray.scalar, "numpy.core.multiarray.scalar"),
        (multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
    ]  # fmt: skip
    paths = [pathlib.PosixPath, pathlib.PurePosixPath, pathlib.WindowsPath]
    return found + [(pathlib.PurePath, f"pathlib.{kind.__name__}") for kind in paths]


def _unpickled(said: str) -> str:
    """What a pickle holds besides tensors, from PyTorch's message about it."""
    named = re.search(r"GLOBAL ([\w.]+)", said)
    if named is None:
        return (
            "is truncated, damaged or no checkpoint (it holds something else than tensors); give "
            "a file of model.state_dict()"
        )
    return (
        f"holds a pickled {named[1]} (a whole model, or an object beside its weights), whose code "
        "is not run; load it where it was made and save model.state_dict() instead"
    )


def fitted(path: Path, content: Any, own: Mapping[str, Tensor]) -> Foreign:
    """The weights in `content` for a model whose state is `own`.

    Raises `FulaError` where there is no state dict, and for tensors beside the network that may
    change its function. A normalisation there is given back: the caller has to apply it.
    """
    found = list(_state_dicts(content, "", {}))
    if not found:
        raise FulaError(
            f"checkpoint '{path}' holds no state dict but {_held(content)}; save "
            "model.state_dict() instead"
        )
    matches = [(_prefix(state, own), place, state, around) for place, state, around in found]
    (prefix, count), place, state, around = max(matches, key=lambda m: m[0][1])
    others = [p or "the top" for (_, n), p, *_ in matches if n and n == count and p != place]
    if others:
        _log.warning("checkpoint '%s': '%s' is read, not '%s'", path, place, others[0])
    named = {_own_name(n.removeprefix(prefix), own): v for n, v in state.items()
             if n.startswith(prefix)}  # fmt: skip
    beside = {n: v for n, v in state.items() if not n.startswith(prefix)}
    inside = {n: named.pop(n) for n in list(named) if n not in own and _harmless(n, named[n])}
    moments = _normalisation(beside | {n: v for n, v in named.items() if n not in own})
    rest = {n: v for n, v in beside.items() if not _harmless(n, v) and n not in moments}
    if rest:
        raise FulaError(
            f"checkpoint '{path}' holds '{min(rest)}' beside the network ({len(rest)} such), which "
            "may change what it computes; save the state dict of the network alone"
        )
    if left := sorted({*beside, *inside} - set(moments)):
        _log.warning("checkpoint '%s': %s left out", path, ", ".join(map(repr, left[:5])))
    kept = {n: v for n, v in named.items() if n not in moments}
    stored = moments or _normalisation(around)
    values = tuple(tuple(np.ravel(v).tolist()) for v in stored.values())
    return Foreign(_tensors(kept), values or None)


def _state_dicts(
    content: Any, place: str, around: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any], Mapping[str, Any]]]:
    """Every mapping with arrays in it, outer ones first, where it is, and the few numbers that
    stand around it."""
    if not isinstance(content, Mapping) or place.count(".") >= _DEPTH:
        return
    arrays = {str(k): v for k, v in content.items() if isinstance(v, Tensor | np.ndarray)}
    if arrays:
        yield place, arrays, around
    around = {**around, **{str(k): v for k, v in content.items() if _is_numbers(v)}}
    for key, value in content.items():
        yield from _state_dicts(value, f"{place}.{key}".lstrip("."), around)


def _is_numbers(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(v, float | int) for v in value)
    return isinstance(value, Tensor | np.ndarray)


def _prefix(state: Mapping[str, Any], own: Mapping[str, Tensor]) -> tuple[str, int]:
    """What stands before most of the model's own names, and before how many."""
    votes: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for k in range(len(parts)):
            if _own_name(".".join(parts[k:]), own) in own:
                votes[".".join([*parts[:k], ""])] += 1
                break
    return votes.most_common(1)[0] if votes else ("", 0)


def _own_name(name: str, own: Mapping[str, Tensor]) -> str:
    """`name`, or what the model calls it: `shortcut` and `linear` are common names."""
    if name in own:
        return name
    parts = name.split(".")
    for foreign, native in _RENAMES:
        parts = [native if part == foreign else part for part in parts]
    candidate = ".".join(parts)
    return candidate if candidate in own else name


def _harmless(name: str, value: Any) -> bool:
    return np.ndim(value) == 0 or _BESIDE.match(name) is not None


def _normalisation(extra: Mapping[str, Any]) -> dict[str, Any]:
    """The mean and the standard deviation among what stands beside a network, in this order."""
    few = {n: len(np.ravel(v)) for n, v in extra.items() if 1 <= len(np.ravel(v)) <= 4}
    means, stds = ([n for n in few if kind.search(n)] for kind in (_MEAN, _STD))
    both = len(means) == len(stds) == 1 and few[means[0]] == few[stds[0]]
    return {n: extra[n] for n in (means[0], stds[0])} if both else {}


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {n: v if isinstance(v, Tensor) else torch.from_numpy(v) for n, v in state.items()}


def _held(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dictionary of {', '.join(map(repr, list(content)[:5])) or 'nothing'}"
    return f"a {type(content).__name__}"
