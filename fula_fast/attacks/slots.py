"""Auto-PGD over a queue of jobs with a batch that stays full.

A job is one stage (a loss) of the attack on one image by one lane. Jobs sit in the rows ("slots")
of a fixed-shape batch, each at its own iteration; a row is refilled as soon as its job is done, and
the batch shrinks to a smaller fixed size when the queue has run dry. Rows never influence each
other, so what a job computes does not depend on its companions (to the rounding by batch size).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..device.graphs import Recorder
from ..device.replay import Replay
from ..errors import not_none
from .apgd import APGDConfig, State, advance, begin, evaluate_mean, image_loss, interval_table
from .names import TARGETED, AttackStage
from .packed import PackedModel, by_route, logits_along
from .record import Record

Starts = Callable[[int, int, np.ndarray], Tensor]
"""(stage, lane, image indices (n,)) -> start noise (n, C, H, W)."""


class Job(NamedTuple):
    """One stage of the attack on one image by one lane."""

    stage: int
    lane: int
    image: int


@dataclass(frozen=True)
class SearchOptions:
    """keep_first: a job ends at its first confirmed adversarial image (see `Savings.compaction`);
    packing: rows are refilled at once and lanes and stages mix, else a batch holds one lane's jobs
    of one stage and is refilled when all are done; sizes: the fixed batch sizes, ascending;
    recorder: what records the iteration, None runs it eagerly; poll: iterations between two looks
    at what is done; routed: a batch holds images of one route only, so that an iteration has no
    host synchronisation."""

    keep_first: bool
    packing: bool
    sizes: Sequence[int]
    recorder: Recorder | None
    poll: int
    routed: bool = False


class Slots:
    """A batch of fixed size: the APGD state of its rows and their jobs' lane, loss and target."""

    def __init__(
        self, size: int, model: PackedModel, config: APGDConfig, losses: Sequence[int],
        like: Tensor, *, keep_first: bool, recorder: Recorder | None,
    ) -> None:  # fmt: skip
        self.size = size
        self._model, self._config, self._losses = model, config, losses
        self._keep_first = keep_first
        self._table = interval_table(config, like)
        blank = like[:1].expand(size, *like.shape[1:])
        index = torch.zeros(size, dtype=torch.int64, device=like.device)
        self.state = begin(config, blank, index, torch.zeros_like(blank))
        self.lane, self.loss, self.target = index.clone(), index.clone(), index.clone()
        self._recorder = recorder
        self._replays: dict[Hashable | None, Replay] = {}

    def iterate(self, route: Hashable | None = None) -> str:
        """One look and one step of every row; says what ran ("eager" or "captured"). route: that of
        all lanes in the rows; None where they may differ."""
        if route not in self._replays:
            step = partial(self._iterate, logits_along(self._model, route))
            self._replays[route] = Replay(step, self._recorder, state=self.state.tensors)
        self._replays[route]()
        return self._replays[route].mode

    def _iterate(self, logits: Callable[[Tensor, Tensor], Tensor]) -> None:
        seen = evaluate_mean(
            lambda x: logits(x, self.lane), self.state.adv, self._loss_of, self._config.eot
        )
        self.state.assign(
            advance(self._config, self._table, self.state, seen, keep_first=self._keep_first)
        )

    def _loss_of(self, logits: Tensor) -> Tensor:
        """Each row's own loss; a loss that no row uses is not computed."""
        first, *others = self._losses
        result = image_loss(logits, self.state.labels, self.target, first)
        for kind in others:
            other = image_loss(logits, self.state.labels, self.target, kind)
            result = torch.where(self.loss == kind, other, result)
        return result

    def put(self, rows: Tensor, state: State, lane: Tensor, loss: Tensor, target: Tensor) -> None:
        """Fill rows (n,) with new jobs."""
        self.state.put(rows, state)
        for mine, theirs in ((self.lane, lane), (self.loss, loss), (self.target, target)):
            mine.index_copy_(0, rows, theirs)

    def move_to(self, other: Slots, rows: Tensor) -> None:
        """Copy rows (n,) to the first n rows of another batch."""
        there = torch.arange(len(rows), device=rows.device)
        other.put(there, self.state.take(rows), self.lane[rows], self.loss[rows], self.target[rows])


