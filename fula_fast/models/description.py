"""Sites of a model with shapes, parameters and FLOPs; our own models need no torch for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .families import DEFAULTS, check_name, check_request, layout_of, resolved_options
from .layout import Shape, walk
from .libraries import DOWNLOADS

if TYPE_CHECKING:
    from rich.table import Table

    from .staged import Staged

_KINDS = {1: "vector", 2: "token", 3: "conv"}


@dataclass(frozen=True)
class SiteInfo:
    """One site, and the stage that leads to it.

    `shape` is that of one image's activation: (C, H, W) for kind `conv`, (N, C) for `token`, (C,)
    for `vector`, also where the network keeps it otherwise (`moved`). `parameters` and `flops`
    (forward, per image, 2 per multiply-add) are the stage's.
    """

    index: int
    name: str
    shape: Shape
    parameters: int
    flops: int
    moved: bool = False

    @property
    def kind(self) -> str:
        return _KINDS[len(self.shape)]

    @property
    def layout(self) -> str:
        """The kind, and where the network itself keeps channels if not where a stitch does."""
        own = {"conv": "channels last", "token": "channels first"}
        return f"{self.kind}, {own[self.kind]}" if self.moved else self.kind

    @property
    def channels(self) -> int:
        """Length of the feature axis that a stitch maps."""
        return self.shape[-1] if self.kind == "token" else self.shape[0]


@dataclass(frozen=True)
class Description:
    """A model as a plan needs it; `sites[k-1]` is site k, `head` leads to the logits, or to the
    embedding of a model that does not classify."""

    name: str
    num_classes: int
    input_shape: Shape
    hook: str
    options: dict[str, Any]
    sites: tuple[SiteInfo, ...]
    head: SiteInfo
    classifies: bool = True

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in (*self.sites, self.head))

    @property
    def flops(self) -> int:
        """Forward FLOPs of the whole model for one image."""
        return sum(part.flops for part in (*self.sites, self.head))


def describe(
    name: str, num_classes: int, input_shape: Sequence[int], hook: str = "post_relu", **options: Any
) -> Description:
    """Sites of `build(name, ...)`, counted by formula for our own models and ViTs.

    Other models are built, with random weights, and run once on a black image. Raises `FulaError`
    as `build` does.
    """
    check_name(name)
    shape = check_request(name, num_classes, input_shape, hook)
    if name not in DEFAULTS:
        from .named import build

        request = {"num_classes": num_classes, "input_shape": shape, "hook": hook}
        shown = {key: value for key, value in options.items() if key not in DOWNLOADS}
        return describe_staged(build(name, **request, **shown))
    options = resolved_options(name, options)
    plan = layout_of(name, num_classes=num_classes, input_shape=shape, hook=hook, **options)
    sites = []
    at = shape
    for index, stage in enumerate(plan.stages, 1):
        cost = walk(stage.layers, at)
        sites.append(SiteInfo(index, stage.name, *cost))
        at = cost.shape
    head = SiteInfo(len(sites) + 1, "head", *walk(plan.head, at))
    return Description(name, num_classes, shape, hook, options, tuple(sites), head)


def describe_staged(staged: Staged) -> Description:
    """Sites of a built model, its FLOPs counted by torch while one black image runs through."""
    from .probe import costs

    names = [*staged.site_names, "head"]
    parts = [
        SiteInfo(index, name, *cost, moved=index in staged.moved_sites)
        for index, (name, cost) in enumerate(zip(names, costs(staged), strict=True), 1)
    ]
    return Description(
        staged.name,
        staged.num_classes,
        staged.input_shape,
        staged.hook,
        staged.options,
        tuple(parts[:-1]),
        parts[-1],
        staged.classifies,
    )


def sites_table(description: Description) -> Table:
    """A rich table: one row per site, then the head and the whole model; FLOPs are per image."""
    from rich.table import Table

    table = Table(
        title=f"{description.name}, input {_dims(description.input_shape)}, {description.hook}"
    )
    for heading in ("site", "after", "kind", "shape", "parameters", "MFLOP", "MFLOP so far"):
        justify = "left" if heading in ("after", "kind") else "right"
        table.add_column(heading, justify=justify, no_wrap=True)
    done, answer = 0, "logits" if description.classifies else "embedding"
    for site in (*description.sites, description.head):
        done += site.flops
        last = site is description.head
        label, kind = ("", answer) if last else (str(site.index), site.layout)
        work = _mega(site.flops), _mega(done)
        table.add_row(label, site.name, kind, _dims(site.shape), f"{site.parameters:,}", *work)
    table.add_section()
    table.add_row("", "all", "", "", f"{description.parameters:,}", _mega(description.flops), "")
    return table


def _mega(flops: int) -> str:
    return f"{flops / 1e6:,.2f}"


def _dims(shape: Shape) -> str:
    return "×".join(map(str, shape))
