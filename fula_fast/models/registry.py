"""Models by name.

`resnet18 | resnet34 | resnet50`, `vgg16 | vgg19`, `vit_tiny | vit_base` (timm), and
`torchvision:NAME`, `timm:NAME` for models whose blocks are a chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import FulaError, nearest
from .blocks import modules_of
from .families import DEFAULTS, HOOKS, VGGS, layout_of, resolved_options
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
    Balogh & Jelasity 2023) the last ReLU of their block. `options` of ResNets and VGGs are those
    of `families.layout_of`. Raises `FulaError` for an unknown name, option or value.
    """
    shape = check_request(name, num_classes, input_shape, hook)
    if name not in DEFAULTS:
        raise FulaError(f"unknown model '{name}'{nearest(name, DEFAULTS)}")
    options = resolved_options(name, options)
    request = {"num_classes": num_classes, "input_shape": shape, "hook": hook}
    plan = layout_of(name, **request, **options)
    stages, head = modules_of(plan, normal_linear=name in VGGS)
    names = [stage.name for stage in plan.stages]
    return Staged(stages, head, name=name, options=options, site_names=names, **request)


def check_request(
    name: str, num_classes: int, input_shape: Sequence[int], hook: str
) -> tuple[int, ...]:
    """Validate what every model takes; returns the input shape as a tuple."""
    if hook not in HOOKS:
        raise FulaError(f"hook '{hook}' is unknown{nearest(hook, HOOKS)}")
    if type(num_classes) is not int or num_classes < 2:
        raise FulaError(f"model '{name}' needs num_classes of at least 2, not {num_classes!r}")
    shape = tuple(input_shape)
    if len(shape) != 3 or any(type(n) is not int or n < 1 for n in shape):
        raise FulaError(
            f"input_shape {list(shape)} of model '{name}' must be three positive whole numbers: "
            "channels, height, width"
        )
    return shape
