"""`open_clip:NAME`: the image towers of open_clip, from images to embeddings."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from ...errors import FulaError, nearest
from ...files.paths import user_path
from .library import Library, LibraryModel, Request, given_input, patient_once
from .one_tensor import one_tensor

_SMALLEST_TEXT = {
    "context_length": 4, "vocab_size": 4, "width": 8, "heads": 1, "layers": 1
}  # fmt: skip
"""The text tower beside random weights: it is thrown away, and is made after the image tower."""


def _library(name: str = "open_clip") -> Any:
    """The package, which this file is named for."""
    return import_module(name)


def _network(request: Request) -> LibraryModel:
    open_clip = _library()

    if request.kind not in open_clip.list_models():
        known = open_clip.list_models()
        raise FulaError(f"open_clip has no model '{request.kind}'{nearest(request.kind, known)}")
    request.check_colour()
    tag = _tag(request)
    tower = _tower(request, tag)
    return LibraryModel(one_tensor(tower, _features), classifies=False, pretrained=tag or False)


def _features(output: Any) -> Any:
    """Towers of CoCa give their tokens too."""
    return output[0] if isinstance(output, tuple) else output


def _tower(request: Request, tag: str | None) -> Any:
    open_clip = _library()

    own = open_clip.get_model_config(request.kind)
    known = open_clip.get_pretrained_cfg(request.kind, tag) if tag else {}
    vision = own["vision_cfg"] | request.options.get("vision_cfg", {})
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    options = {
        **({} if tag else {"text_cfg": _SMALLEST_TEXT}),
        **request.options,
        "vision_cfg": vision | {"image_size": request.side},
    }
    if known:
        with patient_once(_repository(known)):
            open_clip.download_pretrained(known)
    given = {"force_quick_gelu": True} if known.get("quick_gelu") else {}
    with _unlogged():
        model = open_clip.create_model(request.kind, pretrained=tag, **given, **options)
    tower = model.visual
    if "timm_model_name" in vision and hasattr(tower.trunk, "set_input_size"):
        tower.set_input_size(request.side)
    return tower


@contextmanager
def _unlogged() -> Iterator[None]:
    """It logs at the root, which would give that a handler, and warns that weights are random."""
    handler, before = logging.NullHandler(), logging.root.manager.disable
    logging.root.addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        logging.root.removeHandler(handler)


def _tag(request: Request) -> str | None:
    """Which weights: those named, a file, or the library's first."""
    open_clip = _library()

    named = request.pretrained
    if not named:
        return None
    tags = open_clip.list_pretrained_tags_by_model(request.kind)
    if named is True:
        if not tags:
            raise FulaError(f"open_clip has no weights of '{request.kind}'; give a file of them")
        return tags[0]
    if named in tags:
        return named
    if not user_path(named).is_file():
        raise FulaError(
            f"pretrained = '{named}' is neither a file nor weights of '{request.kind}'"
            f"{nearest(named, tags)}"
        )
    return str(user_path(named))


def _repository(known: Mapping[str, Any]) -> str:
    """That of "owner/name/file", or of "owner/name/"; empty where there is none."""
    return known.get("hf_hub", "").rpartition("/")[0]


def _known(request: Request) -> dict[str, Any]:
    open_clip = _library()

    return open_clip.get_pretrained_cfg(request.kind, _tag(request) or "")


def _bring(request: Request) -> str:
    known = _known(request)
    repository = _repository(known)
    place = f"the weights of the repository '{repository}'" if repository else known.get("url")
    return f"{place} and give pretrained = 'FILE'"


def _given(request: Request) -> dict[str, Any]:
    open_clip, transform = _library(), _library("open_clip.transform")

    vision = open_clip.get_model_config(request.kind)["vision_cfg"]
    said = transform.merge_preprocess_dict(transform.PreprocessCfg(), _known(request))
    if said["resize_mode"] == "longest":
        raise FulaError(
            f"'{request.name}' was trained on images padded to a square, which is not known here; "
            "say what to take instead: input = { size = ..., resize = ..., mean = ..., std = ... }"
        )
    size = vision["image_size"]
    return given_input(size, None if said["resize_mode"] == "squash" else size, said)


OPEN_CLIP = Library(
    name="open_clip",
    package="open_clip",
    install="open_clip_torch",
    kinds="a name of `open_clip.list_models()`",
    network=_network,
    bring=_bring,
    given=_given,
)
