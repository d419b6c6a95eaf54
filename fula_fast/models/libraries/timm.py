"""`timm:NAME`: models of timm. Those that it keeps without a classifier (DINOv2) give embeddings
where the data have no classes."""

from __future__ import annotations

from math import floor
from pathlib import Path
from typing import Any

from ...errors import FulaError, nearest
from ...files.paths import user_path
from .library import Library, LibraryModel, Request, given_input, patient_once


def _network(request: Request) -> LibraryModel:
    import timm

    kind = request.kind
    if not timm.is_model(kind):
        raise FulaError(f"timm has no model '{kind}'{nearest(kind, timm.list_models())}")
    fixed = getattr(timm.get_pretrained_cfg(kind), "fixed_input_size", False)
    sizes = {"img_size": request.side} if fixed else {}
    given = {**request.classes, "in_chans": request.input_shape[0], **sizes}
    tagged, weights = _weights(request)
    with patient_once(_repository(request)):
        module: Any = timm.create_model(tagged, **given, **weights, **request.options)
    return LibraryModel(module, classifies=module.num_classes > 0)


def _file(request: Request) -> Path | None:
    """The file of weights that is asked for, if one is."""
    named = request.pretrained
    return user_path(named) if isinstance(named, str) and user_path(named).exists() else None


def _weights(request: Request) -> tuple[str, dict[str, Any]]:
    """timm's name of the model with its weights, and the arguments that fetch them."""
    if not request.pretrained:
        return request.kind, {}
    if path := _file(request):
        overlay = {"file": str(path), **request.classes}  # with other classes it drops the head
        return request.kind, {"pretrained": True, "pretrained_cfg_overlay": overlay}
    tag = f".{request.pretrained}" if isinstance(request.pretrained, str) else ""
    return request.kind + tag, {"pretrained": True}


def _config(request: Request) -> Any:
    import timm

    return timm.get_pretrained_cfg(_weights(request)[0])


def _repository(request: Request) -> str | None:
    asked = request.pretrained and not _file(request)
    return getattr(_config(request), "hf_hub_id", None) if asked else None


def _bring(request: Request) -> str:
    repository = _repository(request)
    if repository:
        return f"the repository '{repository}' (model.safetensors) and give pretrained = 'FILE'"
    return f"{_config(request).url} and give pretrained = 'FILE'"


def _given(request: Request) -> dict[str, Any]:
    from timm.data.config import resolve_data_config

    known = _config(request)
    said = resolve_data_config(pretrained_cfg=known.to_dict() if known else {})
    size, squashed = said["input_size"][-1], said.get("crop_mode") == "squash"
    return given_input(size, None if squashed else floor(size / said["crop_pct"]), said)


TIMM = Library(
    name="timm",
    package="timm",
    install="timm",
    kinds="a name of `timm.list_models()`",
    network=_network,
    bring=_bring,
    given=_given,
)
