"""`hf:NAME`: vision models of transformers, by kind (`hf:dinov2`), repository or folder.

What a repository or folder names as its architecture decides the output: logits of a classifier,
else the embedding of an image, projected where the model has a projection.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from ...errors import FulaError, nearest
from ...files.paths import user_path
from .library import Library, LibraryModel, Request, patient_once
from .one_tensor import one_tensor

_log = logging.getLogger(__name__)
_OUTPUTS = ("logits", "image_embeds", "pooler_output")
_CLASS_TOKENS = ("cls_token", "class_embedding")
_INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's numbers, which image processors keep."""


def _library(name: str = "transformers") -> Any:
    """The package, or a part of it."""
    return import_module(name)


def _network(request: Request) -> LibraryModel:
    with patient_once(_repository(request)):
        config = _config(request)
        kind, config = _model_class(config)
        _check_takes_images(request, kind)
        module = _pretrained(request, kind, config) if request.pretrained else kind(config)
    blocks, classifies = _blocks(module), kind.__name__.endswith("ForImageClassification")
    return LibraryModel(one_tensor(module, _answer_of(request, module)), blocks, classifies)


def _is_kind(request: Request) -> bool:
    """Whether NAME is a kind of model, without a configuration of its own."""
    transformers = _library()

    return request.kind in transformers.CONFIG_MAPPING


def _place(request: Request) -> str:
    """The folder or repository."""
    folder = user_path(request.kind)
    return str(folder) if folder.is_dir() else request.kind


def _repository(request: Request) -> str | None:
    return None if _is_kind(request) or user_path(request.kind).is_dir() else request.kind


def _revision(request: Request) -> dict[str, str]:
    return {"revision": request.pretrained} if isinstance(request.pretrained, str) else {}


def _config(request: Request) -> Any:
    """Of random networks with the classes and images that are asked for; of pretrained ones their
    own."""
    transformers = _library()

    if not _is_kind(request):
        place, options = _place(request), {**request.options, **_revision(request)}
        config, unknown = transformers.AutoConfig.from_pretrained(
            place, return_unused_kwargs=True, **options
        )
        unknown = set(unknown) - {"revision"}
    else:
        if request.pretrained:
            raise FulaError(
                f"'{request.name}' is a kind of model, of which there are many weights; name their "
                "repository or folder, for example hf:facebook/dinov2-small"
            )
        usual = transformers.AutoConfig.for_model(request.kind)
        unknown = {key for key in request.options if not hasattr(usual, key)}
        known = {k: v for k, v in request.options.items() if k not in unknown}
        config = transformers.AutoConfig.for_model(request.kind, **known)
    if unknown:
        names = nearest(min(unknown), config.to_dict())
        raise FulaError(f"'{request.name}' has no option '{min(unknown)}'{names}")
    if not request.pretrained:
        _fit(config, request)
    return config


def _fit(config: Any, request: Request) -> None:
    if request.num_classes:
        config.num_labels = request.num_classes
    tower = getattr(config, "vision_config", config)
    for key, value in (("image_size", request.side), ("num_channels", request.input_shape[0])):
        if hasattr(tower, key) and key not in request.options:
            setattr(tower, key, value)


def _model_class(config: Any) -> tuple[type, Any]:
    """The model that a configuration is for, and the part of the configuration that is its."""
    transformers = _library()
    modeling_auto = _library("transformers.models.auto.modeling_auto")

    named = (config.architectures or [""])[0]
    if named.endswith("ForImageClassification"):
        return getattr(transformers, named), config
    classifiers = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    if not named and type(config) in classifiers:
        return _first(classifiers[type(config)]), config
    config = getattr(config, "vision_config", config)
    tower = type(config).__name__.removesuffix("Config")
    projected = getattr(transformers, f"{tower}ModelWithProjection", None)
    return projected or _first(modeling_auto.MODEL_MAPPING[type(config)]), config


def _first(kinds: Any) -> type:
    return kinds[0] if isinstance(kinds, tuple) else kinds