def fixed_sizes(batch_size: int, *, halves: bool = False) -> list[int]:
    """A few batch sizes up to `batch_size`, ascending: halves and three quarters, or
    halves alone."""
    found, size = {batch_size}, batch_size
    while size > 8:
        found |= {size // 2} if halves else {size * 3 // 4, size // 2}
        size //= 2
    return sorted(found)


class Search:
    """APGD on every job of a queue; confirmed adversarial images go to a `Record`.

    model: where gradients come from; record: images, labels, and the exact model that confirms;
    stages: what is tried on an image, in turn, until one succeeds.
    """

    def __init__(
        self, model: PackedModel, record: Record, config: APGDConfig, stages: Sequence[AttackStage],
        starts: Starts, options: SearchOptions,
    ) -> None:  # fmt: skip
        self._model, self._record, self._config = model, record, config
        self._stages, self._starts, self._options = stages, starts, options
        self._losses = sorted({stage.loss for stage in stages})
        self._pool: dict[int, Slots] = {}
        self._queue: deque[Job] = deque()
        self._jobs: list[Job | None] = []
        self._t = np.zeros(0, dtype=np.int64)  # the rows' `state.t`, known without asking
        self._slots: Slots | None = None
        self._route: Hashable | None = None
        self.modes: set[str] = set()

    def run(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Attack each (lane, image) of `pairs` with every stage until one succeeds."""
        for route, group in by_route(self._model, pairs, self._options.routed):
            self._route = route
            self._queue.extend(Job(0, lane, image) for lane, image in group)
            while self._queue or any(self._jobs):
                self._refill()
                for _ in range(self._options.poll):
                    self._iterate()
                self._harvest()

    @property
    def _batch(self) -> Slots:
        return not_none(self._slots)

    def _iterate(self) -> None:
        self.modes.add(self._batch.iterate(self._route))
        for job, t in zip(self._jobs, self._t, strict=True):
            if job is not None and t <= self._config.steps:
                self._record.gradients[job.lane] += self._config.eot
        self._t += 1

    # rows and their jobs

    def _refill(self) -> None:
        """Fit the batch to the rows in use and the jobs to come, and load those."""
        live = sum(job is not None for job in self._jobs)
        room = self._options.sizes[-1] - live
        jobs = self._next_jobs(room) if self._options.packing or not live else []
        self._resize(live + len(jobs))
        self._load([row for row, job in enumerate(self._jobs) if job is None], jobs)

    def _next_jobs(self, count: int) -> list[Job]:
        """The next jobs of the queue; without packing, of one stage and lane only."""
        taken: list[Job] = []
        while self._queue and len(taken) < count:
            mixed = taken and self._queue[0][:2] != taken[0][:2]
            if mixed and not self._options.packing:
                break
            taken.append(self._queue.popleft())
        return taken

    def _resize(self, needed: int) -> None:
        """Switch to the smallest fixed size that holds `needed` rows, keeping those in use."""
        size = next(s for s in self._options.sizes if s >= needed)
        if self._slots is not None and self._slots.size == size:
            return
        rows = [row for row, job in enumerate(self._jobs) if job is not None]
        before, self._slots = self._slots, self._of_size(size)
        if before is not None and rows:
            before.move_to(self._slots, self._index(rows))
        self._jobs = [self._jobs[row] for row in rows] + [None] * (size - len(rows))
        self._t = np.concatenate([self._t[rows], np.zeros(size - len(rows), dtype=np.int64)])

    def _of_size(self, size: int) -> Slots:
        """A batch of that size; one that is recorded is kept for the next time."""
        if size in self._pool:
            return self._pool[size]
        made = Slots(
            size, self._model, self._config, self._losses, self._record.pixels([0]),
            keep_first=self._options.keep_first, recorder=self._options.recorder,
        )  # fmt: skip
        if self._options.recorder is not None:
            self._pool[size] = made
        return made

    def _load(self, free: Sequence[int], jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        rows = free[: len(jobs)]
        images = [job.image for job in jobs]
        x = self._record.pixels(images)
        noise = torch.cat(
            [
                self._starts(stage, lane, np.array([job.image for job in group]))
                for (stage, lane), group in groupby(jobs, key=lambda job: job[:2])
            ]
        ).to(x)
        state = begin(self._config, x, self._record.labels[self._index(images)], noise)
        loss = self._index([self._stages[job.stage].loss for job in jobs])
        target = self._index([self._target(job) for job in jobs])
        lane = self._index([job.lane for job in jobs])
        self._batch.put(self._index(rows), state, lane, loss, target)
        for row, job in zip(rows, jobs, strict=True):
            self._jobs[row], self._t[row] = job, 0

    def _target(self, job: Job) -> int:
        stage = self._stages[job.stage]
        if stage.loss != TARGETED:
            return 0
        return self._record.ranked_class(job.lane, job.image, stage.rank)

    def _index(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._record.images.device)

    # what is done

    def _harvest(self) -> None:
        """Confirm adversarial images, record them, and pass survivors on to their next stage."""
        live = [row for row, job in enumerate(self._jobs) if job is not None]
        done = {row for row in live if self._t[row] > self._config.steps}
        if not done and not self._options.keep_first:
            return
        fooled = self._batch.state.fooled.tolist()  # the one host synchronisation
        claimed = [row for row in live if fooled[row] and (row in done or self._options.keep_first)]
        confirmed = self._confirm(claimed)
        again = [row for row in claimed if row not in confirmed | done]
        if again:
            self._batch.state.fooled.index_fill_(0, self._index(again), False)
        for row in sorted(confirmed | done):
            job, self._jobs[row] = self._job(row), None
            if row not in confirmed and job.stage + 1 < len(self._stages):
                self._queue.append(job._replace(stage=job.stage + 1))

    def _job(self, row: int) -> Job:
        return not_none(self._jobs[row])

    def _confirm(self, rows: Sequence[int]) -> set[int]:
        if not rows:
            return set()
        index = self._index(rows)
        pairs = [(self._job(row).lane, self._job(row).image) for row in rows]
        right = self._record.confirm(pairs, self._batch.state.found[index])
        return {row for row, yes in zip(rows, right, strict=True) if yes}
