"""What this machine is found to be, and what `auto` then means."""

import pytest

from fula_fast.device import machine
from fula_fast.errors import FulaError
from fula_fast.study import resources
from fula_fast.study.spec import EngineSpec

AMX = frozenset({"avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16"})


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(resources, "gpu_present", lambda: False)


def test_processor_facts_come_from_the_kernel(tmp_path):
    assert machine.cpu_flags(tmp_path) == frozenset()
    (tmp_path / "proc").mkdir()
    text = "model name\t: Some CPU\nflags\t\t: fpu avx2 amx_tile amx_bf16\nflags\t\t: fpu\n"
    (tmp_path / "proc/cpuinfo").write_text(text)
    assert machine.cpu_name(tmp_path) == "Some CPU"
    features = machine.cpu_features(machine.cpu_flags(tmp_path))
    assert features == {"AVX2": True, "AVX-512": False, "AVX512_BF16": False, "AMX": True}


def test_auto_on_a_cpu_is_bf16_only_with_amx(no_gpu):
    assert resources.resources(EngineSpec(), AMX).precision == "bf16"
    assert resources.resources(EngineSpec(), AMX - {"amx_bf16"}).precision == "fp32"
    assert resources.resources(EngineSpec(precision="fp64"), AMX).precision == "fp64"


def test_the_default_budget_is_a_share_of_free_memory(no_gpu, monkeypatch):
    monkeypatch.setattr(resources.memory, "available_memory", lambda: 1000)
    assert resources.resources(EngineSpec(), AMX).budget == 600
    assert resources.resources(EngineSpec(memory="50%"), AMX).budget == 500
    assert resources.resources(EngineSpec(memory=123), AMX).budget == 123


def test_an_absent_gpu_is_refused_with_what_to_do(no_gpu):
    with pytest.raises(FulaError, match="'cuda' is not available.*--device cpu"):
        resources.resources(EngineSpec(device="cuda"), AMX)


def test_tf32_needs_a_gpu(no_gpu):
    with pytest.raises(FulaError, match="tf32.*fp32"):
        resources.resources(EngineSpec(precision="tf32"), AMX)


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        ({"mode": "captured", "executor": "solo"}, "solo executor runs eagerly"),
        ({"compile": True, "executor": "solo"}, "nothing to compile in eager steps"),
        ({"compile": True, "mode": "eager"}, "nothing to compile in eager steps"),
        ({"mode": "compiled", "executor": "solo"}, "solo executor runs eagerly"),
    ],
)
def test_a_mode_that_cannot_be_is_refused_before_any_work(no_gpu, engine, reason):
    with pytest.raises(FulaError, match=reason):
        resources.resources(EngineSpec(**engine), AMX)


@pytest.mark.gpu
def test_auto_on_a_gpu_is_bf16_with_most_of_its_memory():
    import torch

    found = resources.resources(EngineSpec(), frozenset())
    total = torch.cuda.mem_get_info()[1]  # what is free, others may change meanwhile
    assert (found.device, found.precision) == ("cuda", "bf16")
    assert 0 < found.budget <= 0.85 * total
    assert len(machine.gpu_lines()) == torch.cuda.device_count()


@pytest.mark.parametrize("asked", ["", "auto", "reference", "cpp"])
def test_planning_knows_which_kernels_will_serve(no_gpu, monkeypatch, asked):
    """Told without torch, it must be what the kernels themselves decide."""
    import torch

    from fula_fast.kernels import backend

    monkeypatch.setenv("FULA_BACKEND", asked)
    with backend.using(asked or "auto"):
        chosen = backend.choose("lane_norm", torch.zeros(1, 1, 1, 1))
    assert resources.resources(EngineSpec(), AMX).fused == (chosen != "reference")
