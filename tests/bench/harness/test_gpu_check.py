"""The GPU check: parts apart from each other, within their time, and honest about what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import pytest

from fula_fast.bench.harness import gpu_check, gpu_parts, gpu_plans
from fula_fast.bench.harness.gpu_parts import Part, Result, check, groups
from fula_fast.bench.harness.gpu_report import figures_of, pack, table

REPORT = {"summary": [{"figure": "speed", "value": 9.0, "target": 8}]}


def code(text: str) -> tuple[str, str]:
    return "-c", text


def ended(*parts: Part, budget: float = 60):
    with tempfile.TemporaryDirectory() as folder:
        return list(check(parts, {**os.environ, "PYTHONSAFEPATH": "1"}, budget, Path(folder)))


def test_a_failure_stops_no_other_part():
    writes = f"open('{{out}}/a.json', 'w').write('''{json.dumps(REPORT)}'''); print('all is well')"
    failed, passed = ended(
        Part("first", code("print('why'); raise SystemExit(3)"), 20),
        Part("second", code(writes), 20),
    )
    assert (failed.status, failed.detail) == ("failed", "why")
    assert (passed.status, passed.detail) == ("passed", "all is well")
    assert passed.reports == [REPORT]


def test_a_part_out_of_time_is_ended_with_all_it_started(tmp_path):
    note = tmp_path / "child"
    starts = (
        "import subprocess, sys, time\n"
        "sleeper = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
        f"open(r'{note}', 'w').write(str(subprocess.Popen(sleeper).pid))\n"
        "print('begun', flush=True); time.sleep(60)"
    )
    slow, after = ended(Part("slow", code(starts), 3), Part("after", code("print(1)"), 5), budget=8)
    assert (slow.status, slow.detail) == ("out of time", "begun")
    assert slow.seconds < 8
    assert after.status == "passed"
    _wait_for_end(int(note.read_text()))


def _wait_for_end(pid: int) -> None:
    for _ in range(100):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("a process outlived its part")


def test_a_report_written_before_the_time_ran_out_counts():
    writes = f"open('{{out}}/a.json', 'w').write('''{json.dumps(REPORT)}''')"
    (slow,) = ended(Part("slow", code(f"{writes}; import time; time.sleep(60)"), 4), budget=4)
    assert slow.status == "out of time" and slow.reports == [REPORT]


def test_a_report_that_cannot_be_read_stops_no_part():
    half = code("open('{out}/a.json', 'w').write('{\"summary\": [')")
    found, after = ended(Part("half", half, 5), Part("after", code("print(1)"), 5))
    assert found.status == after.status == "passed"
    assert found.reports[0]["unreadable"].startswith("a.json")


def test_what_a_running_part_has_written_is_kept_at_once(tmp_path, monkeypatch):
    """A check that is itself ended in the middle of a part leaves that part's log and figures."""
    monkeypatch.setattr(gpu_parts, "KEEP", 0.2)
    folder, archive, seen = tmp_path / "parts", tmp_path / "out" / "all.tar.gz", []

    def keep():
        with tarfile.open(pack(folder, archive)) as kept:
            seen.append({m.name: kept.extractfile(m).read() for m in kept.getmembers()})

    writes = f"open('{{out}}/a.json', 'w').write('''{json.dumps(REPORT)}''')"
    text = code(f"print('begun', flush=True); {writes}; import time; time.sleep(60)")
    list(check([Part("slow", text, 4)], {**os.environ, "PYTHONSAFEPATH": "1"}, 4, folder, keep))
    assert any(
        found.get("slow/log.txt") == b"begun\n" and json.loads(found["slow/a.json"]) == REPORT
        for found in seen  # all from before its end
    )


def test_no_part_is_begun_without_time():
    used = Part("used", code("import time; time.sleep(60)"), 4)
    _, late = ended(used, Part("late", code("print(1)"), 5), budget=4)
    assert (late.status, late.detail) == ("skipped", "no time is left")


BARE = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
SUITE = """
import time, pytest
def test_fine(): pass
def test_broken(): assert 1 == 2
@pytest.mark.skip
def test_not_here(): pass
@pytest.fixture
def nothing(): raise OSError("no such thing")
def test_unready(nothing): pass
def test_endless(): time.sleep(60)
"""


