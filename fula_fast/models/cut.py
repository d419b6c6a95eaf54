"""Cut any module into stages, at submodules behind which a single tensor flows.

The module is traced by `torch.fx` only as deep as the sites lie: everything else stays the
module it was, under its own name.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import fx, nn

from ..errors import FulaError, nearest
from .channels import FROM_FORM, TO_FORM, Channels, moved_sites
from .copies import private_copy, unwrapped, unwrapped_name
from .families import check_request
from .fitting import telling_sizes
from .sizes import Tracer, UnknownSizeError, asked_anywhere, first_difference, running, sized_trace
from .staged import Norm2d, Staged


def stages(
    module: nn.Module,
    sites: Sequence[str],
    *,
    input_shape: Sequence[int],
    num_classes: int | None = None,
    name: str | None = None,
    hook: str = "post_relu",
    options: Mapping[str, Any] | None = None,
    channels: Channels = "auto",
) -> Staged:
    """A donor from `module` (copied), with a site at the output of each submodule in `sites`.

    `sites` are names of `module.named_modules()`, in the order in which they run. `input_shape` is
    (C, H, W); `num_classes` is measured when not given. `channels`: whether sites keep channels
    first or last, found out by default; sites give (B, C, H, W), (B, N, C) or (B, C) either way.
    Compiled and data-parallel modules are unwrapped. Batch norms over images become `Norm2d`.
    Raises `FulaError` where the module cannot be traced, a name is unknown or repeated, a site is
    no single tensor of two to four axes, or something else than the site's output is used behind
    it (a skip connection across the cut).
    """
    inner = unwrapped(module)
    sites = list(sites) if inner is module else [unwrapped_name(site) for site in sites]
    _check_sites(inner, sites)
    module = _prepared(private_copy(inner))
    training = module.training
    label = name or f"module:{type(module).__name__}"
    with telling_sizes(label, module.eval(), input_shape):
        graph, ends = _chain(module, sites, input_shape)
        parts = [fx.GraphModule(module, part) for part in _split(graph, ends)]
        classes = _classes(label, parts, sites, input_shape, num_classes)
    moved = moved_sites(label, parts, sites, input_shape, channels)
    if moved:
        parts = [fx.GraphModule(module, part) for part in _split(graph, ends, moved)]
    _check_function(label, module, parts, input_shape)
    shape = check_request(label, classes, input_shape, hook)
    staged = Staged(
        parts[:-1],
        parts[-1],
        name=label,
        num_classes=classes,
        input_shape=shape,
        hook=hook,
        options=options,
        site_names=sites,
        moved_sites=[place + 1 for place in sorted(moved)],
    )
    return staged.train(training)


def _check_sites(module: nn.Module, sites: Sequence[str]) -> None:
    names = dict(module.named_modules())
    if not sites:
        raise FulaError("no sites given; name at least one submodule at whose output to cut")
    for site in sites:
        if site not in names or not site:
            raise FulaError(
                f"site '{site}' is no submodule of {type(module).__name__}{nearest(site, names)}"
            )


def _prepared(module: nn.Module) -> nn.Module:
    """Plain `BatchNorm2d`s become `Norm2d`s; nothing works in place, or it could change a site; and
    weights can be written to: no two entries of a buffer are one."""
    for child in module.modules():
        for name, buffer in child._buffers.items():
            if buffer is not None and 0 in buffer.stride():
                child._buffers[name] = buffer.clone(memory_format=torch.contiguous_format)
        if type(child) is nn.BatchNorm2d:
            child.__class__ = Norm2d
        if getattr(child, "inplace", None) is True:
            child.inplace = False
    return module


def _chain(
    module: nn.Module, sites: Sequence[str], input_shape: Sequence[int]
) -> tuple[fx.Graph, list[fx.Node]]:
    """The traced forward pass, and the nodes of the sites in it."""
    try:
        return _checked_chain(module, sites, _trace(module, sites, Tracer(sites)))
    except FulaError:  # with sizes as numbers it may be one; if not, that refusal counts
        return _checked_chain(module, sites, sized_trace(module, sites, input_shape, _trace))


def _checked_chain(
    module: nn.Module, sites: Sequence[str], graph: fx.Graph
) -> tuple[fx.Graph, list[fx.Node]]:
    ends = [_site_node(graph, module, site) for site in sites]
    _check_chain(module, graph, sites, ends)
    return graph, ends


def _trace(module: nn.Module, sites: Sequence[str], tracer: Tracer) -> fx.Graph:
    original = type(module)

    class OneInput(original):
        """Fixes every other argument at its default: fx would make inputs of them."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return original.forward(self, x)

    try:
        module.__class__ = OneInput
        return tracer.trace(module)
    except UnknownSizeError:
        raise
    except Exception as error:  # fx raises whatever the traced code raises
        reason = str(error).split("\n")[0][:160]
        raise FulaError(
            f"{original.__name__} cannot be cut at {', '.join(sites)}: its forward cannot be "
            f"traced ({reason}); choose sites outside the part with data-dependent control flow"
        ) from error
    finally:
        module.__class__ = original


def _site_node(graph: fx.Graph, module: nn.Module, site: str) -> fx.Node:
    """The one graph node that is the output of submodule `site`."""
    inner = [n for n in graph.nodes if n.op == "call_module" and n.target == site]
    if not inner:
        raise FulaError(
            f"site '{site}' of {type(module).__name__} is never called by itself in a forward "
            "pass; name a submodule that is called, and no site inside another"
        )
    if len(inner) > 1:
        raise FulaError(
            f"site '{site}' of {type(module).__name__} is called {len(inner)} times in a forward "
            "pass; a site must be called exactly once"
        )
    return inner[0]


