"""The GPU step without a GPU: counted on the `meta` device, and put under a roofline.

    python -m fula_fast.bench.suites.roofline                    (the 324-lane step, a few seconds)
    python -m fula_fast.bench.suites.roofline --attack apgd      (an iteration of AutoAttack's APGD)

Prints the parts of a step, then `modelled 123.4 ms, 33.0 % of peak, 1432 dispatches, 138.0 GB`:
time on an H100 (`harness.roofline` has the constants), share of the rate of a matrix product,
operators with a kernel, bytes over the memory bus. Before it, of a clean step, the same line with
`FULA_CONV=fused` and without, and the share of the library's rate from which fused ones are faster.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fula_fast.attacks.apgd import APGDConfig
from fula_fast.attacks.names import CE
from fula_fast.attacks.slots import Slots
from fula_fast.bench.harness.record import RESULTS, environment, parser_of, write
from fula_fast.bench.harness.roofline import (
    H100,
    Chip,
    Counter,
    KernelCost,
    Operator,
    Total,
    by_part,
    cost,
    total,
)
from fula_fast.bench.harness.workload import (
    Setting,
    add_options,
    command_of,
    donors,
    grid_cells,
    setting_of,
)
from fula_fast.engine import fused_blocks
from fula_fast.engine.optimiser import Fuse, unfused
from fula_fast.engine.packed_wave import PackedWave
from fula_fast.engine.shares import Draw
from fula_fast.engine.wave import Wave
from fula_fast.kernels import backend
from fula_fast.stitching.starts import new_stitch
from fula_fast.study.cell import Cell
from fula_fast.study.protocol import Attack

ATTACKS = ("none", "pgd", "apgd")
APGD_IMAGES = 512
"""Images in flight of AutoAttack; more only make the same kernels longer."""


def wave_of(setting: Setting, cells: Sequence[Cell], fuse: Fuse = unfused) -> Wave:
    """The wave of `cells` on the `meta` device."""
    front, end = donors(setting)
    shapes = front.site_shapes, end.site_shapes
    stitches = {
        c.id: new_stitch(shapes[0][c.front_site - 1], shapes[1][c.end_site - 1], c.protocol)
        for c in cells
    }
    options = {"dtype": setting.dtype, "device": "meta", "fuse": fuse}
    return Wave(cells, front, end, stitches, setting.training_steps, **options)


def images_of(setting: Setting, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Images (count, 3, H, W), channels-last, and labels."""
    pixels = torch.empty(count, 3, setting.image, setting.image, device="meta", dtype=dtype)
    labels = torch.zeros(count, dtype=torch.int64, device="meta")
    return pixels.contiguous(memory_format=torch.channels_last), labels


def training_step(setting: Setting, full: bool, fuse: Fuse) -> Callable[[], object]:
    """A step of the clean wave; `full`: of the phase in which all statistics move."""
    wave = wave_of(setting, grid_cells(setting.lanes), fuse)
    x, y = images_of(setting, setting.batch, setting.dtype)
    phase = wave.phase_at(wave.settling_from if full else 0)
    return lambda: wave.run(x, y, phase)


def pgd_iteration(setting: Setting) -> Callable[[], object]:
    """One of the iterations that attack all images of all lanes of an attacked wave's step."""
    cells = [_attacked(c) for c in grid_cells(setting.lanes)]
    wave = wave_of(setting, cells)
    x, y = images_of(setting, setting.batch, torch.float32)
    drawn = Draw([torch.zeros(setting.batch, dtype=torch.int64, device="meta")], None)
    return lambda: wave.attacked_batch(x, y, drawn)


def _attacked(cell: Cell) -> Cell:
    rule = cell.protocol.model_copy(update={"attack": Attack(steps=1)})
    return replace(cell, alpha=1.0, protocol=rule)


def apgd_iteration(setting: Setting) -> Callable[[], object]:
    """An iteration of APGD-CE on 512 images of the lanes between the sites in the middle."""
    cells = [c for c in grid_cells(setting.lanes) if (c.front_site, c.end_site) == (5, 5)]
    packed = PackedWave(wave_of(setting, cells), range(len(cells)))
    x, _ = images_of(setting, 1, torch.float32)
    slots = Slots(APGD_IMAGES, packed, APGDConfig(), [CE], x, keep_first=True, recorder=None)
    route = packed.route(0)
    return lambda: slots.iterate(route)


def measure(setting: Setting, attack: str = "none", full: bool = False) -> list[KernelCost]:
    """Costs of the operators of the step that the options name."""
    return [cost(op) for op in dispatched(setting, attack, full)]


