"""The command line: `fula-fast --help`.

Nothing heavy is imported before a command's work starts, so that help and argument errors answer
at once. Exit codes: 0 done, 1 some cells failed, 2 bad input or a machine that refused, 130
interrupted, 143 and 129 stopped by SIGTERM and SIGHUP.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..files.paths import user_path
from . import attack as _attack_command  # noqa: F401  registers it
from . import data as _data_commands  # noqa: F401  registers its commands
from . import manual as _manual  # noqa: F401
from . import similarity as _similarity_command  # noqa: F401  registers it
from . import workers as _workers  # noqa: F401
from .app import (
    BAD_INPUT,
    FAILED,
    INTERRUPTED,
    DeviceOption,
    EngineOption,
    ParentOption,
    RetryOption,
    SetOption,
    SpecArgument,
    WorkersOption,
    app,
    command,
)

__all__ = ["BAD_INPUT", "FAILED", "INTERRUPTED", "app", "main"]


@command("sweep", resume="finished cells are kept: the same command with --resume goes on")
def sweep(
    spec: SpecArgument,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; runs/NAME by the spec's name when not given.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run: missing and failed cells only.")
    ] = False,
    retry_failed: RetryOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show cells, waves, memory and work; do nothing.")
    ] = False,
    overrides: SetOption = None,
    device: DeviceOption = None,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first failed cell.")
    ] = False,
    executor: Annotated[
        str | None, typer.Option(metavar="wave|solo", help="Waves of lanes, or cell by cell.")
    ] = None,
    engine_mode: Annotated[
        str | None,
        typer.Option(metavar="auto|eager|compiled|captured", help="How a wave step is run."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="auto|fp64|fp32|tf32|bf16", help="Of activations.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="AMOUNT", help="Budget of a wave: 8GiB, 60%.")
    ] = None,
    engine: EngineOption = None,
    workers: WorkersOption = None,
    track: Annotated[
        str | None, typer.Option(metavar="wandb|tensorboard", help="Tell a tracker, too.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="For Slurm's jobs, which go on by themselves else.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write a trace and a table of time by stage.")
    ] = False,
) -> int:
    """Run a grid of stitched models and write its report."""
    from ..study.spec import load_spec

    table = {"device": device, "executor": executor, "mode": engine_mode, "kind": engine}
    table |= {"precision": precision, "memory": memory, "workers": workers, "track": track}
    loaded = load_spec(spec, [*(overrides or ()), *_flags(table)])
    folder = user_path(out) if out else Path("runs") / loaded.name
    if dry_run:
        from .dry_run import show_plan

        return show_plan(loaded, folder)
    from ..progress import open_progress
    from ..report.after_sweep import sweep_with_report

    with open_progress() as progress:
        summary = sweep_with_report(
            loaded, folder, resume=resume or retry_failed, fail_fast=fail_fast, progress=progress,
            profile=profile, retry_failed=retry_failed, wait=wait or loaded.engine.kind != "slurm",
        )  # fmt: skip
    print(summary)
    return FAILED if summary.run.failed else 0


def _flags(values: dict[str, Any]) -> list[tuple[str, Any]]:
    """Options given on the command line as overrides of a spec's [engine] table."""
    return [(f"engine.{key}", value) for key, value in values.items() if value is not None]


@command("train", resume="donors that are trained are kept; the same command goes on")
def train(
    spec: SpecArgument,
    out: Annotated[Path, typer.Option(help="Folder of the checkpoints.")] = Path("donors"),
    donor: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this one; may be repeated.")
    ] = None,
    overrides: SetOption = None,
    device: DeviceOption = None,
    engine: EngineOption = None,
    workers: WorkersOption = None,
    parent: ParentOption = None,
) -> None:
    """Train a spec's donors, or find them trained, and print where their checkpoints lie."""
    from ..study.resources import resources
    from ..study.spec import load_spec

    flags = _flags({"device": device, "workers": workers, "kind": engine})
    loaded = load_spec(spec, [*(overrides or ()), *flags])
    chosen = [loaded.donor(name) for name in donor or loaded.donors]
    where = resources(loaded.engine)
    from ..donors.obtain import is_to_train, obtain_donor, open_source, training_precision
    from ..progress import open_progress
    from ..runs.alone import end_with
    from ..runs.engines import train_apart

    if parent is not None:
        end_with(parent)
    how = {"device": where.device, "precision": training_precision(where.precision)}
    with open_progress() as progress:
        sources = [open_source(donor.images) for donor in chosen]
        if parent is None:
            pairs = zip(chosen, sources, strict=True)
            names = [donor.name for donor, source in pairs if is_to_train(donor, source, out)]
            train_apart(loaded, names, out, where, progress)
        found = [
            obtain_donor(donor, source, cache_dir=out, progress=progress, **how)
            for donor, source in zip(chosen, sources, strict=True)
        ]
    for each, trained in zip(chosen, found, strict=True):
        accuracy = trained.metrics.test_accuracy
        said = "no answers" if accuracy is None else f"test accuracy {accuracy:.4f}"
        print(f"{each.name}: {trained.path}, {said}")