@pytest.mark.parametrize(
    "processes",
    [pytest.param((), marks=pytest.mark.slow), ("-p", "xdist.plugin", "-n1")],
    ids=["one", "several"],
)
def test_outcomes_of_tests_are_kept_when_time_runs_out(tmp_path, processes):
    (tmp_path / "test_suite.py").write_text(SUITE)
    options = ("-c", os.devnull, "--rootdir", str(tmp_path), "-p", "no:cacheprovider", *processes)
    arguments = ("-m", "pytest", *gpu_plans.OUTCOMES, *options, str(tmp_path))
    (slow,) = ended(Part("tests", arguments, 8, settings=BARE), budget=8)
    (kept,) = slow.reports
    assert slow.status == "out of time"
    assert kept["counts"] == {"passed": 1, "failed": 1, "skipped": 1, "error": 1}
    assert kept["failed"] == [
        {"test": "test_suite.py::test_broken", "reason": "assert 1 == 2"},
        {"test": "test_suite.py::test_unready", "reason": "OSError: no such thing"},
    ]
    assert kept["running"] == ["test_suite.py::test_endless"]
    assert slow.detail.splitlines()[-1].startswith("until then: 1 passed, 1 failed")


def test_half_of_the_time_left_over_goes_to_a_part_that_asks():
    asks = Part("kernels", ("--seconds", "{seconds}", "--out", "{out}/k.json"), 55)
    assert asks.command(Path("here"), 55)[1:] == ["--seconds", "40", "--out", "here/k.json"]
    assert asks.command(Path("here"), 95)[2] == "60"


def test_a_part_runs_under_a_program_with_settings_of_its_own(tmp_path):
    checker = tmp_path / "checker"
    checker.write_text('#!/bin/sh\necho "under $1"; shift; "$@"; exit 86\n')
    checker.chmod(0o755)
    part = Part(
        "memcheck", code("import os; print(os.environ['OF_ITS_OWN'])"), 10,
        under=("checker", "--so"), settings={"OF_ITS_OWN": "yes"},
    )  # fmt: skip
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    (found,) = check([part], {**os.environ, "PATH": path}, 20, tmp_path / "parts")
    assert (found.status, found.detail) == ("failed", "under --so\nyes")
    (skipped,) = ended(part)
    assert (skipped.status, skipped.detail) == ("skipped", "checker is not on PATH")


@pytest.mark.slow
def test_the_memory_checker_sees_every_noun_and_the_library(tmp_path):
    """The tests chosen for it exist, are marked gpu, and are none of the large ones."""
    watched = [a.replace("{out}", str(tmp_path)) for a in gpu_plans._watched()]
    answer = subprocess.run(
        [sys.executable, *watched, "--collect-only"],
        cwd=gpu_check.ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONSAFEPATH": "1", **BARE},
    )  # fmt: skip
    names = [
        line.split("::")[1].split("[")[0] for line in answer.stdout.splitlines() if "::" in line
    ]
    assert {
        "test_lane_norm", "test_stitch_hint", "test_hint_terms", "test_pgd_step",
        "test_augment_gives_the_same_bits", "test_numbers_on_the_device",
        "test_a_host_program_steps_on_the_device",
    } <= set(names)  # fmt: skip
    assert len(names) < 60 and not any("own_tiles" in name or "2_to" in name for name in names)


def test_what_is_missing_is_said():
    (skipped,) = ended(Part("x", code("1"), 5, modules=("no_such",), variables=("NO_SUCH_NAME",)))
    assert skipped.status == "skipped"
    assert skipped.detail == "no_such is not installed; NO_SUCH_NAME is unset"


def test_time_that_a_part_leaves_goes_to_the_next(monkeypatch):
    limits = []

    def run(part, environment, limit, folder, keep):
        limits.append(round(limit))
        return Result(part.name, "passed")

    monkeypatch.setattr(gpu_parts, "run_part", run)
    ended(Part("a", (), 10), Part("b", (), 20), Part("c", (), 30), budget=60)
    assert limits == [10, 30, 60]


@pytest.mark.parametrize("plan", gpu_plans.PLANS)
def test_the_parts_of_a_plan_fit_in_its_time(plan):
    parts = gpu_plans.chosen(plan)
    together = [max(part.reserve for part in group) for group in groups(parts)]
    assert sum(together) <= gpu_plans.PLANS[plan]
    assert len({part.name for part in parts}) == len(parts)


