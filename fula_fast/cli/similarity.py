"""`fula-fast similarity`: measures of donors against each other, without training a stitch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..files.paths import user_path
from .app import DeviceOption, SetOption, SpecArgument, command


@command("similarity", resume="finished pairs are kept: the same command with --resume goes on")
def similarity(
    spec: SpecArgument,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; runs/NAME-similarity when not given.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run: missing pairs only.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show pairs, measures and memory; do nothing.")
    ] = False,
    overrides: SetOption = None,
    device: DeviceOption = None,
    memory: Annotated[str | None, typer.Option(metavar="AMOUNT", help="Budget: 8GiB, 60%.")] = None,
) -> None:
    """Compare a spec's donors layer by layer with its [similarity] measures; train no stitch."""
    from ..study.similarity_plan import similarity_spec

    engine = {"engine.device": device, "engine.memory": memory}
    given = [*(overrides or ()), *((k, v) for k, v in engine.items() if v is not None)]
    loaded = similarity_spec(spec, given)
    folder = user_path(out) if out else Path("runs") / f"{loaded.name}-similarity"
    if dry_run:
        from .dry_run import show_plan

        show_plan(loaded, folder)
        return
    from ..progress import open_progress
    from ..report.after_sweep import sweep_with_report

    with open_progress() as progress:
        print(sweep_with_report(loaded, folder, resume=resume, progress=progress))