@command("reproduce", resume="finished cells are kept: the same command goes on")
def reproduce(
    name: Annotated[
        str, typer.Argument(metavar="NAME|list|all", help="An experiment: fig10, mislead-noise, …")
    ],
    scale: Annotated[
        str, typer.Option(metavar="smoke|tiny|small|paper", help="How large.")
    ] = "small",
    out: Annotated[
        Path | None, typer.Option(help="Folder of experiments; runs/reproduce-SCALE if not given.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data sets; else FULA_DATA, else ./data.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show cells, work and estimated time; do nothing.")
    ] = False,
    cell: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="This cell, or this task of its driver, alone; beside StitchBench."
        ),
    ] = None,
    front: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Another architecture for all fronts.")
    ] = None,
    end: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Another architecture for all ends.")
    ] = None,
    overrides: SetOption = None,
    device: DeviceOption = None,
    precision: Annotated[
        str | None, typer.Option(metavar="auto|fp32|tf32|bf16", help="Of activations.")
    ] = None,
    engine: EngineOption = None,
    workers: WorkersOption = None,
) -> int:
    """Run an experiment of the papers by name and set the result beside what they say."""
    from .reproduce import reproduce as run_experiments

    table = {"device": device, "precision": precision, "kind": engine, "workers": workers}
    return run_experiments(
        name, scale, out=out, data=data, dry_run=dry_run, models=(front, end),
        overrides=overrides or (), engine={k: v for k, v in table.items() if v is not None},
        cell=cell,
    )  # fmt: skip


@command("sites")
def sites(
    model: Annotated[str, typer.Argument(help="A model's name: resnet18, vgg16, timm:NAME, …")],
    size: Annotated[int, typer.Option(min=1, help="Side of the images in pixels.")] = 32,
    channels: Annotated[int, typer.Option(min=1, help="Channels of the images.")] = 3,
    classes: Annotated[int, typer.Option(min=2, help="Classes of the head.")] = 10,
    hook: Annotated[
        str, typer.Option(metavar="post_relu|pre_relu", help="Where a site lies.")
    ] = "post_relu",
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="Of the model: --option width=16"),
    ] = None,
) -> None:
    """Print a model's sites with shapes, parameters and FLOPs."""
    from rich.console import Console

    from ..models import describe, sites_table
    from ..models.families import free_options
    from ..study.toml import parse_override

    options = free_options({parts[0]: value for parts, value in map(parse_override, option or ())})
    found = describe(model, classes, (channels, size, size), hook, **options)
    Console(width=None if sys.stdout.isatty() else 120).print(sites_table(found))


@command("report")
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a sweep.")],
    latex: Annotated[
        bool, typer.Option("--latex", help="Write tables for a paper too: tables/*.tex.")
    ] = False,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="How far the run is from this one: compare.html, and here."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="stitchbench|FILE", help="The same of the results that ship, or of such a file."
        ),
    ] = None,
    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive", help="With a part to choose, point and compare in; needs plotly."
        ),
    ] = False,
    style: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="How plots look: paper, a style of matplotlib (ggplot, …), or a .mplstyle file.",
        ),
    ] = None,
) -> None:
    """Write a run's report again: report.html with its plots beside it."""
    from ..report import compared, run_rows, write_comparison, write_latex, write_report

    print(write_report(run, interactive=interactive, style=style))
    for path in write_latex(run) if latex else ():
        print(path)
    if compare:
        found = compared(run_rows(run), run_rows(compare))
        print(found)
        print(write_comparison(found, user_path(run), style=style))
    if against:
        from ..reproduce.stitchbench import beside

        found = beside(run, against)
        print(found)
        print(write_comparison(found, user_path(run), "against", style))


@command("doctor")
def doctor() -> None:
    """Show versions, hardware, and which backend each operator uses and why."""
    from .doctor import print_report

    print_report()


@command("bench")
def bench(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One benchmark; all when not given.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Earlier results to set beside.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the results as JSON.")
    ] = None,
) -> int:
    """Run benchmarks that ship with the package."""
    from .bench import run_benchmarks

    return run_benchmarks(name, compare=compare, save=save)


def main() -> None:
    """The entry point of `fula-fast`."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # a terminal that lacks a letter shows "?"
            stream.reconfigure(errors="replace")
    app(prog_name="fula-fast")
