"""`torchvision:NAME`: classifiers of `torchvision.models`."""

from __future__ import annotations

from typing import Any

from ...errors import FulaError, nearest
from .library import Library, LibraryModel, Request


def _network(request: Request) -> LibraryModel:
    from torchvision import models

    kind = request.kind
    if kind not in models.list_models(module=models):
        raise FulaError(f"torchvision has no model '{kind}'{nearest(kind, models.list_models())}")
    request.check_colour()
    named = {"weights": _weights(request)} if request.pretrained else {}
    full = {**request.classes, **_size(request), **named, **request.options}
    return LibraryModel(models.get_model(kind, **full))


def _size(request: Request) -> dict[str, Any]:
    """What a model with a fixed size calls it."""
    if request.kind.startswith("vit_"):
        return {"image_size": request.side}
    if request.kind.startswith("maxvit"):
        return {"input_size": (request.side, request.side)}
    return {}


def _weights(request: Request) -> Any:
    """Their name; `weights` of the library's own may be an object."""
    named = request.options.get("weights") or request.pretrained
    return "DEFAULT" if named is True else named


def _enum(request: Request) -> Any:
    from torchvision.models import get_model_weights

    named = _weights(request)
    return get_model_weights(request.kind)[named] if isinstance(named, str) else named


def _bring(request: Request) -> str:
    from torch.hub import get_dir

    return f"{_enum(request).url.rsplit('/', 1)[-1]} into {get_dir()}/checkpoints"


def _given(request: Request) -> dict[str, Any]:
    said = _enum(request).transforms()
    return {
        "size": said.crop_size[0],
        "resize": said.resize_size[0],
        "interpolation": said.interpolation.value,
        "mean": tuple(said.mean),
        "std": tuple(said.std),
    }


TORCHVISION = Library(
    name="torchvision",
    package="torchvision",
    install="torchvision",
    kinds="a name of `torchvision.models.list_models()`",
    network=_network,
    bring=_bring,
    given=_given,
)
