"""What an executor is given, and what it gives back: the seam between planning and computing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..device.precision import PLAIN, precision_of
from ..errors import FulaError, not_none
from ..models import Staged
from ..models.batchnorm import check_norms
from ..pipelines import Batch, Stream
from ..progress import Progress
from ..stitching.starts import Pair, check_sites, initial_stitches
from ..stitching.stitch import Geometry, Stitch
from ..study.cell import Cell
from ..study.protocol import CLOSED_FORM, Protocol


@dataclass(frozen=True)
class WaveTask:
    """Cells that share everything a wave shares, and all they need to run.

    `front`, `end`: donors, cut at the cells' hook, never modified. `stream`: training batches, or
    None where no pass is made. `dm_images(samples)`: images for the closed form. `evaluations`:
    fresh batches of each test set by name; the first is the cells' own. `epochs`: of training.
    `mode`: `auto`, `eager`, `compiled` or `captured`; `compile`: a captured step's stages too.
    `turns`: by cell id, in which of a step's turns a cell goes through the end, as planned.
    `flops`: of the whole training, as planned. `room`: bytes that the budget leaves beside what the
    wave is predicted to need; None where there is no budget.
    `robust_images`: how many test images are attacked (None: all).
    `measures`: optional columns, see `measures.sites`. `samples`: numbers of the test images whose
    pairs measures compare.
    """

    cells: Sequence[Cell]
    front: Staged
    end: Staged
    stream: Stream | None
    dm_images: Callable[[int | str], Tensor | Iterable[Tensor]]
    evaluations: Mapping[str, Callable[[], Iterator[Batch]]]
    epochs: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = PLAIN
    mode: str = "auto"
    compile: bool = False
    turns: Mapping[str, int] = field(default_factory=dict)
    flops: float = 0.0
    room: int | None = None
    robust_images: int | None = None
    measures: tuple[str, ...] = ()
    samples: Sequence[int] = ()
    progress: Progress = field(default_factory=Progress)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of activations."""
        return precision_of(self.precision).dtype

    @property
    def parameter_dtype(self) -> torch.dtype:
        """Dtype of what is trained: float32, or float64 with the activations."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def batches(self) -> Stream:
        """`stream`, of a task that trains."""
        return not_none(self.stream)

    @property
    def steps(self) -> int:
        """Training steps of the whole wave."""
        return self.epochs * self.stream.steps if self.stream is not None else 0


@dataclass
class Outcome:
    """A finished cell: its measures (columns of its row), and its trained stitch.

    `statistics`: running statistics of its model, where training moved them. `error`: why the cell
    failed; `metrics` may then be partial.
    """

    cell: Cell
    metrics: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)
    error: str | None = None


def stitches_of(task: WaveTask) -> dict[str, Stitch]:
    """An initial float32 stitch for every cell, by cell id.

    Cells that share initialisation, DM images and cut-off take one pass of the donors.
    """
    groups: dict[tuple, list[Cell]] = {}
    for role in ("front", "end"):
        check_norms(getattr(task, role), role)
    for cell in task.cells:
        check_sites(task.front, cell.front_site, "front")
        check_sites(task.end, cell.end_site, "end")
        _check_dm(task, cell)
        groups.setdefault(_start_key(cell), []).append(cell)
    stitches = {}
    for cells in groups.values():
        found = _group_stitches(task, cells)
        for cell in cells:
            stitch = Stitch(
                *(getattr(found[_pair(cell)].geometry, part) for part in ("source", "target")),
                batchnorm=cell.protocol.stitch_bn == "both",
                bias=cell.protocol.stitch_bias,
            )
            stitch.load_state_dict(found[_pair(cell)].state_dict())
            stitches[cell.id] = stitch
    return stitches


def _check_dm(task: WaveTask, cell: Cell) -> None:
    """A `dm` result between sites of unlike form would be a random map under a wrong name."""
    shapes = task.front.site_shapes[cell.front_site - 1], task.end.site_shapes[cell.end_site - 1]
    if not cell.objective and not Geometry(*shapes).like:
        raise FulaError(
            f"method '{cell.method}' needs sites of one form, not {shapes[0]} and {shapes[1]} "
            f"(front site {cell.front_site}, end site {cell.end_site}); leave it out of this grid"
        )


def _pair(cell: Cell) -> Pair:
    return cell.front_site, cell.end_site


def _start_protocol(cell: Cell) -> Protocol:
    """What is not trained is the closed form whatever the initialisation of trained cells."""
    if cell.objective:
        return cell.protocol
    return cell.protocol.model_copy(update={"init": CLOSED_FORM})


def _start_key(cell: Cell) -> tuple:
    p = _start_protocol(cell)
    return p.init, p.dm_samples, p.dm_rcond, p.stitch_bn, p.stitch_bias, cell.seed


def _group_stitches(task: WaveTask, cells: Sequence[Cell]) -> dict[Pair, Stitch]:
    protocol = _start_protocol(cells[0])
    closed = protocol.starts_closed
    images = task.dm_images(protocol.dm_samples) if closed else torch.zeros(0)
    pairs = [_pair(cell) for cell in cells]
    return initial_stitches(task.front, task.end, pairs, protocol, images, cells[0].seed)


def attacked_mask(cell: Cell, epoch: int, step: int, batch_size: int) -> Tensor:
    """Which images of a batch are attacked: floor(alpha * B) of them, (B,) bool.

    `share = "first"` takes the first; `random` draws them from the keyed randomness of
    (data seed, epoch, step), the same for every alpha (a larger share contains a smaller one).
    """
    count = int(cell.alpha * batch_size + 1e-9)
    mask = torch.zeros(batch_size, dtype=torch.bool)
    if cell.protocol.share == "first":
        mask[:count] = True
        return mask
    key = np.array([cell.data_seed, _SHARE_TAG], dtype=np.uint64)
    words = np.random.Philox(key=key, counter=[0, 0, step, epoch]).random_raw(batch_size)
    mask[torch.from_numpy(np.argsort(words, kind="stable")[:count])] = True
    return mask


_SHARE_TAG = 0x5AAE


def check_result(outcome: Outcome) -> Outcome:
    """The outcome, turned into a failed one where its stitch, its model's statistics, its distance
    at the stitch or logits are not finite: training then overflowed where no loss showed it."""
    metrics = {n: v for n, v in outcome.metrics.items() if not n.endswith(_SILENT)}
    error = outcome.error or _overflow(outcome) or _silence(outcome.metrics)
    if error == outcome.error:
        return replace(outcome, metrics=metrics)
    kept = {n: metrics[n] for n in ("train_seconds", "engine_mode") if n in metrics}
    return Outcome(outcome.cell, kept, error=error)


_SILENT = "unanswered"


def _overflow(outcome: Outcome) -> str | None:
    wrong = [
        name
        for name, tensor in {**outcome.tensors, **outcome.statistics}.items()
        if not torch.isfinite(tensor).all()
    ]
    wrong += [
        n for n in ("loss", "term_stitch") if not math.isfinite(outcome.metrics.get(n) or 0.0)
    ]
    return (
        f"after training {wrong[0]} is not finite; lower lr, or check the donors" if wrong else None
    )


def _silence(metrics: Mapping[str, Any]) -> str | None:
    """What to say where a test image got no answer from a model: no share of images counts then."""
    for name, count in metrics.items():
        if name.endswith(_SILENT) and count:
            model = "end donor" if name.endswith(f"end_{_SILENT}") else "stitched model"
            return (
                f"the {model} gives no finite logits on {int(count)} test images; "
                "check the donors' weights, or lower lr"
            )
    return None


def non_finite(loss: float, step: int, terms: Sequence[float]) -> FulaError:
    """The error of a cell whose loss is NaN or infinite at `step`."""
    shown = ", ".join(f"{t:.4g}" for t in terms)
    return FulaError(
        f"the loss became {loss} at step {step} (terms: {shown}); lower lr, or check the donors"
    )
