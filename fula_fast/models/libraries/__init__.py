"""The libraries whose models are donors: `timm:NAME`, one record each. Without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...errors import FulaError
from ...files.paths import user_path
from .hf import HF
from .library import Library, Request
from .open_clip import OPEN_CLIP
from .timm import TIMM
from .torchvision import TORCHVISION

LIBRARIES = {library.name: library for library in (TORCHVISION, TIMM, OPEN_CLIP, HF)}

DOWNLOADS = ("pretrained", "weights")
"""Options that fetch weights."""


def library_of(model: str) -> Library | None:
    """The library of `LIBRARY:NAME`; None for models of our own."""
    return LIBRARIES.get(model.partition(":")[0])


def fetched_by_name(pretrained: bool | str | None) -> bool:
    """Whether `pretrained` asks for a library's own weights, not for a file of them."""
    return bool(pretrained) and (pretrained is True or not user_path(str(pretrained)).exists())


def library_input(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`size`, `resize` or `crop`, `interpolation`, `mean` and `std` of the images that a library's
    pretrained model takes, as far as the library says; nothing for random weights.

    Raises `FulaError` for an interpolation that there is not here, for a library that is not
    installed, and where it cannot be asked.
    """
    library = library_of(model)
    named = next((options[key] for key in DOWNLOADS if options.get(key)), None)
    if library is None or not named:
        return {}
    library.check_installed(model)
    own = {k: v for k, v in options.items() if k != "pretrained"}
    request = Request(model, 0, (3, 0, 0), options.get("pretrained") or True, own)
    try:
        found = library.given(request)
    except OSError as error:
        raise unfetched(library, request, error) from error
    except (ValueError, LookupError, RuntimeError) as error:
        raise FulaError(
            f"{library.package} does not know the input of '{model}' ({first_line(error)}); check "
            "its name and weights"
        ) from error
    if found.get("interpolation", "bilinear") not in ("bilinear", "bicubic"):
        raise FulaError(
            f"'{model}' was trained on images resized by '{found['interpolation']}'; say which to "
            "take instead: input = { interpolation = 'bicubic' }"
        )
    return found


def unfetched(library: Library, request: Request, error: OSError) -> FulaError:
    """The error for weights, or a configuration, that could not be fetched."""
    weights = request.pretrained or request.options.get("weights")
    what = "pretrained weights" if weights else "configuration"
    other = ", or leave pretrained out and give a checkpoint" if weights else ""
    return FulaError(
        f"the {what} of '{request.name}' could not be fetched "
        f"({first_line(error).split('. ')[0]}); bring {library.bring(request)}{other}"
    )


def first_line(error: Exception) -> str:
    """What a library's error says first, and of weights that do not fit the first three names."""
    text = str(error).strip()
    names = re.findall(r'"([^"\s]+)"|size mismatch for (\S+):', text)
    line = text.split("\n")[0][:160]
    if "state_dict" not in line or not names:
        return f"it knows no {line}" if isinstance(error, KeyError) else line
    shown = ["".join(pair) for pair in names]
    return f"the weights are of another variant: {', '.join(shown[:3])} ({len(shown)} in all)"