def _check_takes_images(request: Request, kind: Any) -> None:
    """Raise `FulaError` for models of text, and for those that take more than images."""
    if kind.main_input_name != "pixel_values":
        raise FulaError(f"'{request.name}' takes {kind.main_input_name}, not images")
    _, *others = list(inspect.signature(kind.forward).parameters.values())[1:]
    needed = [p.name for p in others if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if needed:
        raise FulaError(
            f"'{request.name}' takes {', '.join(needed)} beside images (patches of any resolution?)"
            "; use its form for images of one size (of SigLIP 2: google/siglip2-base-patch16-224)"
        )


def _pretrained(request: Request, kind: Any, config: Any) -> Any:
    import torch

    with _unlogged():
        module, found = kind.from_pretrained(
            _place(request),
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
            **_revision(request),
        )
    lacks = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if lacks:
        raise FulaError(
            f"the weights of '{request.name}' are not those of its {kind.__name__}: they lack, or "
            f"have in another shape, {', '.join(lacks[:3])}{' …' if len(lacks) > 3 else ''} "
            f"({len(lacks)} in all); check 'architectures' in its config.json"
        )
    return module


@contextmanager
def _unlogged() -> Iterator[None]:
    """Its report of names that do not fit runs over many lines."""
    theirs = _library("transformers.utils.logging")

    before = theirs.get_verbosity()
    theirs.set_verbosity_error()
    try:
        yield
    finally:
        theirs.set_verbosity(before)


def _answer_of(request: Request, module: Any) -> Any:
    """From a model's output to its logits or embedding."""
    names = {name.rpartition(".")[2] for name, _ in module.named_parameters()}
    has_class_token = not names.isdisjoint(_CLASS_TOKENS)

    def answer(output: Any) -> Any:
        for name in _OUTPUTS:
            if (value := getattr(output, name, None)) is not None:
                return value
        if has_class_token:
            return output.last_hidden_state[:, 0]
        raise FulaError(
            f"'{request.name}' gives neither logits nor an embedding of the image; cut its module "
            "with fula_fast.stages"
        )

    return answer


def _blocks(module: Any) -> list[str] | None:
    """The modules whose outputs transformers itself gives as hidden states."""
    recorded = getattr(module, "_can_record_outputs", None) or {}
    found = recorded.get("hidden_states", [])
    kinds = [getattr(k, "target_class", k) for k in (found if isinstance(found, list) else [found])]
    known = tuple(k for k in kinds if isinstance(k, type))
    return [n for n, child in module.named_modules() if isinstance(child, known)] or None


def _bring(request: Request) -> str:
    files = "config.json, model.safetensors, preprocessor_config.json"
    return f"the repository '{request.kind}' ({files}) and name its folder, model = 'hf:FOLDER'"


def _given(request: Request) -> dict[str, Any]:
    transformers = _library()

    if _is_kind(request):
        return {}
    folder = user_path(request.kind)
    if folder.is_dir() and not (folder / "preprocessor_config.json").exists():
        _log.warning("'%s' has no preprocessor_config.json: its input is not known", folder)
        return {}
    with patient_once(_repository(request)):
        said = transformers.AutoImageProcessor.from_pretrained(
            _place(request), **_revision(request)
        )
    return _frame(said) | _moments(said)


def _frame(said: Any) -> dict[str, Any]:
    """Resized by the shorter side and cut from the middle, or squeezed whole."""
    if not getattr(said, "do_resize", False):
        return {}
    size, cut = said.size, getattr(said, "crop_size", None)
    shown = {"interpolation": _INTERPOLATIONS[int(said.resample)]}
    if getattr(said, "do_center_crop", False) and cut:
        return {"size": cut["height"], "resize": size.get("shortest_edge", cut["height"]), **shown}
    side = size.get("height") or size.get("shortest_edge")
    return {"size": side, "crop": "none", **shown}


def _moments(said: Any) -> dict[str, Any]:
    if not getattr(said, "do_normalize", False):
        return {}
    return {"mean": tuple(said.image_mean), "std": tuple(said.image_std)}


HF = Library(
    name="hf",
    package="transformers",
    install="transformers",
    kinds="a kind of model (`vit`, `dinov2`, `clip_vision_model`), a repository, or a folder",
    network=_network,
    bring=_bring,
    given=_given,
)
