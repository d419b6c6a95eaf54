"""What an experiment would cost: cells, multiply-adds, and an estimate of the time here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..attacks.names import gradients
from ..device.precision import FAST
from ..donors.training import SIMCLR, resolved_recipe
from ..progress import duration
from ..study.donor_spec import DonorSpec
from ..study.facts import DataFacts, DonorFacts, donor_facts
from ..study.resources import Resources
from ..study.show_plan import flops_text
from ..study.spec import parse_table
from .experiment import Experiment, Sweep
from .recipe import catalogue
from .runner import driver_of

PASSES = 3
"""Forward and both gradients, in forward passes."""
_USE = 1.8
"""What a wave's step reaches of the probe's rate: measured for width 16 at 16x16 on a CPU, where
whole networks run larger products than the probe's."""
_PER_STEP = {"cpu": 0.015}
"""Seconds of a training step beside its arithmetic: a single lane through a ResNet-18 of width 4,
whose operators are called one by one, took 64 steps/s (63 to 65, n = 4, AMD EPYC, one thread, torch
2.15). A captured step on a GPU is one launch."""


@dataclass(frozen=True)
class Price:
    """An experiment's cost. `work`: multiply-adds of stitches and tests; `donor_work`: of training
    its `donors`, each once. `cached`: donors that are trained. `missing`: data that is not there.
    `steps`: training steps of all waves. `shares`: the experiment whose sweeps these are."""

    name: str
    figure: str
    cells: int
    work: float
    donor_work: float
    donors: tuple[str, ...]
    missing: tuple[str, ...]
    cached: int = 0
    steps: int = 0
    shares: str = ""


def price(
    experiment: Experiment,
    trained: set[str],
    *,
    shared: bool = False,
    cached: Callable[[DonorSpec], bool] = lambda donor: False,
) -> Price:
    """The cost, without donors in `trained` (recipes, by identity), which it adds to.

    `shared`: its sweeps are another experiment's, priced there. `cached`: whether a donor whose
    data is there was trained before.
    """
    name, figure = experiment.name, experiment.recipe.figure
    if shared:
        run = experiment.recipe.run_name
        return Price(name, figure, 0, 0.0, 0.0, (), experiment.missing, shares=run)
    cells, work, steps = _stitching(experiment)
    donor_work, names, known = 0.0, [], 0
    for donor_name, donor, data in _donors(experiment):
        key = repr(donor.recipe_identity())
        if key not in trained and not donor.checkpoint:
            trained.add(key)
            if not experiment.missing and cached(donor):
                known += 1
                continue
            names.append(donor_name)
            facts = donor_facts(donor, data, "post_relu")
            donor_work += donor_flops(donor, facts, data.train_images)
    donors = tuple(names)
    return Price(
        name, figure, cells, work, donor_work, donors, experiment.missing, cached=known, steps=steps
    )


def _stitching(experiment: Experiment) -> tuple[int, float, int]:
    """Cells and tasks, their multiply-adds, and their training steps."""
    cells, work, steps = 0, 0.0, 0
    for sweep in experiment.sweeps:
        planned = sweep.plan()
        cells += len(planned.lanes)
        work += planned.flops + _evaluation(sweep, planned.lanes)
        steps += sum(wave.steps for wave in planned.waves)
    tasks = driver_of(experiment).tasks(experiment) if experiment.recipe.driver else []
    work, steps = work + sum(t.flops for t in tasks), steps + sum(t.steps for t in tasks)
    return cells + len(tasks), work, steps


def in_cache(donor: DonorSpec) -> bool:
    """Whether the user's cache holds the donor; reads its data, whose content is in its name."""
    from ..donors.donor import donor_path, recipe_of
    from ..donors.obtain import input_of, open_source
    from ..files.paths import cache_folder

    source = open_source(donor.images)
    recipe = recipe_of(donor, source, input_of(donor, source))
    return donor_path(cache_folder() / "donors", recipe).exists()


def _donors(experiment: Experiment) -> Iterator[tuple[str, DonorSpec, DataFacts]]:
    """Every donor with nominal facts of its data: of the sweeps, and those of the driver alone."""
    for sweep in experiment.sweeps:
        for name, donor in sweep.spec.donors.items():
            yield name, donor, sweep.donor_data[name]
    for changes in experiment.options.get("models", [{}]):  # Table 1 has its donors in several
        used = experiment.options.get("receivers", experiment.donors)
        for name in used:
            table = experiment.donors[name]
            given = {k: v for k, v in changes.items() if k != "label"}
            donor = parse_table(DonorSpec, {**table, **given, "name": name}, f"donors.{name}")
            yield name, donor, experiment.data[catalogue()["donors"][name]["data"]].facts


