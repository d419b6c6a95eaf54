"""`--profile`: a Chrome trace of a few steps of a wave, and a table of time by stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from .network import Network

STEPS = 3
"""Steps recorded, after one that is skipped and one that warms the profiler up."""


@contextmanager
def profiled(network: Network, folder: Path | None, name: str) -> Iterator[profile | None]:
    """Record steps of the block into `folder`; call `.step()` of what is given after each step.

    Writes `NAME.trace.json` (open it in a trace viewer) and `NAME.stages.txt`. Gives None and
    records nothing where `folder` is None. A captured step is one launch on the host: its kernels
    stand in the trace, its stages do not.
    """
    if folder is None:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    plain, network.runner = network.runner, _Labelled(network)
    activities = [ProfilerActivity.CPU]
    if network.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    plan = schedule(wait=1, warmup=1, active=STEPS, repeat=1)
    try:
        with profile(activities=activities, schedule=plan) as recorder:
            yield recorder
        _write(recorder, folder, name)
    finally:
        network.runner = plain


class _Labelled:
    """Runs a stage as the network does, under a label: part and number of the stage."""

    def __init__(self, network: Network) -> None:
        self.plain = network.runner
        parts = {"front": network.front, "native": network.native, "tail": network.tail}
        self.labels = {
            id(stage): f"stage: {part} {number}"
            for part, model in parts.items()
            for number, stage in enumerate((*model.stages, model.head), 1)
        }

    def __call__(self, stage: nn.Module, x: Tensor) -> Tensor:
        with record_function(self.labels[id(stage)]):
            return self.plain(stage, x)


def _write(recorder: profile, folder: Path, name: str) -> None:
    recorder.export_chrome_trace(str(folder / f"{name}.trace.json"))
    events = recorder.key_averages()
    device = "device_time_total" if torch.cuda.is_available() else "cpu_time_total"
    stages = sorted((e for e in events if e.key.startswith("stage: ")), key=lambda e: e.key)
    lines = [f"{'stage':<20}{'calls':>8}{'ms per step':>14}"]
    lines += [
        f"{e.key[7:]:<20}{e.count:>8}{getattr(e, device) / 1000 / STEPS:>14.2f}" for e in stages
    ]
    table = events.table(sort_by=device, row_limit=40)
    (folder / f"{name}.stages.txt").write_text("\n".join(lines) + "\n\n" + table + "\n")
