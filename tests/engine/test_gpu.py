"""The engine on a CUDA device: graphs equal eager steps, launch our kernels, and share memory."""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import partial

import pytest
import torch

from fula_fast import engine
from fula_fast.device.graphs import CaptureRefused, CudaRecorder
from fula_fast.device.precision import arithmetic
from fula_fast.engine.captured import Captured
from fula_fast.engine.modes import CompiledRunner, Stepper
from fula_fast.engine.task import WaveTask
from fula_fast.engine.wave import Wave
from fula_fast.models import build
from fula_fast.pipelines import Augmentation, ImageSet, evaluation_batches, open_stream, take
from fula_fast.pipelines.decode.dali import dali_installed
from fula_fast.progress import Progress
from fula_fast.study.cell import Cell
from fula_fast.study.protocol import protocol

from .conftest import BATCH, WAVES, assert_same, cells, prepared, taken
from .test_stages import bordered

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


DALI = pytest.param(
    "dali", marks=pytest.mark.skipif(not dali_installed(), reason="NVIDIA DALI is not installed")
)


@pytest.mark.parametrize("kind", WAVES)
@pytest.mark.parametrize("name", ["resident", "reference", DALI])
def test_a_graph_equals_the_eager_training_bit_for_bit(name, kind):
    group = cells(WAVES[kind][0], **WAVES[kind][1])
    with arithmetic("fp32"):
        (task, plain), (_, wave) = (prepared(group, "cuda", backend=name) for _ in range(2))
        recorded = Captured(task, wave)
        assert taken(recorded) == taken(Stepper(task, plain, "eager"))
    assert recorded.mode == "captured" and recorded.replays == 6
    assert_same(wave, plain)


def test_a_second_phase_equals_the_eager_training():
    """Lanes without a task loss run their tails from step 5 on: a second graph, in place of the
    first."""
    with arithmetic("fp32"):
        (task, plain), (_, wave) = (
            prepared(cells(), "cuda", momentum=0.999999999) for _ in range(2)
        )
        assert wave.settling_from == 5
        assert taken(Captured(task, wave)) == taken(Stepper(task, plain, "eager"))
    assert_same(wave, plain)


@pytest.mark.parametrize("combine", ["sum", "pcgrad"])
def test_graphs_on_both_sides_of_a_border_equal_the_eager_training(combine):
    """Lanes whose objective changes after an epoch; then gradients of two methods are combined."""
    with arithmetic("fp32"):
        (task, plain), (_, wave) = (prepared(bordered(combine), "cuda") for _ in range(2))
        assert taken(Captured(task, wave)) == taken(Stepper(task, plain, "eager"))
    assert_same(wave, plain)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["clean", "attacked"])
def test_a_compiled_graph_is_close_to_the_eager_training(dtype, kind):
    group = [c for c in cells(WAVES[kind][0], **WAVES[kind][1]) if c.front_site == c.end_site]
    with arithmetic(dtype):
        task, plain = prepared(group, "cuda", dtype)
        _, wave = prepared(group, "cuda", dtype, runner=CompiledRunner())
        recorded = Captured(task, wave)
        taken(recorded)
        taken(Stepper(task, plain, "eager"))
    assert recorded.mode == "captured"
    loose = {"fp32": 1e-3, "bf16": 5e-2}[dtype]
    torch.testing.assert_close(wave.loss, plain.loss, rtol=loose, atol=loose)


def test_a_lane_on_the_gpu_equals_that_on_the_cpu():
    """float64, where PyTorch's own operators serve on the device."""
    (cpu_task, cpu), (task, wave) = (prepared(cells(), d, "fp64") for d in ("cpu", "cuda"))
    taken(Stepper(cpu_task, cpu, "eager"))
    taken(Captured(task, wave))
    torch.testing.assert_close(wave.bank.flat.cpu(), cpu.bank.flat, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(wave.loss.cpu(), cpu.loss, rtol=1e-8, atol=1e-10)


def test_a_replay_launches_our_kernels():
    task, wave = prepared(cells(), "cuda", "bf16")
    steps = Captured(task, wave).epoch(0)
    next(steps)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorder:
        next(steps)
        torch.cuda.synchronize()
    names = {event.key for event in recorder.key_averages()}
    for kernel in ("stitch_kernel", "normalise_kernel", "sums_kernel", "augment_kernel"):
        assert any(kernel in name for name in names), (kernel, sorted(names))


def test_recordings_share_their_memory():
    """The second recording of the same size takes next to nothing more."""
    x = torch.randn(2048, 2048, device="cuda")

    def step():
        return sum((x * k).relu() for k in range(16)).sum(1)

    def nothing():
        return lambda: None

    recorder, reserved = CudaRecorder(torch.device("cuda")), []
    kept = []
    for _ in range(3):
        kept.append(recorder.record(step, nothing))
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[2] - reserved[0] <= 2**22
    for recording in kept:
        recording.replay()
        torch.testing.assert_close(recording.output, step())
    before = torch.cuda.memory_reserved()
    del recording
    kept.clear()
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < before - 2**23


def test_a_released_recordings_memory_serves_the_next_ones_warm_up():
    """Without it a wave would need twice its memory where its phases change."""
    x = torch.randn(4096, 4096, device="cuda")  # 64 MiB

    def step():
        return sum([(x * k).relu() for k in range(8)]).sum(1)

    recorder, peaks = CudaRecorder(torch.device("cuda")), []
    torch.cuda.empty_cache()
    for _ in range(3):
        torch.cuda.reset_peak_memory_stats()
        recording = recorder.record(step, lambda: lambda: None)
        peaks.append(torch.cuda.max_memory_reserved())
        recording.replay()
        torch.testing.assert_close(recording.output, step())
        del recording
        gc.collect()
        recorder.release()
    assert peaks[2] <= 1.1 * peaks[0]


def test_running_out_of_memory_in_a_capture_is_told_as_that():
    def step():
        torch.ones(4, device="cuda").add_(1)
        torch.empty(2**45, dtype=torch.uint8, device="cuda")

    recorder = CudaRecorder(torch.device("cuda"))
    with pytest.raises(torch.OutOfMemoryError):
        recorder._captured(step)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    x = torch.ones(4, device="cuda")
    recording = recorder.record(lambda: x + 1, lambda: lambda: None)
    recording.replay()
    assert recording.output.tolist() == [2, 2, 2, 2]


def test_after_a_refused_capture_a_good_one_follows():
    x = torch.ones(4, device="cuda")
    recorder = CudaRecorder(torch.device("cuda"))
    with pytest.raises(CaptureRefused):
        recorder.record(lambda: x * x.sum().item(), lambda: lambda: None)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    recording = recorder.record(lambda: x + 1, lambda: lambda: None)
    x.fill_(5)
    recording.replay()
    assert recording.output.tolist() == [6, 6, 6, 6]


def images(count: int, size: int) -> ImageSet:
    pixels = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8).numpy()
    return ImageSet(pixels, torch.arange(count).numpy() % 5, tuple("abcde"))


