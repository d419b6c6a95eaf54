"""Models of torchvision and timm as donors, cut behind their blocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..errors import FulaError, nearest
from .cut import stages
from .families import VITS
from .layout import Layout
from .staged import Staged

_BLOCKS = (
    r"encoder\.layers\.encoder_layer_\d+",
    r"blocks\.\d+",
    r"layer\d\.\d+",
    r"features\.denseblock\d+",
    r"trunk_output\.block\d+",
    r"stages\.\d+",
    r"layers\.\d+",
    r"features\.\d+",
    r"s\d\.b\d+",
    r"transformers\.\d+",
    r"level\d",
)
"""Names of a model's blocks in torchvision and timm; the first pattern with two matches wins."""


def build_vit(
    name: str,
    plan: Layout,
    options: Mapping[str, Any],
    *,
    num_classes: int,
    input_shape: tuple[int, ...],
    hook: str,
) -> Staged:
    """timm's vision transformer of the size of `VITS[name]`, cut behind its blocks."""
    timm = _timm(name)
    kind = VITS[name]
    module = timm.models.VisionTransformer(
        img_size=input_shape[1],
        patch_size=kind.patch,
        in_chans=input_shape[0],
        num_classes=num_classes,
        embed_dim=kind.dim,
        depth=kind.depth,
        num_heads=kind.heads,
    )
    return stages(
        module,
        [stage.name for stage in plan.stages],
        input_shape=input_shape,
        num_classes=num_classes,
        name=name,
        hook=hook,
        options=options,
    )


def build_torchvision(
    name: str,
    *,
    num_classes: int,
    input_shape: tuple[int, ...],
    hook: str,
    sites: Sequence[str] | None = None,
    **arguments: Any,
) -> Staged:
    """`torchvision:NAME`; `arguments` go to its constructor.

    Raises `FulaError` for an unknown NAME and for images of other than 3 channels.
    """
    from torchvision import models

    kind = name.partition(":")[2]
    if kind not in models.list_models(module=models):
        raise FulaError(f"torchvision has no model '{kind}'{nearest(kind, models.list_models())}")
    if input_shape[0] != 3:
        raise FulaError(f"'{name}' takes 3 channels, not {input_shape[0]}; load with channels = 3")
    sizes = {"image_size": input_shape[1]} if kind.startswith("vit_") else {}
    full = {"num_classes": num_classes, **sizes, **arguments}
    module = _constructed(
        name, lambda: models.get_model(kind, **full), lambda: _torchvision_file(kind, arguments)
    )
    return _adapted(name, module, sites, arguments, num_classes, input_shape, hook)


def build_timm(
    name: str,
    *,
    num_classes: int,
    input_shape: tuple[int, ...],
    hook: str,
    sites: Sequence[str] | None = None,
    **arguments: Any,
) -> Staged:
    """`timm:NAME`; `arguments` go to `timm.create_model`.

    Raises `FulaError` for an unknown NAME.
    """
    timm = _timm(name)
    kind = name.partition(":")[2]
    if not timm.is_model(kind):
        raise FulaError(f"timm has no model '{kind}'{nearest(kind, timm.list_models())}")
    fixed = getattr(timm.get_pretrained_cfg(kind), "fixed_input_size", False)
    sizes = {"img_size": input_shape[1]} if fixed else {}
    full = {"num_classes": num_classes, "in_chans": input_shape[0], **sizes, **arguments}
    fetched = arguments.get("pretrained") and timm.get_pretrained_cfg(kind).hf_hub_id
    with _patient_once(fetched or None):
        module = _constructed(
            name, lambda: timm.create_model(kind, **full), lambda: _timm_file(timm, kind)
        )
    return _adapted(name, module, sites, arguments, num_classes, input_shape, hook)


ADAPTERS: dict[str, Callable[..., Staged]] = {"torchvision": build_torchvision, "timm": build_timm}


def _timm(name: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise FulaError(
            f"model '{name}' needs timm, which is not installed; run: pip install timm"
        ) from error
    return timm


def _torchvision_file(kind: str, arguments: Mapping[str, Any]) -> str:
    from torch.hub import get_dir
    from torchvision import models

    given = arguments.get("weights") or "DEFAULT"
    weights = models.get_model_weights(kind)[given] if isinstance(given, str) else given
    return f"{weights.url.rsplit('/', 1)[-1]} into {get_dir()}/checkpoints"


@contextmanager
def _patient_once(repository: str | None) -> Iterator[None]:
    """Where the hub does not answer for `repository`, only its cache is looked into: for each file
    that it lacks it would be tried again for half a minute, with a line each time."""
    if repository is None:
        yield
        return
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    before = constants.HF_HUB_OFFLINE
    try:
        HfApi().model_info(repository.partition("@")[0], timeout=_ANSWER_SECONDS)
    except HfHubHTTPError:  # an answer; what it says is said again of the file
        pass
    except Exception:  # of whichever HTTP library the hub uses
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


_ANSWER_SECONDS = 10.0


def _timm_file(timm: Any, kind: str) -> str:
    found = timm.get_pretrained_cfg(kind)
    return f"the repository '{found.hf_hub_id}'" if found.hf_hub_id else f"{found.url}"


def _constructed(
    name: str, construct: Callable[[], nn.Module], to_bring: Callable[[], str]
) -> nn.Module:
    """`to_bring`: the file that holds pretrained weights, for when they cannot be downloaded."""
    try:
        return construct()
    except OSError as error:
        reason = str(error).split(". ")[0][:160]
        raise FulaError(
            f"the pretrained weights of '{name}' could not be fetched ({reason}); bring "
            f"{to_bring()}, or leave pretrained and weights out and give a checkpoint"
        ) from error
    except (TypeError, ValueError, LookupError, AssertionError, RuntimeError) as error:
        reason = str(error).split("\n")[0][:160]
        if isinstance(error, KeyError):
            reason = f"it knows no {reason}"
        raise FulaError(
            f"model '{name}' cannot be built: {reason}; check its options and input_shape"
        ) from error


def _adapted(
    name: str,
    module: nn.Module,
    sites: Sequence[str] | None,
    arguments: Mapping[str, Any],
    num_classes: int,
    input_shape: tuple[int, ...],
    hook: str,
) -> Staged:
    sites = list(_blocks(name, module) if sites is None else sites)
    staged = stages(
        module,
        sites,
        input_shape=input_shape,
        num_classes=num_classes,
        name=name,
        hook=hook,
        options={"sites": sites, **arguments},
        channels="last" if str(getattr(module, "output_fmt", "")) == "NHWC" else "auto",
    )
    if hook == "pre_relu" and any(len(shape) != 2 for shape in staged.site_shapes):
        raise FulaError(
            f"model '{name}' has no known pre-ReLU sites; use hook = 'post_relu', or our own "
            "resnet18, resnet34, resnet50, vgg16, vgg19"
        )
    return staged


def _blocks(name: str, module: nn.Module) -> list[str]:
    names = [n for n, child in module.named_modules() if _is_block(child)]
    for pattern in _BLOCKS:
        matches = [n for n in names if re.fullmatch(pattern, n)]
        if len(matches) > 1:
            return matches
    raise FulaError(f"the blocks of '{name}' have no known names; give sites = [...]")


def _is_block(module: nn.Module) -> bool:
    """A single layer is no block, but a ReLU ends one."""
    return any(True for _ in module.children()) or isinstance(module, nn.ReLU)
