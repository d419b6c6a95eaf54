"""How fast the command line answers, and how fast a grid is planned: `fula-fast bench startup`.

Targets: `--help` and argument errors within 0.2 s; planning well below a second.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from fula_fast.study.plan import plan
from fula_fast.study.spec import Spec, load_spec

_PAIR = {"a": {"model": "resnet18"}, "b": {"model": "resnet18", "seed": 1}}


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["-c", "pass"], id="python-alone"),
        pytest.param(["-c", "import fula_fast"], id="import"),
        pytest.param(["-m", "fula_fast", "--help"], id="help"),
        pytest.param(["-m", "fula_fast", "sweep", "--no-such-option"], id="argument-error"),
    ],
)
def bench_startup(benchmark, arguments):
    """One process from its start to its end."""
    run = (lambda: subprocess.run([sys.executable, *arguments], capture_output=True, check=False),)
    benchmark.pedantic(*run, rounds=10, warmup_rounds=2)


def grid_spec(**grid) -> Spec:
    """A full-width ResNet-18 pair on CIFAR-10."""
    both = {"front": "a", "end": "b", "sites": "all-pairs"}
    data = {"source": "cifar10"}
    return load_spec({"data": data, "donors": _PAIR, "grid": both | grid})


def bench_plan_9x9x4(benchmark):
    """81 site pairs, four trained methods: 324 cells, packed to 8 GiB waves."""
    spec = grid_spec(methods=["hint", "slm", "tlm", "fula"])
    planned = benchmark(plan, spec, precision="bf16", budget=8 * 2**30)
    assert len(planned.cells) == 324


def bench_plan_10000_cells(benchmark):
    """81 site pairs, four methods, 31 seeds: 10,044 cells."""
    spec = grid_spec(methods=["hint", "slm", "tlm", "fula"], seeds=list(range(31)))
    planned = benchmark.pedantic(plan, (spec,), rounds=3)
    assert len(planned.cells) == 10_044
