"""Models by name.

`resnet18 | resnet34 | resnet50`, `vgg16 | vgg19`, `vit_tiny | vit_base` (timm), and
`torchvision:NAME`, `timm:NAME`, `open_clip:NAME`, `hf:NAME` for models whose blocks are a chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .adapters import build_library, build_vit
from .blocks import modules_of
from .families import VGGS, VITS, check_name, check_request, layout_of, resolved_options
from .libraries import library_of
from .staged import Staged


def build(
    name: str,
    *,
    num_classes: int,
    input_shape: Sequence[int],
    hook: str = "post_relu",
    **options: Any,
) -> Staged:
    """A freshly initialised model, cut at its sites (torch's global generator draws the weights).

    `input_shape` is (C, H, W). `hook` places sites after (`post_relu`) or before (`pre_relu`,
    Balogh & Jelasity 2023) the last ReLU of their block. `options` of our own models are those of
    `families.layout_of`; of `LIBRARY:NAME` they are `sites` (submodule names, default: the model's
    blocks), `pretrained` (true: the library's own weights, else which: a tag, a file) and arguments
    of that model's constructor; `num_classes` 0 is the library's own number, and its towers without
    a classifier give embeddings whatever it is. Raises `FulaError` for an unknown name, option or
    value.
    """
    check_name(name)
    shape = check_request(name, num_classes, input_shape, hook)
    request = {"num_classes": num_classes, "input_shape": shape, "hook": hook}
    if library := library_of(name):
        return build_library(library, name, **request, **options)
    options = resolved_options(name, options)
    plan = layout_of(name, **request, **options)
    if name in VITS:
        return build_vit(name, plan, options, **request)
    stages, head = modules_of(plan, normal_linear=name in VGGS)
    names = [stage.name for stage in plan.stages]
    return Staged(stages, head, name=name, options=options, site_names=names, **request)
