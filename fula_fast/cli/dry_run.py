"""What `--dry-run` prints: the plan, whether the data is there, and how long it would take."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..store import Store
    from ..study.plan import Plan

BY_PROBE = "by a half-second probe of this machine"
BY_WAVES = "by what finished waves took"


def show_plan(spec: Any, folder: Path) -> int:
    """Print what a spec would compute; nothing is done. `folder`: a run whose cells may be done; of
    one with the same cells, the plan is the one that it keeps."""
    from ..store import Store
    from ..study.plan import plan_here
    from ..study.resources import resources
    from ..study.show_plan import print_plan

    planned, workers, seconds = plan_here(spec), resources(spec.engine).workers, None
    store = Store.open(folder) if os.path.lexists(folder / "spec.json") else None
    done = store.done() if store else set()
    if store and store.cell_ids.keys() == set(planned.lanes.ids):
        planned, seconds = _kept(planned, store), store.wave_seconds()
    print_plan(planned, done)
    left = _left(planned, done, seconds)
    if workers > 1:
        print(_schedule_line(left, workers, "by FLOPs" if seconds is None else BY_WAVES))
    for line in _data_lines(spec):
        print(line)
    if any(left):
        print(_time_line(planned, left, workers, seconds is not None))
    return 0


def _kept(planned: Plan, store: Store) -> Plan:
    from ..study.plan import Plan

    kept = Plan.from_stored(store.plan, store.planned)
    return replace(kept, donors=planned.donors, device=planned.device)


def _left(planned: Plan, done: Container[str], seconds: Sequence[float] | None) -> list[float]:
    """What each wave with missing cells has left, in seconds (of whole waves), else in FLOPs."""
    costs = seconds or [wave.flops for wave in planned.waves]
    found = []
    for wave, cost in zip(planned.waves, costs, strict=True):
        missing = sum(cell not in done for cell in wave.cells.ids)
        if missing:
            found.append(cost * missing / len(wave.cells))
    return found


def _schedule_line(left: Sequence[float], workers: int, by: str) -> str:
    from ..study.schedule import schedule

    found = schedule(sorted(left, reverse=True) if by == BY_WAVES else left, workers)
    return (
        f"schedule: {len(left)} waves on {workers} workers, {found.efficiency:.0%} of their time "
        f"at work until the last has ended ({by})"
    )


def _data_lines(spec: Any) -> Iterator[str]:
    """Whether data and checkpoints are there."""
    from ..files.paths import user_path
    from ..pipelines.sources.places import place_of

    tables = {table.source: table for table in (spec.data, *(d.data for d in spec.donors.values()))}
    for name, table in tables.items():
        place = place_of(name, table.options.get("path") or table.data_dir)
        here = "is here" if place.there else f"is not here; looked for: {place.looked_for}"
        yield f"data: '{name}' {here}"
    for donor in spec.donors.values():
        if donor.checkpoint and not user_path(donor.checkpoint).is_file():
            yield f"donor {donor.name}: checkpoint '{user_path(donor.checkpoint)}' is not here"


def _time_line(planned: Plan, left: Sequence[float], workers: int, measured: bool) -> str:
    """How long the missing cells would take."""
    from ..progress import duration
    from ..reproduce.price import speed
    from ..study.schedule import schedule

    if measured:
        seconds = schedule(sorted(left, reverse=True), workers).makespan
    else:
        seconds = sum(left) / speed(planned.device, planned.precision)
    return (
        f"time: about {duration(seconds)} for the training of stitches, "
        f"{BY_WAVES if measured else BY_PROBE}; donors that have to be trained, and tests, come on "
        "top"
    )
