"""A wave's stitched models as one `PackedModel`: images of any lanes in one batch.

An attack packs the images still in flight across lanes. In eval mode every image is a lane of its
own, with the running statistics of the cell that it belongs to: front and tail stages run once for
all images that are in them. Which images are in which stage the host decides, and stitches run cell
by cell; or a batch keeps to one route, cells that leave and join at the same sites, and then the
lanes are tensors on the device, and nothing is asked of the host.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..stitching.stitch import Stitch
from .lane_norms import LaneNorm, assign, cast
from .network import Network
from .rowstitch import RowStitch
from .wave import Wave

Route = tuple[int, int, tuple[str, ...]]


class PackedWave:
    """The trained lanes `lanes` (wave numbers) of a wave, frozen; see `attacks.PackedModel`.

    network: of the donors, in the precision in which images are confirmed (`exact_network`); the
    wave's own by default.
    """

    def __init__(self, wave: Wave, lanes: Sequence[int], network: Network | None = None) -> None:
        network = network or wave.network
        self.lanes, self.device = len(lanes), wave.device
        self.numbers = torch.tensor(list(lanes), device=wave.device)
        self.sites = [(wave.lanes[n].front_site, wave.lanes[n].end_site) for n in lanes]
        self.shared, self.dtype = network.shared, network.dtype
        self.front, self.tail = network.front, network.tail
        self.stitches = [_stitch_of(wave, n, self.dtype) for n in lanes]
        self._routes = [
            (*sites, tuple(stitch.state_dict()))
            for sites, stitch in zip(self.sites, self.stitches, strict=True)
        ]
        self._ways: dict[Route, tuple[Callable[[Tensor, Tensor], Tensor], Tensor]] = {}

    def route(self, lane: int) -> Route:
        """The sites that a lane passes through, and what its stitch is made of."""
        return self._routes[lane]

    def along(self, route: Route) -> Callable[[Tensor, Tensor], Tensor]:
        """`logits` for lanes of one route, without host synchronisation; see `PackedModel`."""
        if route not in self._ways:
            self._ways[route] = self._way(route)
        return partial(self._fly, route, *self._ways[route])

    def _way(self, route: Route) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
        """The stitches of a route, and each lane's place among them (0 for a lane of another)."""
        members = [lane for lane, own in enumerate(self._routes) if own == route]
        places = [members.index(lane) if lane in members else 0 for lane in range(self.lanes)]
        own = [self.stitches[lane] for lane in members]
        joined = RowStitch(own, self.dtype) if len(own) > 1 else _alone(own[0])
        return joined, torch.tensor(places, device=self.device)

    def _fly(self, route: Route, stitch, places: Tensor, x: Tensor, lane: Tensor) -> Tensor:
        front_site, end_site, _ = route
        ids = self.numbers[lane]
        x = self.front.prepared(x.to(self.dtype))
        for stage in self.front.stages[:front_site]:
            x = self._stage(stage, x, ids, self.shared)
        x = stitch(x, places[lane])
        for stage in (*self.tail.stages[end_site:], self.tail.head):
            x = self._stage(stage, x, ids)
        return x.float()

    def logits(self, x: Tensor, lane: Tensor) -> Tensor:
        """Eval-mode logits (N, classes) of images x (N, C, H, W), image i by lane[i]."""
        owners = lane.tolist()
        parts = self._fronts(x.to(self.dtype), owners, self.numbers[lane])
        return self._tails(parts).float()

    def _fronts(
        self, x: Tensor, owners: Sequence[int], ids: Tensor
    ) -> dict[int, tuple[list[int], Tensor]]:
        """{lane: (its images' places, stitch outputs)}."""
        found: dict[int, tuple[list[int], Tensor]] = {}
        flying = list(range(len(owners)))
        deepest = max(self.sites[o][0] for o in owners)
        x = self.front.prepared(x)
        for site in range(1, deepest + 1):
            kept = [k for k, p in enumerate(flying) if self.sites[owners[p]][0] >= site]
            x, ids = (_pick(tensor, kept, len(flying)) for tensor in (x, ids))
            flying = [flying[k] for k in kept]
            x = self._stage(self.front.stages[site - 1], x, ids, self.shared)
            for lane in {o for o in (owners[p] for p in flying) if self.sites[o][0] == site}:
                own = [k for k, p in enumerate(flying) if owners[p] == lane]
                found[lane] = (
                    [flying[k] for k in own],
                    self.stitches[lane](_pick(x, own, len(flying))),
                )
        return found

    def _tails(self, parts: dict[int, tuple[list[int], Tensor]]) -> Tensor:
        flying: list[int] = []
        x: Tensor | None = None
        ids = self.numbers[:0]
        for site in range(1, self.tail.num_sites + 1):
            if x is not None:
                x = self._stage(self.tail.stages[site - 1], x, ids)
            joining = [(n, *part) for n, part in parts.items() if self.sites[n][1] == site]
            if joining:
                x = torch.cat([*([] if x is None else [x]), *(h for *_, h in joining)])
                own = (self.numbers[n : n + 1].expand(len(places)) for n, places, _ in joining)
                ids = torch.cat([ids, *own])
                flying = flying + [p for _, places, _ in joining for p in places]
        logits = self._stage(self.tail.head, x, ids)
        back = torch.empty(len(flying), dtype=torch.int64)
        back[torch.tensor(flying)] = torch.arange(len(flying))
        return logits[back.to(logits.device)]

    def _stage(self, stage: nn.Module, x: Tensor, ids: Tensor, shared: bool = False) -> Tensor:
        """Run a stage in eval mode, each image with the running statistics of its lane in `ids`."""
        norms = [m for m in stage.modules() if isinstance(m, LaneNorm)]
        if shared:
            assign(norms, slice(0, 1), 1, "running")
        else:
            assign(norms, ids, len(ids), "running")
        return stage(x)

    def search(self, input_shape: Sequence[int], *, bf16: bool, folded: bool) -> PackedWave:
        """The same lanes for computing gradients only, in bfloat16 where asked.

        Lanes share the convolutions' weights, so batch norm stays a scale and shift per image
        instead of being folded into them.
        """
        if not bf16:
            return self
        twin = copy.copy(self)
        twin.dtype = torch.bfloat16
        twin.front, twin.tail = (cast(m, torch.bfloat16) for m in (self.front, self.tail))
        twin._ways = {}
        twin.stitches = [copy.deepcopy(s).to(torch.bfloat16) for s in self.stitches]
        return twin


def _stitch_of(wave: Wave, number: int, dtype: torch.dtype) -> Stitch:
    group = next(g for g in wave.bank.groups if number in g.lanes)
    stitch = copy.deepcopy(group.template).to(wave.device, dtype)
    stitch.load_state_dict(wave.bank.lane_state(number), strict=False)
    return stitch.eval().requires_grad_(False)


def _alone(stitch: Stitch) -> Callable[[Tensor, Tensor], Tensor]:
    """A stitch in the place of a choice."""
    return lambda x, place: stitch(x)


def _pick(x: Tensor, places: list[int], count: int) -> Tensor:
    return x if len(places) == count else x[torch.tensor(places, device=x.device)]
