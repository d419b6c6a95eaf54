"""Modes: compiled equals eager; what ran is reported; what cannot run is refused."""

from __future__ import annotations

import gc
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fula_fast.engine.modes import COMPILER_BYTES, WORTH_COMPILING, CompiledRunner, runner_of
from fula_fast.engine.network import run_plain
from fula_fast.engine.run import _train
from fula_fast.engine.wave import Wave
from fula_fast.errors import FulaError
from fula_fast.models import build
from fula_fast.progress import Progress
from fula_fast.stitching.starts import new_stitch
from fula_fast.study.cell import Cell
from fula_fast.study.protocol import protocol


def donor(seed: int):
    torch.manual_seed(seed)
    return build("vgg16", num_classes=5, input_shape=(3, 32, 32), width=4).eval()


def cells():
    rule = protocol("fula-v2")
    grid = [(5, 5, "fula"), (5, 5, "hint"), (6, 5, "slm"), (6, 6, "tlm")]
    return [Cell("a", "b", i, j, m, {m: 1.0}, rule, id=f"{m}{i}{j}") for i, j, m in grid]


def wave(runner):
    front, end = donor(0), donor(1)
    start = {
        c.id: new_stitch(
            front.site_shapes[c.front_site - 1], end.site_shapes[c.end_site - 1], c.protocol
        ).initialise("random", 0)
        for c in cells()
    }
    return Wave(cells(), front, end, start, 4, runner=runner)


def batches(count: int):
    rng = torch.Generator().manual_seed(5)
    for _ in range(count):
        yield torch.rand(8, 3, 32, 32, generator=rng), torch.randint(5, (8,), generator=rng)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_equals_eager():
    eager, compiled = wave(run_plain), wave(CompiledRunner())
    for number, (x, y) in enumerate(batches(3)):
        for each in (eager, compiled):
            each.step(x, y, number)
    ours, theirs = compiled.state(), eager.state()
    for name in ("optimiser/flat", "record/loss", *(n for n in ours if "running" in n)):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_a_snapshot_is_put_back_bit_for_bit():
    """What a warm-up moves (statistics, moments, parameters, records) comes back."""
    each = wave(run_plain)
    (x, y), *rest = batches(3)
    each.step(x, y, 0)
    before = {name: t.clone() for name, t in each.state().items()}
    restore = each.snapshot()
    for number, batch in enumerate(rest, 1):
        each.step(*batch, number)
    assert not torch.equal(each.state()["optimiser/flat"], before["optimiser/flat"])
    restore()
    for name, tensor in each.state().items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), name


def task(
    mode: str,
    flops: float = 0.0,
    device: str = "cpu",
    compile: bool = False,
    room: int | None = None,
    progress: Progress | None = None,
):
    return SimpleNamespace(
        mode=mode, flops=flops, device=torch.device(device), cells=cells(),
        compile=compile, turns={}, room=room, progress=progress or Progress(),
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["captured", "auto"])
@pytest.mark.parametrize("asked", [False, True])
def test_a_captured_steps_stages_are_compiled_where_asked(mode, asked):
    ran, runner = runner_of(task(mode, device="cuda", compile=asked))
    assert ran == "captured" and isinstance(runner, CompiledRunner) is asked


@pytest.mark.parametrize(
    ("asked", "flops", "expected"),
    [
        ("eager", 1e18, "eager"),
        ("compiled", 0.0, "compiled"),
        ("auto", 0.0, "eager"),
        ("auto", 2 * WORTH_COMPILING, "compiled"),
    ],
)
def test_the_mode_that_runs(asked, flops, expected):
    assert runner_of(task(asked, flops))[0] == expected


@pytest.mark.parametrize(
    ("asked", "room", "expected"),
    [
        ("auto", COMPILER_BYTES, "compiled"),
        ("auto", COMPILER_BYTES - 1, "eager"),
        ("auto", -1, "eager"),
        ("compiled", 0, "compiled"),
    ],
)
def test_a_compiler_has_room_in_the_budget_or_is_asked_for(asked, room, expected):
    told: list[str] = []
    progress = Progress()
    progress.note = told.append
    found = runner_of(task(asked, 2 * WORTH_COMPILING, room=room, progress=progress))[0]
    assert found == expected
    assert ["eager: a compiler's 0.75 GiB" in text for text in told] == [True] * (found == "eager")


def test_captured_needs_a_gpu():
    with pytest.raises(FulaError, match="needs a CUDA device"):
        runner_of(task("captured"))


@pytest.fixture
def few_shapes(monkeypatch):
    """Dynamo's real limit, small; and its cheapest backend, for only its cache is looked at."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr("fula_fast.device.compiling.MOST_SHAPES", 3)
    with torch._dynamo.config.patch(recompile_limit=3, accumulated_recompile_limit=3):
        yield


def test_reaching_the_compilers_limit_is_an_error(few_shapes):
    runner, stage = CompiledRunner(), nn.ReLU()
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        for count in range(1, 6):
            runner(stage, torch.zeros(count, 2))


def test_many_waves_do_not_fill_the_compilers_cache(few_shapes):
    """Each is of another size, as the waves of a long run are."""
    for count in range(1, 9):
        runner = CompiledRunner()
        stage = nn.Sequential(nn.Linear(2, count), nn.ReLU())
        assert runner(stage, torch.zeros(count, 2)).shape == (count, count)


def test_a_waves_graphs_go_with_it(few_shapes):
    runner = CompiledRunner()
    runner(nn.ReLU(), torch.zeros(2, 2))
    code = next(iter(runner._stages.values()))._torchdynamo_orig_callable.__code__
    graphs = torch._dynamo.eval_frame._debug_get_cache_entry_list
    assert len(graphs(code)) == 1
    del runner
    gc.collect()
    assert not graphs(code)


@pytest.mark.parametrize(("mode", "said"), [("compiled", 1), ("captured", 1), ("eager", 0)])
def test_the_wait_for_a_prepared_first_step_is_said_once(mode, said):
    each, notes = wave(run_plain), []
    progress = Progress()
    progress.note = notes.append

    def epoch(number: int, start: int):
        for place, batch in enumerate(batches(2)):
            each.step(*batch, 2 * number + place)
            yield 2 * number + place

    stream = SimpleNamespace(steps=2, batch_size=8)
    asked = SimpleNamespace(stream=stream, epochs=2, progress=progress, device=torch.device("cpu"))
    _train(asked, each, SimpleNamespace(mode=mode, epoch=epoch), None, "w")
    waits = [note for note in notes if note.endswith("s to the first step's end")]
    assert len(waits) == said and all(note.startswith(mode) for note in waits)