def test_the_plans_begin_with_what_matters_and_end_with_the_memory_checker():
    first, second = (list(map(_name, gpu_plans.chosen(plan))) for plan in ("first", "second"))
    assert first == [
        "ceilings", "nouns", "kernel-tests", "captured", "plain-36", "plain-324",
        "compiled-36", "compiled-324",
    ]  # fmt: skip
    assert second[:2] == ["grid", "kernels"] and second[-1] == "memcheck"
    assert gpu_plans.PLANS["first"] <= 230 and gpu_plans.PLANS["second"] <= 400


def _name(part):
    return part.name


def test_only_the_named_parts_run():
    parts = gpu_plans.chosen("all", ["memcheck", "nouns"])
    assert [part.name for part in parts] == ["nouns", "memcheck"]
    with pytest.raises(SystemExit, match="--only nuons: plan first has ceilings, nouns"):
        gpu_plans.chosen("first", ["nuons"])


def test_every_gpu_test_is_in_a_plan():
    """Kernel tests, those of captures, and the remaining ones: each file in the first or second."""
    plans = [part for plan in ("first", "second") for part in gpu_plans.chosen(plan)]
    named = {argument for part in plans for argument in part.arguments}
    assert set(gpu_plans.gpu_files()) <= named
    first, everything = (p for p in plans if _name(p) in ("captured", "tests"))
    assert first.arguments[first.arguments.index("-k") + 1] == gpu_plans.CAPTURED
    assert "-k" not in everything.arguments


def test_figures_of_the_other_benchmarks():
    pgd = {"ours": 1.3, "ours tf32": 2.0}
    rows = [
        {"case": "pgd-10", "speedup over eager": pgd, "speedup over torchattacks": 12.0},
        {"case": "rand, eps 8/255", "speedup": {"ours": 30.0, "ours bf16": 70.0}},
        {"case": "rand, eps 0.25/255", "speedup": {"ours": 19.0}},
    ]
    targets = [(f["value"], f["target"]) for f in figures_of("attack", {"rows": rows})]
    assert targets == [
        (1.3, 1.2), (2.0, 3), (12.0, None), (30.0, 35), (70.0, None), (19.0, 18)
    ]  # fmt: skip
    summary = [{"figure": "dali, images/s", "value": 5.0, "target": None}]
    assert figures_of("data", {"summary": summary, "rows": [{"name": "dali"}]}) == summary


def test_the_table_tells_met_from_missed():
    missed = {"figure": "memory", "value": 1.0, "target": 2.0}
    figures = [*REPORT["summary"], missed, {"figure": "free", "value": 1.0, "target": None}]
    lines = table([Result("grid", "passed", 1.0, "", figures)]).splitlines()
    assert lines[2].endswith("met") and lines[3].endswith("MISSED") and "target" not in lines[4]


@pytest.mark.slow
def test_without_a_gpu_it_says_so_in_one_line(capfd, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_check.main([]) == 2
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and "no CUDA device" in err


def test_the_package_is_found_through_links(tmp_path):
    """As with an interpreter in which it is not installed: -S leaves site-packages out."""
    linked = gpu_check.link_package(tmp_path)
    names = "fula_fast", "fula_fast.errors", "fula_fast.bench"
    asked = "; ".join(f"import {name}; print({name}.__file__)" for name in names)
    answer = subprocess.run(
        [sys.executable, "-S", "-P", "-c", asked],
        env={"PYTHONPATH": str(linked)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert all(line.startswith(str(tmp_path)) for line in answer.stdout.splitlines())
    for part in ("kernels", "pipelines"):
        assert (linked / "fula_fast" / part / "__init__.py").is_file()


def test_parts_run_beside_each_other_and_each_has_its_own_end():
    """Neither could end before the other had begun."""
    meet = "import pathlib, sys, time\nmine, other = map(pathlib.Path, sys.argv[1:])\n"
    meet += "mine.touch()\nwhile not other.exists(): time.sleep(0.01)"
    with tempfile.TemporaryDirectory() as folder:
        places = [f"{folder}/{name}" for name in "ab"]
        one = Part("one", (*code(meet), *places), 9)
        two = Part("two", (*code(meet), *places[::-1]), 9, beside=True)
        wrong = Part("wrong", code("raise SystemExit(3)"), 9, beside=True)
        found = {result.name: result.status for result in ended(one, two, wrong, budget=20)}
    assert found == {"one": "passed", "two": "passed", "wrong": "failed"}
