"""A wave's stitched models as one `PackedModel`: images of any lanes in one batch.

An attack packs the images still in flight across lanes. In eval mode every image is a lane of its
own, with the running statistics of the cell that it belongs to: front and tail stages run once for
all images that are in them, and only the stitches run cell by cell.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..stitches import Stitch
from .lanenorm import LaneNorm, assign, cast
from .network import Network
from .wave import Wave


class PackedWave:
    """The trained lanes `lanes` (wave numbers) of a wave, frozen; see `attacks.PackedModel`.

    network: of the donors, in the precision in which images are confirmed (`exact_network`); the
    wave's own by default.
    """

    capturable = False  # which images are in which stage is decided on the host

    def __init__(self, wave: Wave, lanes: Sequence[int], network: Network | None = None) -> None:
        network = network or wave.network
        self.lanes, self.device = len(lanes), wave.device
        self.numbers = torch.tensor(list(lanes), device=wave.device)
        self.sites = [(wave.lanes[n].front_site, wave.lanes[n].end_site) for n in lanes]
        self.shared, self.dtype = network.shared, network.dtype
        self.front, self.tail = network.front, network.tail
        self.stitches = [_stitch_of(wave, n, self.dtype) for n in lanes]

    def logits(self, x: Tensor, lane: Tensor) -> Tensor:
        """Eval-mode logits (N, classes) of images x (N, C, H, W), image i by lane[i]."""
        owners = lane.tolist()
        parts = self._fronts(x.to(self.dtype), owners)
        return self._tails(parts, owners).float()

    def _fronts(self, x: Tensor, owners: Sequence[int]) -> dict[int, tuple[list[int], Tensor]]:
        """{lane: (its images' places, stitch outputs)}."""
        found: dict[int, tuple[list[int], Tensor]] = {}
        flying = list(range(len(owners)))
        deepest = max(self.sites[o][0] for o in owners)
        for site in range(1, deepest + 1):
            kept = [k for k, p in enumerate(flying) if self.sites[owners[p]][0] >= site]
            x, flying = _pick(x, kept, len(flying)), [flying[k] for k in kept]
            x = self._stage(
                self.front.stages[site - 1], x, [owners[p] for p in flying], self.shared
            )
            for lane in {o for o in (owners[p] for p in flying) if self.sites[o][0] == site}:
                own = [k for k, p in enumerate(flying) if owners[p] == lane]
                found[lane] = (
                    [flying[k] for k in own],
                    self.stitches[lane](_pick(x, own, len(flying))),
                )
        return found

    def _tails(self, parts: dict[int, tuple[list[int], Tensor]], owners: Sequence[int]) -> Tensor:
        flying: list[int] = []
        x: Tensor | None = None
        for site in range(1, self.tail.num_sites + 1):
            if x is not None:
                x = self._stage(self.tail.stages[site - 1], x, [owners[p] for p in flying])
            joining = [part for lane, part in parts.items() if self.sites[lane][1] == site]
            if joining:
                x = torch.cat([*([] if x is None else [x]), *(h for _, h in joining)])
                flying = flying + [p for places, _ in joining for p in places]
        logits = self._stage(self.tail.head, x, [owners[p] for p in flying])
        back = torch.empty(len(flying), dtype=torch.int64)
        back[torch.tensor(flying)] = torch.arange(len(flying))
        return logits[back.to(logits.device)]

    def _stage(
        self, stage: nn.Module, x: Tensor, owners: Sequence[int], shared: bool = False
    ) -> Tensor:
        """Run a stage in eval mode, each image with its lane's running statistics."""
        norms = [m for m in stage.modules() if isinstance(m, LaneNorm)]
        if shared:
            assign(norms, slice(0, 1), 1, "running")
        else:
            ids = self.numbers[torch.tensor(owners, device=self.device)]
            assign(norms, ids, len(owners), "running")
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
        twin.stitches = [copy.deepcopy(s).to(torch.bfloat16) for s in self.stitches]
        return twin


def _stitch_of(wave: Wave, number: int, dtype: torch.dtype) -> Stitch:
    group = next(g for g in wave.bank.groups if number in g.lanes)
    stitch = copy.deepcopy(group.template).to(wave.device, dtype)
    stitch.load_state_dict(wave.bank.lane_state(number), strict=False)
    return stitch.eval().requires_grad_(False)


def _pick(x: Tensor, places: list[int], count: int) -> Tensor:
    return x if len(places) == count else x[torch.tensor(places, device=x.device)]
