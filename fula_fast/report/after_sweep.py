"""A sweep with its report: what the command line, Python and the papers' experiments run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.paths import user_path
from ..progress import Progress
from ..runs.sweep import Finished, run_sweep, work
from ..runs.tracking import tracked
from ..store import Store
from ..store.similarity_table import similarity_rows
from ..study.spec import Spec, load_spec
from .page import write_report
from .similarity_cells import similarity_summary
from .summary import summary


@dataclass(frozen=True)
class Summary:
    """A finished sweep, and its findings in a few lines of text."""

    run: Finished
    text: str

    @property
    def report(self) -> Path:
        return self.run.folder / "report.html"

    def __str__(self) -> str:
        if self.run.waiting:
            return (
                f"{self.run.waiting} of {self.run.cells} cells are left to workers that go on by "
                f"themselves: fula-fast status {self.run.folder}"
            )
        failed = f", {self.run.failed} failed" if self.run.failed else ""
        what = f"{self.run.cells} cells" if self.run.cells else "similarity"
        head = f"{what} in {self.run.seconds:.0f} s{failed}; report: {self.report}"
        return f"{self.text}\n{head}" if self.text else head


def work_on_report(
    folder: str | Path, *, report: bool = True, track: str | None = None, **options: Any
) -> int:
    """`runs.sweep.work` with the same options; whoever leaves last writes tables and report, unless
    who started the workers does (not `report`). `track`: an experiment tracker's name."""
    place, shown = user_path(folder), options.pop("progress", Progress())
    with tracked(shown, track, load_spec(Store.open(place).spec), place) as progress:
        left = work(place, progress=progress, **options)
    store = Store.open(place)
    if report and not store.writers.others():
        store.tidy()
        store.write_tables()
        write_report(store.folder)
    return left


def sweep_with_report(spec: Spec, out: str | Path, **options: Any) -> Summary:
    """`runs.sweep.run_sweep` with the same options, then its report."""
    shown, track = options.pop("progress", Progress()), spec.engine.track
    with tracked(shown, track, spec, user_path(out)) as progress:
        finished = run_sweep(spec, out, progress=progress, **options)
    if finished.waiting:
        return Summary(finished, "")  # the last worker writes the report
    write_report(finished.folder)
    store = Store.open(finished.folder)
    cells = summary(store.rows()) if finished.cells else ""
    parts = cells, similarity_summary(similarity_rows(store))
    return Summary(finished, "\n\n".join(filter(None, parts)))
