"""What the engine's benchmarks train: a ResNet-18 pair with random weights, on random images.

Times do not depend on the values. The engine runs as in a sweep (its stream, its stepper, its mode,
its arithmetic: `as_in_a_sweep`); the data it gathers and augments itself, while peers get ready
batches.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import product
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fula_fast.bench.harness.peer import METHODS, PEERS, Peer
from fula_fast.bench.harness.vmap_peer import LaneOf, VmapPeer
from fula_fast.device import machine
from fula_fast.device.allocator import keeping_memory
from fula_fast.device.precision import arithmetic, precision_of
from fula_fast.engine.modes import fuse_of, open_stepper, runner_of
from fula_fast.engine.network import Runner
from fula_fast.engine.task import WaveTask
from fula_fast.engine.wave import Wave
from fula_fast.errors import FulaError, not_none
from fula_fast.kernels import backend
from fula_fast.models import Description, Staged, build, describe
from fula_fast.pipelines import Augmentation, ImageSet, open_stream
from fula_fast.stitching.starts import new_stitch
from fula_fast.stitching.stitch import Stitch
from fula_fast.study.cell import Cell
from fula_fast.study.donor_spec import DonorSpec
from fula_fast.study.facts import DataFacts, DonorFacts, donor_facts
from fula_fast.study.protocol import protocol

SITES, CLASSES = 9, 10
EPOCHS, IMAGES = 30, 50_000  # CIFAR-10, the published training
COUNTED = 2  # images of the step whose FLOPs are counted; they grow with the batch


@dataclass(frozen=True)
class Setting:
    """The size of a benchmark.

    `width`, `image`: channels of the first layer, pixels a side. `timed`, `warmup`: steps of each
    sample. `mode`: of the engine. Precision is the engine's, and the fair peer's.
    """

    device: str
    precision: str
    width: int
    batch: int
    lanes: int
    timed: int
    warmup: int
    mode: str = "auto"
    image: int = 32

    @property
    def dtype(self) -> torch.dtype:
        """Of the engine's activations."""
        return precision_of(self.precision).dtype

    @property
    def training_steps(self) -> int:
        """Steps of one cell's whole training; an incomplete last batch is dropped."""
        return EPOCHS * (IMAGES // self.batch)

    @property
    def description(self) -> Description:
        """Sites and FLOPs of either donor."""
        return describe("resnet18", CLASSES, (3, self.image, self.image), width=self.width)


def usual_setting(device: str | None = None) -> Setting:
    """CPU: width 32, 36 lanes, bf16 where the processor has AMX. CUDA: full width, 324 lanes."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        precision = "bf16" if machine.has_amx(machine.cpu_flags()) else "fp32"
        return Setting(device, precision, width=32, batch=128, lanes=36, timed=5, warmup=2)
    return Setting(device, "bf16", width=64, batch=128, lanes=324, timed=30, warmup=5)


def add_options(parser: argparse.ArgumentParser) -> None:
    """An option for every field of a `Setting`; without it, this machine's usual value."""
    for field in fields(Setting):
        kind = int if field.type == "int" else str
        parser.add_argument(
            f"--{field.name}", type=kind, help=f"default here: {_usual(field.name)}"
        )


def _usual(name: str) -> object:
    return getattr(usual_setting(), name)


def setting_of(options: argparse.Namespace) -> Setting:
    """The usual setting of the chosen device with the given options in it."""
    names = {field.name for field in fields(Setting)}
    given = {n: v for n, v in vars(options).items() if n in names and v is not None}
    return replace(usual_setting(options.device), **given)


def command_of(bench: str, setting: Setting) -> str:
    """The command that runs `bench` at this setting."""
    values = " ".join(f"--{field.name} {getattr(setting, field.name)}" for field in fields(setting))
    return f"python -m fula_fast.bench.suites.{bench} {values}"


@contextmanager
def as_in_a_sweep(setting: Setting) -> Iterator[None]:
    """Everything global as a sweep sets it: the precision's arithmetic with convolutions chosen by
    rule, and on a CPU freed memory kept."""
    with keeping_memory(setting.device == "cpu"), arithmetic(setting.precision):
        yield


def prepare_peer(setting: Setting) -> None:
    """What an honest user sets who wants speed on CUDA: TF32 products in float32, and convolutions
    chosen by trial, whose bits may differ between runs. The engine goes without."""
    if setting.device != "cpu":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True


def donors(setting: Setting) -> tuple[Staged, Staged]:
    """Front and end with random weights."""
    shape = (3, setting.image, setting.image)
    torch.manual_seed(0)
    front, end = (
        build("resnet18", num_classes=CLASSES, input_shape=shape, width=setting.width).eval()
        for _ in range(2)
    )
    return front, end


def donor_facts_of(setting: Setting) -> DonorFacts:
    """Either donor as planning sees it."""
    donor = DonorSpec(name="a", model="resnet18", width=setting.width)
    data = DataFacts((3, setting.image, setting.image), CLASSES, IMAGES)
    return donor_facts(donor, data, protocol("fula-v1").hook)


def batch_of(setting: Setting, images: int | None = None) -> tuple[Tensor, Tensor]:
    """A random batch of `images` (a whole batch by default) on the CPU."""
    count = images or setting.batch
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(count, 3, setting.image, setting.image, generator=draw)
    return x, torch.randint(CLASSES, (count,), generator=draw)


def pairs(lanes: int) -> list[tuple[int, int]]:
    """Site pairs of a grid with four methods: all 81, or that many same-site pairs, spread evenly.

    Raises `FulaError` for a number of lanes that is neither 324 nor 4, 8, … 36.
    """
    count, rest = divmod(lanes, len(METHODS))
    if rest == 0 and count == SITES**2:
        return list(product(range(1, SITES + 1), repeat=2))
    if rest or not 1 <= count <= SITES:
        raise FulaError(f"{lanes} lanes make no grid; use 324 (all pairs), or 4, 8, … 36")
    places = np.linspace(1, SITES, count) if count > 1 else np.array([5])
    return [(int(site), int(site)) for site in places.round()]


def grid_cells(lanes: int) -> list[Cell]:
    """A cell for every pair and method."""
    cells = product(pairs(lanes), METHODS)
    return [cell(number, *sites, method) for number, (sites, method) in enumerate(cells)]


def cell(number: int, front_site: int, end_site: int, method: str) -> Cell:
    """Cell `number` (its seed and id), by the published settings from a random start."""
    rule = protocol("fula-v1", init="random")
    sites = front_site, end_site
    return Cell("a", "b", *sites, method, {method: 1.0}, rule, seed=number, id=f"{number}")


def peer_of(setting: Setting, name: str, sites: Sequence[int], method: str) -> Peer:
    """The peer `name` of `PEERS` for one cell: front and end site, and its method."""
    front, end = donors(setting)
    start = _start(front, end, sites)
    dtype = torch.float32 if name == "published" else setting.dtype
    options = {"dtype": dtype, "device": setting.device}
    stitch = start.weight, not_none(start.bias)
    return PEERS[name](front, end, sites[0], sites[1], method, *stitch, **options)


def vmap_peer_of(setting: Setting) -> VmapPeer:
    """The peer that trains the whole grid's lanes at once."""
    front, end = donors(setting)
    starts = {sites: _start(front, end, sites) for sites in pairs(setting.lanes)}
    lanes = [
        LaneOf(*sites, method, start.weight, not_none(start.bias))
        for (sites, start), method in product(starts.items(), METHODS)
    ]
    return VmapPeer(front, end, lanes, dtype=setting.dtype, device=setting.device)


def _start(front: Staged, end: Staged, sites: Sequence[int]) -> Stitch:
    shapes = front.site_shapes[sites[0] - 1], end.site_shapes[sites[1] - 1]
    return new_stitch(*shapes, protocol("fula-v1")).initialise("random", 0)


class OurWave:
    """The engine's wave of `cells`, ready to step. `mode`: what runs; `runner`: how a stage is run,
    if not as the mode has it; `turns`: as of a `WaveTask`."""

    def __init__(
        self,
        setting: Setting,
        cells: Sequence[Cell],
        runner: Runner | None = None,
        turns: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        task = _task(setting, cells, turns)
        self.mode, usual = runner_of(task)
        runner = runner or usual
        shapes = task.front.site_shapes, task.end.site_shapes
        stitches = {
            c.id: new_stitch(
                shapes[0][c.front_site - 1], shapes[1][c.end_site - 1], c.protocol
            ).initialise("random", c.seed)
            for c in cells
        }
        options = {"dtype": setting.dtype, "device": setting.device}
        options |= {"runner": runner, "fuse": fuse_of(self.mode), "turns": task.turns}
        steps = setting.training_steps
        self.wave = Wave(cells, task.front, task.end, stitches, steps, **options)
        self.stepper = open_stepper(task, self.wave, self.mode)

    def stepping(self, full: bool) -> Callable[[int], object]:
        """A function that takes the next step: `full` ones, or those before statistics settle."""
        first = -(-self.wave.settling_from // self.stepper.task.batches.steps) if full else 0
        flow = self.stepper.epoch(first)
        return lambda _: next(flow)


def _task(setting: Setting, cells: Sequence[Cell], turns: Mapping[str, int]) -> WaveTask:
    """A task whose one epoch has a step more than a sample; planned work decides compilation."""
    front, end = donors(setting)
    count = setting.batch * (setting.timed + setting.warmup + 1)
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (count, setting.image, setting.image, 3), dtype=np.uint8)
    images = ImageSet(pixels, np.arange(count) % CLASSES, tuple("0123456789"))
    stream = open_stream(
        images, batch_size=setting.batch, seed=0, augmentation=Augmentation(), device=setting.device
    )
    work = 2.0 * setting.description.flops * setting.batch * len(cells) * setting.training_steps
    return WaveTask(
        cells, front, end, stream, dm_images=lambda _: torch.zeros(0), evaluations={}, epochs=1,
        device=torch.device(setting.device), precision=setting.precision, mode=setting.mode,
        flops=work, turns=turns,
    )  # fmt: skip


class _FlopCount(TorchDispatchMode):
    """Adds up FLOPs by torch's formulas. (`FlopCounterMode` also follows modules, and fails where
    one is called without gradients on an input that asks for them.)"""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def flops_of(step: Callable[[], object]) -> int:
    """FLOPs of the matrix products and convolutions of a call, forward and backward.

    The operators' plain form runs: those of the project's own kernels cannot be counted.
    """
    with backend.using("reference"), _FlopCount() as count:
        step()
    return count.total


def our_flops(setting: Setting, cells: Sequence[Cell], full: bool) -> int:
    """FLOPs of one step of the engine at the setting's batch, counted on a small eager step."""
    front, end = donors(setting)
    shapes = front.site_shapes, end.site_shapes
    stitches = {
        c.id: new_stitch(shapes[0][c.front_site - 1], shapes[1][c.end_site - 1], c.protocol)
        for c in cells
    }
    device = setting.device
    wave = Wave(cells, front, end, stitches, setting.training_steps, device=device)
    x, y = (t.to(device) for t in batch_of(setting, COUNTED))
    phase = wave.phase_at(wave.settling_from if full else 0)
    return flops_of(lambda: wave.run(x, y, phase)) * setting.batch // COUNTED
