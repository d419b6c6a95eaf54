"""A pytest plugin that keeps each test's outcome as it comes, for runs that may be cut short.

    python -m pytest -p fula_fast.bench.harness.outcomes --outcomes tests.json ...

The JSON is written anew whenever a test begins or ends: `counts` by outcome, `failed` with the last
line of the reason, and `running`: what had begun and not ended. (A JUnit file is written at a run's
end alone.) Standard library and pytest only.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--outcomes PATH`."""
    parser.addoption("--outcomes", type=Path, help="keep the tests' outcomes in this JSON file")


def pytest_configure(config: pytest.Config) -> None:
    """Several processes have one that hears of all tests; it alone writes."""
    if config.getoption("outcomes") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes(config.getoption("outcomes")))


class Outcomes:
    """What is known of the tests so far, and its file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: Counter[str] = Counter()
        self.failed: list[dict[str, str]] = []
        self.running: list[str] = []

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self.running.append(nodeid)
        self.write()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A phase of a test has ended; one that failed before or after its call is an error."""
        if report.failed:
            self.failed.append({"test": report.nodeid, "reason": _reason(report.longreprtext)})
        if report.failed and report.when != "call":
            self.counts["error"] += 1
        elif report.when == "call" or report.skipped:
            self.counts[report.outcome] += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that could not be read is an error."""
        if report.failed:
            self.counts["error"] += 1
            self.failed.append({"test": report.nodeid, "reason": _reason(report.longreprtext)})

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A test has ended."""
        self.running.remove(nodeid)
        self.write()

    def pytest_sessionfinish(self) -> None:
        """All have ended, or the run was given up."""
        self.write()

    def write(self) -> None:
        """The file, in place of the one before at once."""
        found = {"counts": self.counts, "failed": self.failed, "running": self.running}
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_text(json.dumps({"summary": [], **found}, indent=1) + "\n")
        unfinished.replace(self.path)


def _reason(text: str) -> str:
    """The last line that says what was wrong (pytest marks those with E), else the last one."""
    lines = [line for line in text.splitlines() if line.strip()]
    marked = [line[1:].strip() for line in lines if line.startswith("E ")]
    return (marked or lines or [""])[-1 if not marked else 0][:200]
