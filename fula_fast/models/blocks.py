"""Torch modules of a layout's layers, with torchvision's names and initialisation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from . import layout
from .layout import Layer, Layout
from .staged import Chain, Norm2d


class ResidualBlock(nn.Module):
    """conv1-bn1-ReLU … convN-bnN (+ skip) of (B, C, H, W), then a ReLU unless the call says
    otherwise."""

    def __init__(self, block: layout.Block) -> None:
        super().__init__()
        # torchvision creates the skip's modules first but registers them last; the order of
        # creation is the order of random numbers.
        skip = _skip(block.shortcut) if block.shortcut else None
        for index, conv in enumerate(block.convs, 1):
            self.add_module(conv.name, _conv(conv))
            self.add_module(f"bn{index}", Norm2d(conv.outputs))
        self.downsample = skip
        self.residual = block.residual
        self.depth = len(block.convs)

    def forward(self, x: Tensor, relu: bool = True) -> Tensor:
        y = x
        for index in range(1, self.depth):
            y = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(y), relu=True)
        y = getattr(self, f"conv{self.depth}")(y)
        identity = x if self.downsample is None else self.downsample(x)
        norm = getattr(self, f"bn{self.depth}")
        return norm(y, residual=identity if self.residual else None, relu=relu)


def _skip(conv: layout.Conv) -> nn.Sequential:
    return nn.Sequential(_conv(conv), Norm2d(conv.outputs))


def _conv(conv: layout.Conv) -> nn.Conv2d:
    return nn.Conv2d(
        conv.inputs, conv.outputs, conv.kernel, conv.stride, conv.padding, bias=conv.bias
    )


_MODULES = {
    layout.Conv: _conv,
    layout.Norm: lambda layer: Norm2d(layer.channels),
    layout.Relu: lambda layer: nn.ReLU(),
    layout.Dropout: lambda layer: nn.Dropout(),
    layout.MaxPool: lambda layer: nn.MaxPool2d(layer.kernel, layer.stride, layer.padding),
    layout.AveragePool: lambda layer: nn.AdaptiveAvgPool2d(layer.size),
    layout.Flatten: lambda layer: nn.Flatten(),
    layout.Linear: lambda layer: nn.Linear(layer.inputs, layer.outputs),
    layout.Block: ResidualBlock,
}


def chain_of(layers: Sequence[Layer]) -> Chain:
    """Modules for `layers`, in order, under their names."""
    return Chain((layer.name, _MODULES[type(layer)](layer), _arguments(layer)) for layer in layers)


def _arguments(layer: Layer) -> dict[str, bool]:
    return {"relu": layer.relu} if isinstance(layer, layout.Norm | layout.Block) else {}


def modules_of(plan: Layout, normal_linear: bool = False) -> tuple[list[Chain], Chain]:
    """Stages and head of a layout, freshly initialised as torchvision does.

    `normal_linear` draws linear weights from N(0, 0.01²), as VGG does.
    """
    stages = [chain_of(stage.layers) for stage in plan.stages]
    head = chain_of(plan.head)
    for module in nn.ModuleList([*stages, head]).modules():
        _initialise(module, normal_linear)
    return stages, head


def _initialise(module: nn.Module, normal_linear: bool) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif normal_linear and isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.01)
        nn.init.zeros_(module.bias)