def dispatched(setting: Setting, attack: str = "none", full: bool = False) -> list[Operator]:
    """Those operators: of the step's second run, as the first fills caches."""
    counter = Counter()
    if attack == "none":
        step = training_step(setting, full, counter.fuse)
    else:
        step = {"pgd": pgd_iteration, "apgd": apgd_iteration}[attack](setting)
    with backend.using("triton"):  # of which nothing runs on `meta`
        step()
        counter.operators.clear()
        with counter:
            step()
    return counter.operators


def with_and_without(setting: Setting, full: bool = False) -> dict[str, Any]:
    """A clean step by plain blocks and by fused ones: their lines, and the share of the library's
    rate at which they take the same time."""
    found = []
    for fused in (False, True):
        with fused_blocks.using(fused):
            found.append(dispatched(setting, full=full))
    plain, fused_operators = found
    lines = [last_line(total([cost(op) for op in operators])) for operators in found]
    even = break_even(fused_operators, total([cost(op) for op in plain]).seconds)
    return {"plain": lines[0], "fused": lines[1], "share": H100.fused, "break_even": even}


def break_even(operators: Sequence[Operator], seconds: float, chip: Chip = H100) -> float:
    """The share of the library's rate at which fused convolutions make these operators take so
    long, to a thousandth; 1 where even that rate is too slow."""
    low, high = 0.0, 1.0
    while high - low > 1e-3:
        share = (low + high) / 2
        taken = total([cost(op, replace(chip, fused=share)) for op in operators]).seconds
        low, high = (share, high) if taken > seconds else (low, share)
    return round(high, 3)


def last_line(found: Total) -> str:
    """What a step takes, in one line."""
    return (
        f"modelled {found.seconds * 1e3:.1f} ms, {found.share():.1%} of peak, "
        f"{found.dispatches} dispatches, {found.bytes / 1e9:.1f} GB"
    ).replace("%", " %")


def table(costs: Sequence[KernelCost]) -> str:
    """The parts of a step, the longest first."""
    lines = [f"{'part':24}{'dispatches':>11}{'kernels':>9}{'GB':>9}{'ms':>9}"]
    lines += [
        f"{part:24}{t.dispatches:11}{t.kernels:9}{t.bytes / 1e9:9.1f}{t.seconds * 1e3:9.2f}"
        for part, t in by_part(costs).items()
    ]
    return "\n".join(lines)


def report(costs: Sequence[KernelCost]) -> dict[str, Any]:
    """The parts and their sum, for JSON."""
    found = total(costs)
    return {
        "parts": {part: asdict(t) for part, t in by_part(costs).items()},
        "total": asdict(found) | {"share": found.share()},
        "line": last_line(found),
    }


def saved(path: Path, row: Mapping[str, Any], label: str) -> Path:
    """Put a row under `label` (before, after) into the results, beside what they hold."""
    held = json.loads(path.read_text()) if path.exists() else {"bench": "roofline"}
    key = f"{row['attack']}, {row['phase']} phase, {row['setting']['lanes']} lanes"
    rows = held.get("rows", {})
    # the constants beside the figures that they gave: a GPU's measurements have replaced them once
    rows[key] = rows.get(key, {}) | {label: {**row, "chip": asdict(H100)}}
    return write(path, held | {"rows": dict(sorted(rows.items()))})


def main(arguments: Sequence[str]) -> None:
    """Print a step's parts; with --save, write them into the results."""
    parser = parser_of(__doc__)
    add_options(parser)
    parser.add_argument("--phase", choices=("short", "full"), default="short")
    parser.add_argument("--attack", choices=ATTACKS, default="none", help="one iteration of it")
    parser.add_argument(
        "--save", choices=("before", "after", "calibrated", "fused"), help="under which name"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON")
    options = parser.parse_args(arguments)
    options.device = options.device or "cuda"
    setting = setting_of(options)
    full = options.phase == "full"
    costs = measure(setting, options.attack, full)
    both = with_and_without(setting, full) if options.attack == "none" else {}
    if options.save:
        choices = f" --phase {options.phase} --attack {options.attack}"
        row = {"attack": options.attack, "phase": options.phase, "setting": asdict(setting)}
        row |= {"blocks": both} if both else {}
        asked = f"{fused_blocks.ENVIRONMENT}=fused " if fused_blocks.asked() else ""
        command = asked + command_of("roofline", setting) + choices
        found = environment("cpu", command)
        saved(options.out / "roofline.json", found | row | report(costs), options.save)
    print(table(costs))
    if both:
        print(f"plain blocks: {both['plain']}")
        print(f"FULA_CONV=fused at {both['share']:.2f} of the library's rate: {both['fused']}")
        print(f"(as fast as plain blocks at {both['break_even']:.2f} of it)")
    print(last_line(total(costs)))


if __name__ == "__main__":
    main(sys.argv[1:])