def donor_flops(donor: DonorSpec, facts: DonorFacts, images: int) -> float:
    """Multiply-adds of a donor's training."""
    if donor.untrained or donor.as_fetched:
        return 0.0
    epochs = resolved_recipe(donor.recipe, epochs=donor.epochs).epochs
    passes = float(PASSES * (2 if donor.recipe == SIMCLR else 1))  # of two views
    if donor.adversarial is not None:
        passes += 2 * donor.adversarial.steps * donor.adversarial.alpha
    return passes * images * epochs * (sum(facts.flops) + facts.head_flops)


def _evaluation(sweep: Sweep, cells: Sequence[Any]) -> float:
    """Test passes of every cell, and its attack's steps, over the tested images."""
    evaluation = sweep.spec.evaluation
    tested = sweep.spec.data.test_images or 10_000
    attacked = min(evaluation.robust_images or tested, tested)
    sets = 1 + len(evaluation.sets)
    facts, total = sweep.donor_facts(), 0.0
    for cell in cells:
        front, end = facts[cell.front], facts[cell.end]
        whole = sum(front.flops[: cell.front_site]) + sum(end.flops[cell.end_site :])
        attack = PASSES * gradients(cell.protocol.robust) * attacked
        total += whole * (sets * tested + attack)
    return total


@cache
def speed(device: str, precision: str) -> float:
    """Multiply-adds per second of a training step, estimated from half a second's probe.

    The probe is a 3x3 convolution with batch norm and ReLU, forward and backward, of the width of
    the small scale's networks (on a GPU: of the paper's). On a CPU one thread's processor time is
    taken, times the threads: the rate of an idle machine, however busy this one is now.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rate = _probe(device, torch.bfloat16 if precision == FAST else torch.float32)
    finally:
        torch.set_num_threads(threads)
    return _USE * rate * (threads if device == "cpu" else 1)


def _probe(device: str, dtype: Any) -> float:
    """Multiply-adds per second of the probe itself."""
    import torch
    from torch import nn

    cpu = device == "cpu"
    width, batch, side = (16, 128, 16) if cpu else (64, 1024, 32)
    layers = [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    net = nn.Sequential(*layers).to(device, memory_format=torch.channels_last).requires_grad_(False)
    x = torch.randn(batch, width, side, side, device=device, requires_grad=True)

    def step() -> None:
        with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
            net(x).sum().backward()
        if not cpu:
            torch.cuda.synchronize()

    clock = time.process_time if cpu else time.perf_counter
    step()
    started, count = clock(), 0
    while clock() - started < 0.5:
        step()
        count += 1
    return 2 * 9 * width * width * side * side * batch * count / (clock() - started)


def table_of(prices: Iterable[Price], place: Resources) -> str:
    """The prices as text, one line an experiment, with totals."""
    rate, prices = speed(place.device, place.precision), list(prices)
    rows = [_HEADS] + [_row(p, _seconds(p, rate, place.device)) for p in prices]
    cells, work, donor_work = (
        sum(getattr(p, name) for p in prices) for name in ("cells", "work", "donor_work")
    )
    seconds = sum(_seconds(p, rate, place.device) for p in prices)
    works = flops_text(work), flops_text(donor_work)
    rows.append(("total", "", str(cells), *works, duration(seconds), ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    texts = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    note = f"{place.device}, {place.precision}: {flops_text(rate)}/s in a half-second probe"
    return "\n".join([*texts, f"{note}; finished cells are not left out"])


_HEADS = ("experiment", "figure", "cells", "stitches", "donors to train", "estimated time", "data")


def _seconds(p: Price, rate: float, device: str) -> float:
    return (p.work + p.donor_work) / rate + p.steps * _PER_STEP.get(device, 0.0)


def _row(p: Price, seconds: float) -> tuple[str, ...]:
    trained = f"{len(p.donors)}, {flops_text(p.donor_work)}" if p.donor_work else "none"
    trained += f" ({p.cached} trained)" if p.cached else ""
    works = f"as {p.shares}" if p.shares else flops_text(p.work), trained
    return (
        p.name,
        p.figure,
        str(p.cells),
        *works,
        duration(seconds),
        "; ".join(p.missing) or "there",
    )
