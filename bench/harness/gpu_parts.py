"""Parts of the GPU check: processes apart from each other, each with a limit and a log of its own.

What is kept of them grows while they run: `KEEP` seconds after a part has written something, it
stands in the archive of the check. Standard library only.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
KEEP = 5
"""Seconds between two looks at what a running part has written."""
LEAST = 3
"""Seconds below which no part is begun."""
_TAIL = 25
_LAST_WORDS = 0.5
"""Seconds in which a process that is ended may say where it was."""
_TO_END = 15
"""Seconds that work in hand may still take."""

Figure = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One process: `arguments` of the interpreter, `{out}` standing for its own empty folder,
    `{seconds}` for those in which to begin new work: it takes half of what earlier parts left over.

    `reserve`: seconds kept free for it; it may use all that later parts do not reserve. `modules`,
    `variables`: packages and environment variables without which it is skipped; so is it without
    the program that it runs `under`, of which the first word is the name. `settings`: environment
    variables of its own. `beside`: it runs at the same time as the part before it, as one that
    times nothing may.
    """

    name: str
    arguments: Sequence[str]
    reserve: float
    modules: Sequence[str] = ()
    variables: Sequence[str] = ()
    under: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    beside: bool = False

    def missing(self, environment: Mapping[str, str]) -> str:
        """Why it cannot run here, or nothing."""
        lacking = [f"{name} is not installed" for name in self.modules if not _installed(name)]
        lacking += [f"{name} is unset" for name in self.variables if not environment.get(name)]
        if self.under and not shutil.which(self.under[0], path=environment.get("PATH")):
            lacking.append(f"{self.under[0]} is not on PATH")
        return "; ".join(lacking)

    def command(self, out: Path, limit: float) -> list[str]:
        """What is started; `limit`: the seconds it will have at most."""
        seconds = f"{(min(self.reserve, limit) + limit) / 2 - _TO_END:.0f}"
        places = {"{out}": str(out), "{seconds}": seconds}
        arguments = [_filled(argument, places) for argument in self.arguments]
        return [*self.under, sys.executable, *arguments]


def _installed(module: str) -> bool:
    """Whether a module can be found; a dotted one lies in a package that may itself be missing."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _filled(argument: str, places: Mapping[str, str]) -> str:
    for name, value in places.items():
        argument = argument.replace(name, value)
    return argument


@dataclass
class Result:
    """How a part ended: `passed`, `failed`, `out of time` or `skipped`; its reason or output."""

    name: str
    status: str
    seconds: float = 0.0
    detail: str = ""
    figures: list[Figure] = field(default_factory=list)
    reports: list[Any] = field(default_factory=list)


def check(
    parts: Sequence[Part],
    environment: Mapping[str, str],
    budget: float,
    folder: Path,
    keep: Callable[[], object] = lambda: None,
) -> Iterator[Result]:
    """Run all parts within `budget` seconds; each is yielded when it has ended.

    A part's log and JSON lie in `folder`/NAME; `keep()` is called every `KEEP` seconds while one
    runs.
    """
    end = time.monotonic() + budget
    rest = groups(parts)
    while rest:
        together, *rest = rest
        left = end - time.monotonic()
        reserved = sum(_reserve(group) for group in rest)
        limit = min(max(left - reserved, _reserve(together)), left)
        yield from _run_together(together, environment, limit, folder, keep)


def groups(parts: Sequence[Part]) -> list[list[Part]]:
    """Parts that run at the same time, in order."""
    found: list[list[Part]] = []
    for part in parts:
        if part.beside and found:
            found[-1].append(part)
        else:
            found.append([part])
    return found


def _reserve(group: Sequence[Part]) -> float:
    return max(part.reserve for part in group)


def _run_together(
    group: Sequence[Part],
    environment: Mapping[str, str],
    limit: float,
    folder: Path,
    keep: Callable[[], object],
) -> Iterator[Result]:
    """Results as they come; the first of the group keeps, which the others leave to it."""
    with ThreadPoolExecutor(len(group)) as pool:
        waiting = []
        for number, part in enumerate(group):
            reason = part.missing(environment) or ("no time is left" if limit < LEAST else "")
            if reason:
                yield Result(part.name, "skipped", detail=reason)
                continue
            keeps = (lambda: None) if number else keep
            place = folder / part.name
            waiting.append(pool.submit(run_part, part, environment, limit, place, keeps))
        for future in as_completed(waiting):
            yield future.result()


def run_part(
    part: Part, environment: Mapping[str, str], limit: float, folder: Path, keep: Callable
) -> Result:
    """One part, ended after `limit` seconds."""
    folder.mkdir(parents=True)
    command, log = part.command(folder, limit), folder / "log.txt"
    began = time.monotonic()
    code = _finish(command, {**environment, **part.settings}, log, limit, keep)
    seconds = round(time.monotonic() - began, 1)
    text = _read(log, folder)
    reports = [_report(file, folder) for file in sorted(folder.glob("*.json"))]
    status = "out of time" if code is None else "failed" if code else "passed"
    detail = last_line(text) if status == "passed" else _tail(text)
    if status == "out of time":
        detail = "\n".join(filter(None, [detail, *map(_so_far, reports)]))
    return Result(part.name, status, seconds, detail, reports=reports)


def _finish(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    limit: float,
    keep: Callable[[], object],
) -> int | None:
    """The command's exit code; None where it ran out of time, with all its processes ended."""
    end = time.monotonic() + limit
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        while (left := end - time.monotonic()) > 0:
            try:
                return process.wait(min(left, KEEP))
            except subprocess.TimeoutExpired:
                keep()
        _end(process)
        return None


def _end(process: subprocess.Popen) -> None:
    """End a command and what it started; Python writes into its log where it was."""
    os.killpg(process.pid, signal.SIGABRT)
    time.sleep(_LAST_WORDS)
    with suppress(ProcessLookupError):  # all have ended by then
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(file: Path, folder: Path) -> str:
    """Its text; a result names no path of this machine."""
    text = file.read_text(errors="replace")
    for place in (str(folder), str(ROOT), sys.prefix):
        text = text.replace(place, "…")
    return text


def _report(file: Path, folder: Path) -> dict[str, Any]:
    """A part's JSON; one that a program left half written says so, and stops no other part."""
    try:
        return json.loads(_read(file, folder))
    except ValueError as error:
        return {"summary": [], "unreadable": f"{file.name}: {error}"}


def _so_far(report: Mapping[str, Any]) -> str:
    """A line on the tests of a run that was cut short."""
    if "counts" not in report:
        return ""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in report["counts"].items())
    failed = ", ".join(failure["test"] for failure in report["failed"])
    return (
        f"until then: {counts or 'no test had ended'}"
        + (f"; failed: {failed}" if failed else "")
        + (f"; running: {', '.join(report['running'])}" if report["running"] else "")
    )


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-_TAIL:])


def last_line(text: str) -> str:
    """The last line with something in it."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")
