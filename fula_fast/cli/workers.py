"""`fula-fast work`, `status` and `cancel`: join a run, see what it is doing, end it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..files.paths import user_path
from .app import FAILED, DeviceOption, ParentOption, RetryOption, command

if TYPE_CHECKING:
    from ..store import Store
    from ..store.activity import Status

WATCH_SECONDS = 5.0
PAGE_SHARE = 4.0
"""Between two pages lies this many times what one takes: looking is not to slow a run down."""


@command("work", resume="what is finished is kept: the same command goes on")
def work(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A sweep's folder.")],
    device: DeviceOption = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Cells that failed after it are not tried again: now."),
    ] = None,
    donors: Annotated[Path | None, typer.Option(help="Folder of trained donors.")] = None,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first failed cell.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write a trace and a table of time by stage.")
    ] = False,
    retry_failed: RetryOption = False,
    report: Annotated[
        bool, typer.Option(help="Write tables and report if no other worker is left at the end.")
    ] = True,
    track: Annotated[
        str | None, typer.Option(metavar="wandb|tensorboard", help="Tell a tracker, too.")
    ] = None,
    parent: ParentOption = None,
) -> None:
    """Join a run as one more worker, from any machine that sees its folder."""
    from ..progress import open_progress
    from ..report.after_sweep import work_on_report
    from ..runs.alone import end_with
    from ..runs.kept import go_where_started

    folder = user_path(run).absolute()
    if parent is None:
        go_where_started(folder)  # its spec's paths may be relative
    else:
        end_with(parent)
    with open_progress() as progress:
        left = work_on_report(
            folder, report=report, track=track, device=device or "auto", since=since, donors=donors,
            fail_fast=fail_fast, profile=profile, retry_failed=retry_failed, progress=progress,
        )  # fmt: skip
    print(f"no wave of '{run}' is free; {left} cells have no result")


@command("status")
def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A sweep's folder.")],
    watch: Annotated[bool, typer.Option("--watch", help="Again and again until it ends.")] = False,
    failed: Annotated[
        bool, typer.Option("--failed", help="List the failed cells with their errors.")
    ] = False,
    log: Annotated[
        str | None, typer.Option(metavar="WAVE", help="The log of a wave (its id, or a beginning).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one line of JSON.")] = False,
    html: Annotated[
        bool,
        typer.Option("--html", help="Write the run's report.html as it stands, too: a live page."),
    ] = False,
) -> int:
    """Show what a run is doing: done, running, waiting, interrupted, failed; time left.

    Exit code 1 where cells have failed.
    """
    from ..store import Store
    from ..store.activity import status_of

    if log is not None:
        from ..runs.wave_logs import wave_log

        print(wave_log(Store.open(run), log), end="")
        return 0
    while True:
        started = time.monotonic()
        store = Store.open(run)
        found = status_of(store)
        print(json.dumps(found.to_json()) if as_json else _text(found), flush=True)
        if failed:
            print(*_failures(store), sep="\n")
        if html:
            _write_page(store, found, watch, started)
        if not watch or found.state != "running":
            return FAILED if found.failed else 0
        time.sleep(max(WATCH_SECONDS, PAGE_SHARE * (time.monotonic() - started)))


def _write_page(store: Store, found: Status, watch: bool, started: float) -> None:
    from ..report.page import Live, write_report

    running = watch and found.state == "running"
    seconds = WATCH_SECONDS + PAGE_SHARE * (time.monotonic() - started)
    live = Live(_text(found).splitlines(), max(round(seconds), 10)) if running else None
    print(f"report: {write_report(store.folder, live)}", flush=True)


@command("cancel")
def cancel(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A sweep's folder.")],
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long to wait for the workers' end.")
    ] = 60.0,
) -> int:
    """End all workers of a run, on whichever machine: each keeps what it has finished.

    Those that a cluster starts later for the same launch end at once. Exit code 1 where some still
    work when `--wait` is over.
    """
    from ..runs.engines.launch import now
    from ..store import Store
    from ..store.activity import status_of

    store = Store.open(run)
    store.writers.cancel(now())
    until = time.monotonic() + wait
    while (left := status_of(store).workers) and time.monotonic() < until:
        time.sleep(min(0.5, wait))
    print(_text(status_of(store)))
    if left:
        print(f"{len(left)} workers have not heard of it yet; they end when they do")
    return FAILED if left else 0


def _text(found: Status) -> str:
    from ..progress import duration

    parts = [f"{getattr(found, name)} {name}" for name in ("done", "running", "waiting")]
    parts += [f"{getattr(found, n)} {n}" for n in ("interrupted", "failed") if getattr(found, n)]
    left = found.seconds_left
    if left is not None:
        parts.append(f"{duration(left)} left")
    of_cells = f"{', '.join(parts)} of {found.cells} cells" if found.cells else "no cells to run"
    lines = [f"{found.state}: {of_cells}"]
    for worker in found.workers:
        since = duration(max(time.time() - worker.since, 0))
        wave = f"wave {worker.wave}, {worker.cells} cells, for {since}" if worker.wave else "idle"
        epochs = "" if worker.epochs is None else f", {worker.epochs} epochs done"
        lines.append(f"  {worker.host}, process {worker.pid}: {wave}{epochs}")
    lines += [f"  failed ({count}): {reason}" for reason, count in found.reasons.items()]
    if found.state == "stopped" and found.done + found.failed < found.cells:
        lines.append("  nobody works on it: fula-fast work RUN, or its sweep with --resume")
    return "\n".join(lines)


def _failures(store: Any) -> list[str]:
    rows = store.rows(store.failed())
    return [
        f"{row['cell']}  {row['front']} {row['front_site']} -> {row['end']} {row['end_site']}, "
        f"{row['method']}, seed {row['seed']}: {row['error']}"
        for row in rows
    ]
