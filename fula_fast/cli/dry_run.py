"""What `--dry-run` prints: the plan, whether the data is there, and how long it would take."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def show_plan(spec: Any, folder: Path) -> int:
    """Print what a spec would compute; nothing is done. `folder`: a run whose cells may be done."""
    from ..store import Store
    from ..study.plan import plan_here
    from ..study.resources import resources
    from ..study.show_plan import print_plan

    planned, workers = plan_here(spec), resources(spec.engine).workers
    done = Store.open(folder).done() if os.path.lexists(folder / "spec.json") else ()
    print_plan(planned, done)
    if workers > 1:
        print(_schedule_line(planned, done, workers))
    for line in _dry_lines(spec, planned, done):
        print(line)
    return 0


def _schedule_line(planned: Any, done: Iterable[str], workers: int) -> str:
    from ..study.schedule import schedule

    finished = set(done)
    left = [w.flops for w in planned.waves if not finished.issuperset(w.cells.ids)]
    found = schedule(left, workers)
    return (
        f"schedule: {len(left)} waves on {workers} workers, {found.efficiency:.0%} of their time "
        "at work until the last has ended (by FLOPs)"
    )


def _dry_lines(spec: Any, planned: Any, done: Iterable[str]) -> Iterator[str]:
    """Whether data and checkpoints are there, and how long the missing cells would take here."""
    from ..files.paths import user_path
    from ..pipelines.sources.places import place_of
    from ..progress import duration
    from ..reproduce.price import speed

    tables = {table.source: table for table in (spec.data, *(d.data for d in spec.donors.values()))}
    for name, table in tables.items():
        place = place_of(name, table.options.get("path") or table.data_dir)
        here = "is here" if place.there else f"is not here; looked for: {place.looked_for}"
        yield f"data: '{name}' {here}"
    for donor in spec.donors.values():
        if donor.checkpoint and not user_path(donor.checkpoint).is_file():
            yield f"donor {donor.name}: checkpoint '{user_path(donor.checkpoint)}' is not here"
    finished = set(done)
    work = sum(w.flops for w in planned.waves if not finished.issuperset(w.cells.ids))
    if work:
        seconds = work / speed(planned.device, planned.precision)
        yield (
            f"time: about {duration(seconds)} for the training of stitches, by a half-second probe "
            "of this machine; donors that have to be trained, and tests, come on top"
        )
