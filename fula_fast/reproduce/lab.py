"""The lab of an experiment's own driver: data, donors and single stitches beside the sweeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import engine
from ..donors.donor import Donor
from ..donors.obtain import obtain_donor, open_source
from ..engine.solo import StitchedModel
from ..engine.task import Outcome, WaveTask
from ..files.paths import cache_folder
from ..models import Staged
from ..pipelines import Augmentation, ImageSet, Source, evaluation_batches, open_stream, take
from ..progress import Progress
from ..stitching.starts import initial_stitches
from ..study.cell import Cell
from ..study.cells import Treatment
from ..study.donor_spec import DataSpec, DonorSpec
from ..study.grid_methods import objectives
from ..study.grid_spec import Mixture
from ..study.protocol import Protocol
from ..study.resources import Resources
from ..study.spec import parse_table
from ..study.toml import plain
from .evidence import Row
from .experiment import Experiment

_BATCH = 500


@dataclass(frozen=True)
class Task:
    """One piece of a driver's work. `key`: its file's name; `arguments`: what tells it apart.

    `flops`, `steps`: predicted multiply-adds and training steps of stitches, for `--dry-run`.
    `kept`: whether its rows are kept for a later run; what other results decide is not.
    """

    key: str
    arguments: Mapping[str, Any]
    flops: float = 0.0
    steps: int = 0
    kept: bool = True


@dataclass(frozen=True)
class Figure:
    """A picture that a driver drew, in the experiment's `plots` folder."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Table:
    """A table of a driver for the page; the first two columns are words."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str


@dataclass
class Lab:
    """What a driver's tasks need, each thing opened once.

    `folder`: of the experiment. `donors`: folder of trained donors (None: the user's cache).
    """

    experiment: Experiment
    folder: Path
    resources: Resources
    progress: Progress
    donors: Path | None = None
    _sources: dict[str, Source] = field(default_factory=dict)
    _donors: dict[tuple[str, str], Donor] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return torch.device(self.resources.device)

    @property
    def plots(self) -> Path:
        """The folder of pictures."""
        folder = self.folder / "plots"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def source(self, table: Mapping[str, Any] | DataSpec) -> Source:
        """The data of a `[data]` table."""
        data = table if isinstance(table, DataSpec) else parse_table(DataSpec, table, "data")
        key = data.model_dump_json()
        if key not in self._sources:
            self._sources[key] = open_source(data)
        return self._sources[key]

    def data(self, name: str, *, whole: bool = False) -> Source:
        """A data set of the catalogue: the part for stitches, or the `whole` of it."""
        chosen = self.experiment.data[name]
        return self.source(chosen.table | ({} if whole else chosen.limits))

    def donor(self, spec: DonorSpec | Mapping[str, Any], name: str = "", hook: str = "post_relu"):
        """A trained donor, from the cache or trained now."""
        if not isinstance(spec, DonorSpec):
            spec = parse_table(DonorSpec, {**spec, "name": name}, f"donors.{name}")
        key = spec.model_dump_json(), hook
        if key not in self._donors:
            self._donors[key] = obtain_donor(
                spec,
                self.source(spec.images),
                cache_dir=self.donors or cache_folder() / "donors",
                hook=hook,
                device=self.resources.device,
                precision=self.resources.precision,
                progress=self.progress,
            )
        return self._donors[key]

    def staged(self, spec: DonorSpec | Mapping[str, Any], name: str = "") -> Staged:
        """A donor's network on the lab's device, in eval mode."""
        return self.donor(spec, name).staged.to(self.device).eval()

    def lanes(
        self,
        front: Staged,
        end: Staged,
        cells: Sequence[Cell],
        source: Source,
        *,
        natural: ImageSet | None = None,
        data_seed: int = 0,
    ) -> list[Outcome]:
        """Cells of one pair on one source, trained and measured together by the wave engine.

        `natural`: images behind the closed form, the training images unless given.
        """
        rule = cells[0].protocol
        task = WaveTask(
            cells,
            front.to(self.device),
            end.to(self.device),
            open_stream(
                source.train,
                batch_size=rule.batch_size,
                seed=data_seed,
                augmentation=Augmentation(rule.crop_padding, rule.flip),
                device=self.device,
            ),
            partial(_taken, natural or source.train, data_seed, self.device),
            {"own": partial(evaluation_batches, source.test, _BATCH, self.device)},
            rule.epochs,
            device=self.device,
            precision=self.resources.precision,
            progress=self.progress,
        )
        return [outcome for part in engine.run_wave(task) for outcome in part]

    def closed_form(
        self,
        front: Staged,
        end: Staged,
        sites: tuple[int, int],
        source: Source,
        rule: Protocol,
        seed: int,
    ) -> StitchedModel:
        """The stitched model of a DM with the donors' own running statistics, in eval mode.

        `seed` draws its images, from the training images of `source`.
        """
        images = _taken(source.train, seed, self.device, rule.dm_samples)
        stitch = initial_stitches(front, end, [sites], rule, images, seed)[sites]
        return StitchedModel(front, end, *sites, stitch.to(self.device))


def _taken(images: ImageSet, seed: int, device: torch.device, samples: int | str) -> torch.Tensor:
    count = len(images) if samples == "all" else min(samples, len(images))
    return take(images, count, seed, device)


Methods = Sequence[str | Mapping[str, Any]]
"""Names, and mixtures as in a grid."""


def treatments(methods: Methods, rule: Protocol, terms: int) -> list[Treatment]:
    """How each method finds a stitch with so many terms behind it.

    Raises `FulaError` for a mixture that is none, and for stages and weightings that do not fit.
    """
    known = [
        m if isinstance(m, str) else parse_table(Mixture, plain(m), "options.methods")
        for m in methods
    ]
    return [each.at(rule, terms) for each in objectives(known)]


def cells_of(
    methods: Methods,
    seeds: Sequence[int],
    sites: tuple[int, int],
    rule: Protocol,
    terms: int,
    *,
    data_seed: int = 0,
    **names: str,
) -> list[Cell]:
    """Cells of one site pair with so many terms behind it: every method with every seed; ids are
    their positions. Raises `FulaError` as `treatments`."""
    points = [(how, s) for how in treatments(methods, rule, terms) for s in seeds]
    donors = names.get("front", "front"), names.get("end", "end")
    return [
        Cell(
            *donors, *sites, how.method, how.objective, how.protocol, seed=seed,
            data_seed=data_seed, id=str(position), stages=how.stages, combine=how.combine,
        )
        for position, (how, seed) in enumerate(points)
    ]  # fmt: skip


def row_of(outcome: Outcome, **columns: Any) -> Row:
    """A finished cell as a row, with further columns."""
    cell = outcome.cell
    described = {
        "front": cell.front, "end": cell.end, "front_site": cell.front_site,
        "end_site": cell.end_site, "method": cell.method, "seed": cell.seed,
        "protocol": cell.protocol.preset, "epochs": cell.protocol.epochs,
        "status": "failed" if outcome.error else "ok", "error": outcome.error,
    }  # fmt: skip
    return described | outcome.metrics | columns


def parts_of(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` that cover `count`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