def _check_chain(
    module: nn.Module, graph: fx.Graph, sites: Sequence[str], ends: Sequence[fx.Node]
) -> None:
    order = {node: index for index, node in enumerate(graph.nodes)}
    anywhere = asked_anywhere(graph)
    ranks = [order[end] for end in ends]
    if ranks != sorted(set(ranks)):
        right = [site for _, site in sorted(zip(ranks, sites, strict=True))]
        raise FulaError(f"sites must be in the order in which they run: {', '.join(right)}")
    for site, end in zip(sites, ends, strict=True):
        crossing = _crossing(order, end, anywhere)
        if crossing is not None:
            raise FulaError(
                f"{type(module).__name__} is no chain at site '{site}': '{crossing.name}' is still "
                "used behind it (a skip connection?); choose a site where one tensor flows"
            )


def _crossing(
    order: dict[fx.Node, int], end: fx.Node, anywhere: Container[fx.Node]
) -> fx.Node | None:
    """A value other than `end` that is made before it and used after it, and must be."""
    for node, rank in order.items():
        if rank >= order[end] or node.op == "get_attr" or node in anywhere:
            continue
        if any(order[user] > order[end] and user not in anywhere for user in node.users):
            return node
    return None


def _split(
    graph: fx.Graph, ends: Sequence[fx.Node], moved: Mapping[int, int] = MappingProxyType({})
) -> Iterator[fx.Graph]:
    """One graph per stage, then the head; weights are fetched where they are used.

    `moved`: sites (from 0) that leave in the form of a stitch and are brought back behind the cut.
    """
    anywhere = asked_anywhere(graph)
    nodes = [n for n in graph.nodes if n.op != "get_attr" and n not in anywhere]
    entry = nodes.pop(0)
    for place, end in enumerate([*ends, None]):
        part = fx.Graph()
        given = part.placeholder("x")
        if axes := moved.get(place - 1):
            given = _permuted(part, given, FROM_FORM[axes])
        copies = {entry: given}
        while nodes:
            node = nodes.pop(0)
            _fetch(part, given, node, copies, anywhere)
            copies[node] = part.node_copy(node, copies.__getitem__)
            if node is end:
                axes = moved.get(place)
                part.output(_permuted(part, copies[node], TO_FORM[axes]) if axes else copies[node])
                break
        entry = end
        yield part


def _fetch(
    part: fx.Graph,
    given: fx.Node,
    node: fx.Node,
    copies: dict[fx.Node, fx.Node],
    anywhere: Container[fx.Node],
) -> None:
    """Weights, and what any tensor answers, here the one given, before `node` uses them."""
    for needed in node.all_input_nodes:
        if needed in copies or not (needed.op == "get_attr" or needed in anywhere):
            continue
        _fetch(part, given, needed, copies, anywhere)
        copies[needed] = part.node_copy(needed, lambda n: copies.get(n, given))


def _permuted(part: fx.Graph, node: fx.Node, order: Sequence[int]) -> fx.Node:
    return part.call_method("contiguous", (part.call_method("permute", (node, *order)),))


def _check_function(
    label: str, module: nn.Module, parts: Sequence[nn.Module], input_shape: Sequence[int]
) -> None:
    """A tracer follows tensors, not what is changed in place: compare the whole."""
    cut = first_difference(module, nn.Sequential(*parts), input_shape, [2])
    if cut is not None:
        raise FulaError(
            f"model '{label}' computes something else cut at these sites than as a whole: "
            "something behind a cut is changed in place or kept before it; choose other sites"
        )


def _classes(
    label: str,
    parts: Sequence[nn.Module],
    sites: Sequence[str],
    input_shape: Sequence[int],
    declared: int | None,
) -> int:
    """Run a black image through: every site one tensor, and as many logits as declared."""
    weights = next((p for part in parts for p in part.parameters()), torch.zeros(()))
    x = torch.zeros((1, *input_shape), dtype=weights.dtype, device=weights.device)
    for site, part in zip([*sites, "the head"], parts, strict=True):
        x = _checked_run(label, site, part, x)
    if x.ndim != 2 or (declared is not None and x.shape[1] != declared):
        raise FulaError(
            f"model '{label}' gives outputs of shape {list(x.shape[1:])}, but num_classes is "
            f"{declared}; set num_classes to its number of logits"
        )
    return x.shape[1]


@torch.no_grad()
def _checked_run(label: str, site: str, part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    version = x._version
    with running(label, x.shape, f" (at {site})"):
        y = part(x)
    if site == "the head" and not isinstance(y, torch.Tensor):
        raise FulaError(
            f"model '{label}' returns a {type(y).__name__}, not a tensor; return the logits alone"
        )
    if not isinstance(y, torch.Tensor) or not 2 <= y.ndim <= 4 or y.shape[0] != 1:
        raise FulaError(
            f"'{site}' of model '{label}' gives no tensor of shape (B, C), (B, N, C) or "
            "(B, C, H, W); choose another site"
        )
    if x._version != version:
        raise FulaError(
            f"model '{label}' changes its input in place on the way to '{site}'; "
            "choose an earlier or later site before it"
        )
    return y
