"""Models of libraries as donors, cut behind their blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..errors import FulaError
from .channels import Channels
from .cut import stages
from .families import VITS
from .fitting import fitting_sides
from .layout import Layout
from .libraries import first_line, unfetched
from .libraries.library import Library, LibraryModel, Request
from .libraries.timm import TIMM
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
    r"transformer\.resblocks\.\d+",
    r"stage\d\.\d+",
    r"inception\d\w",
    r"Mixed_\d\w",
)
"""Names of a model's blocks in the libraries; the first pattern with two matches wins."""


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


def build_library(
    library: Library,
    name: str,
    *,
    num_classes: int,
    input_shape: tuple[int, ...],
    hook: str,
    sites: Sequence[str] | None = None,
    pretrained: bool | str = False,
    **options: Any,
) -> Staged:
    """`LIBRARY:NAME`; `options` go to the library's own constructor.

    Raises `FulaError` for a library that is not installed, an unknown NAME or option, weights that
    cannot be fetched or do not fit, images of a shape that the network does not take.
    """
    library.check_installed(name)
    request = Request(name, num_classes, input_shape, pretrained, options)
    network = _constructed(library, request)
    named = network.pretrained or pretrained
    recorded = {"pretrained": named, **options} if named else options
    staged = _adapted(request, network, sites, recorded, hook)
    if not network.classifies:
        staged.classifies, staged.network_classes = False, 0
    return staged


def _timm(name: str) -> Any:
    TIMM.check_installed(name)
    import timm

    return timm


def _constructed(library: Library, request: Request) -> LibraryModel:
    try:
        return library.network(request)
    except OSError as error:
        raise unfetched(library, request, error) from error
    except (TypeError, ValueError, LookupError, AssertionError, RuntimeError) as error:
        reason = first_line(error)
        fits = _sizes(library, request) if "size" in reason or "shape" in reason else ""
        usual = f"check its options and input_shape{_heads(request)}"
        hint = f"sizes that fit: {fits}" if fits else usual
        raise FulaError(f"model '{request.name}' cannot be built: {reason}; {hint}") from error


def _heads(request: Request) -> str:
    """What else to do where weights are asked for so many classes."""
    asked = request.num_classes and (request.pretrained or request.options.get("weights"))
    return f"; weights of other classes than {request.num_classes} need a head" if asked else ""


def _sizes(library: Library, request: Request) -> str:
    """Sides that a network is built for: of random weights by trying, else its own."""
    if not request.pretrained and not request.options.get("weights"):
        return fitting_sides(lambda side: _built_and_run(library, request, side), request.side)
    own = library.given(request).get("size", request.side)
    return str(own) if own != request.side else ""


def _built_and_run(library: Library, request: Request, side: int) -> None:
    """On the meta device; raises where the library does not build it for images of that side."""
    shape = (request.input_shape[0], side, side)
    with torch.device("meta"), torch.no_grad():
        module = library.network(replace(request, input_shape=shape)).module.eval()
        module(torch.zeros(1, *shape))


def _adapted(
    request: Request,
    network: LibraryModel,
    sites: Sequence[str] | None,
    options: Mapping[str, Any],
    hook: str,
) -> Staged:
    module = network.module
    sites = list(network.blocks or _blocks(request.name, module)) if sites is None else list(sites)
    staged = stages(
        module,
        sites,
        input_shape=request.input_shape,
        num_classes=(request.num_classes or None) if network.classifies else None,
        name=request.name,
        hook=hook,
        options={"sites": sites, **options},
        channels=_channels(module),
    )
    if hook == "pre_relu" and any(len(shape) != 2 for shape in staged.site_shapes):
        raise FulaError(
            f"model '{request.name}' has no known pre-ReLU sites; use hook = 'post_relu', or our "
            "own resnet18, resnet34, resnet50, vgg16, vgg19"
        )
    return staged


def _channels(module: nn.Module) -> Channels:
    """As timm says, also of a tower of open_clip's."""
    said = getattr(getattr(module, "trunk", module), "output_fmt", "")
    return "last" if str(said) == "NHWC" else "auto"


def _blocks(name: str, module: nn.Module) -> list[str]:
    names = [n for n, child in module.named_modules() if _is_block(child)]
    for pattern in _BLOCKS:
        matches = [n for n in names if re.fullmatch(rf"(trunk\.)?{pattern}", n)]
        if len(matches) > 1:
            return matches
    raise FulaError(f"the blocks of '{name}' have no known names; give sites = [...]")


def _is_block(module: nn.Module) -> bool:
    """A single layer is no block, but a ReLU ends one."""
    return any(True for _ in module.children()) or isinstance(module, nn.ReLU)