def wave_task(group, width: int, size: int, batch: int, precision: str, mode: str) -> WaveTask:
    """A whole training on the device, with a test set."""
    torch.manual_seed(0)
    front, end = (
        build("resnet18", num_classes=5, input_shape=(3, size, size), width=width).eval()
        for _ in range(2)
    )
    train = images(3 * batch, size)
    return WaveTask(
        group, front, end,
        open_stream(train, batch_size=batch, seed=0, augmentation=Augmentation(1), device="cuda"),
        dm_images=lambda samples: take(train, 20, 3, "cuda"),
        evaluations={"own": partial(evaluation_batches, images(20, size), 16, "cuda")},
        epochs=1, device=torch.device("cuda"), precision=precision, mode=mode,
        progress=Progress(), robust_images=4,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("precision", ["bf16", "fp32", "tf32"])
def test_a_whole_wave_from_task_to_outcomes(precision):
    group = cells((0.0, 0.5), **(WAVES["attacked"][1] | {"robust": "pgd-2", "dm_samples": 20}))
    task = wave_task(group, 8, 8, BATCH, precision, "auto")
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    (outcomes,) = engine.run_wave(task)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
    assert len(outcomes) == len(group)
    for outcome in outcomes:
        assert outcome.error is None, outcome.error
        assert outcome.metrics["engine_mode"] == "captured"
        assert 0 <= outcome.metrics["accuracy"] <= 1
        assert outcome.metrics["robust_accuracy"] <= 1


@pytest.fixture
def little_memory():
    """Room for a few lanes beside what is taken already."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(
        min((torch.cuda.memory_reserved() + 3 * 2**29) / total, 1.0)
    )
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("mode", ["eager", "captured"])
def test_a_wave_that_does_not_fit_is_split(little_memory, monkeypatch, mode):
    """Sixteen full-width lanes of about 270 MiB, in 1.5 GiB."""
    monkeypatch.setattr("fula_fast.engine.modes.CompiledRunner", lambda: lambda stage, x: stage(x))
    rule = protocol("fula-v2", batch_size=128, init="random")
    group = [
        Cell("a", "b", 1, 1, "fula", {"fula": 1.0}, rule, seed=n, id=str(n)) for n in range(16)
    ]
    notes: list[str] = []
    task = wave_task(group, 64, 32, 128, "bf16", mode)
    task = replace(task, progress=Progress())
    task.progress.note = notes.append
    outcomes = [o for part in engine.run_wave(task) for o in part]
    assert sorted(int(o.cell.id) for o in outcomes) == list(range(16))
    assert not any(o.error for o in outcomes)
    assert any("split in two" in note for note in notes)
    assert {o.metrics["engine_mode"] for o in outcomes} == {mode}


def test_two_waves_of_one_stream_follow_each_other():
    """A stream's buffers stay where an earlier wave's graph has read them."""
    group = cells()
    (task, first), (_, second) = (prepared(group, "cuda") for _ in range(2))
    for wave in (first, second):
        taken(Captured(task, wave))
    torch.testing.assert_close(first.loss, second.loss, rtol=1e-4, atol=1e-5)


def test_a_checkpointed_wave_goes_on_with_a_new_graph():
    with arithmetic("fp32"):
        (task, whole), (_, first), (_, second) = (prepared(cells(), "cuda") for _ in range(3))
        taken(Captured(task, whole))
        first.start_epoch()
        list(Captured(task, first).epoch(0))
        second.load_state({name: t.clone() for name, t in first.state().items()})
        second.start_epoch()
        list(Captured(task, second).epoch(1))
    assert isinstance(second, Wave)
    assert_same(second, whole)
