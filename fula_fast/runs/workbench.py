"""The workbench of a run: its data, donors and streams, each opened once and when first needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..attacks.columns import attacked_images, attacked_models
from ..donors.donor import Donor
from ..donors.obtain import (
    check_normalisation,
    is_to_train,
    normalisation_of,
    obtain_donor,
    open_source,
    training_precision,
)
from ..engine.task import WaveTask
from ..errors import FulaError
from ..files.paths import cache_folder
from ..measures.registry import Needs, measure
from ..measures.sampling import subset
from ..models import Staged
from ..models.labels import check_label_order
from ..pipelines import Batch, ImageSet, Source
from ..progress import Progress
from ..study.donor_spec import DataSpec
from ..study.plan import Plan, PlannedWave
from ..study.protocol import Protocol
from ..study.spec import Spec
from .cell_images import CellImages


class Workbench:
    """Everything that the waves of one run need.

    `plan`: decides device, precision and mode. `donors`: folder of trained donors, shared by all
    runs of this user by default. `modules`: donors that are at hand, by name.
    """

    def __init__(
        self,
        spec: Spec,
        plan: Plan,
        progress: Progress,
        *,
        donors: Path | None = None,
        modules: Mapping[str, Staged] | None = None,
    ) -> None:
        self.spec, self.plan, self.progress = spec, plan, progress
        self._modules = modules or {}
        self.device = torch.device(plan.device)
        self.donor_folder = donors or cache_folder() / "donors"
        self._sources: dict[str, Source] = {}
        self._donors: dict[tuple[str, str], Donor] = {}
        self._robust: dict[tuple, float] = {}

    def source(self, data: DataSpec) -> Source:
        """The decoded data of a `[data]` table."""
        key = data.model_dump_json(exclude={"stream", "mean", "std"})
        if key not in self._sources:
            self._sources[key] = open_source(data)
        return self._sources[key]

    def donor(self, name: str, hook: str) -> Donor:
        """A donor, trained now if it is nowhere found, cut at `hook`; its classes must fit."""
        if (name, hook) not in self._donors:
            spec = self.spec.donor(name)
            self._donors[name, hook] = obtain_donor(
                spec,
                self.source(spec.images),
                cache_dir=self.donor_folder,
                hook=hook,
                device=self.device,
                precision=training_precision(self.plan.precision),
                module=self._modules.get(name),
                progress=self.progress,
            )
        return self._donors[name, hook]

    def prepare(self, train: Callable[[list[str]], None] | None = None) -> None:
        """Open the run's data and all donors now: what is wrong with them shows before any cell,
        and what is wrong with the data before any donor is trained. `train` is given the names of
        the donors that have to be."""
        compared = self.plan.similarity.donors if self.plan.similarity else ()
        stitched = [n for w in self.plan.waves for n in (w.key.front, w.key.end)]
        for name in dict.fromkeys((*stitched, *compared)):
            donor, data = self.spec.donor(name), self.spec.data
            check_normalisation(donor, self.source(donor.images), data, self.source(data))
        if train:
            train([n for n in dict.fromkeys((*stitched, *compared)) if self._is_to_train(n)])
        for wave in self.plan.waves:
            self._check_pair(wave, *self._pair(wave))
        for name in compared:
            self._check_labels(name)
            self._check_images(self.donor(name, self.spec.base_protocol.hook))

    def _is_to_train(self, name: str) -> bool:
        donor = self.spec.donor(name)
        source = self.source(donor.images)
        return name not in self._modules and is_to_train(donor, source, self.donor_folder)

    def _pair(self, wave: PlannedWave) -> tuple[Donor, Donor]:
        front, end = (self.donor(name, wave.key.hook) for name in (wave.key.front, wave.key.end))
        return front, end

    def task(self, wave: PlannedWave, *, training: bool = True) -> WaveTask:
        """A wave with its donors, streams and test sets; no stream where nothing is to
        be trained."""
        front, end = self._pair(wave)
        self._check_pair(wave, front, end)
        images = self._images(wave)
        return WaveTask(
            cells=tuple(wave.cells),
            front=front.staged,
            end=end.staged,
            stream=images.stream(self.spec.data.stream) if training and wave.key.epochs else None,
            dm_images=images.closed_form,
            evaluations=dict(self._evaluations(images)),
            epochs=wave.key.epochs,
            device=self.device,
            precision=self.plan.precision,
            mode=self.plan.mode,
            compile=self.spec.engine.compile,
            flops=wave.flops,
            robust_images=self.spec.evaluation.robust_images,
            measures=tuple(self.spec.evaluation.measures),
            samples=self._samples(images.test),
            progress=self.progress,
        )

    def _samples(self, test: ImageSet) -> Sequence[int]:
        """Numbers of the test images whose pairs measures compare."""
        asked = self.spec.evaluation
        if all(measure(name).needs is not Needs.PAIRS for name in asked.measures):
            return ()
        return subset(len(test), asked.samples).tolist()

    def robust_accuracy(self, name: str, wave: PlannedWave, rule: Protocol) -> float | None:
        """Robust accuracy of a donor under the attack of one of the wave's cells (None without
        one): an end point of the stitching plot."""
        if not rule.measures_robustness:
            return None
        limit = self.spec.evaluation.robust_images
        options = rule.robust_options(self.plan.precision)
        return self.robust_under(name, wave, rule.robust, options, limit)

    def robust_under(
        self,
        name: str,
        wave: PlannedWave,
        attack: str,
        options: Mapping[str, Any],
        limit: int | None,
    ) -> float:
        """Robust accuracy of a donor under any attack; measured once per donor and attack."""
        key = (name, attack, repr(sorted(options.items())), limit, wave.key.shortcut)
        if key not in self._robust:
            self._check_labels(name)  # a front's too: here its own head is attacked
            images, labels = attacked_images(self._images(wave).tests()(), limit)
            donor = self.donor(name, wave.key.hook).staged.to(self.device)
            ((found, _),) = attacked_models(donor, donor, images, labels, attack, options)
            self._robust[key] = found["robust_accuracy"]
        return self._robust[key]

    def _check_pair(self, wave: PlannedWave, front: Donor, end: Donor) -> None:
        """Images must fit both donors; labels the end, whose head names the classes."""
        self._check_labels(wave.key.end)
        if wave.measures_robustness:
            self._check_labels(wave.key.front)
        for donor in (front, end):
            self._check_images(donor)

    def _check_images(self, donor: Donor) -> None:
        data = self.source(self.spec.data)
        if tuple(donor.staged.input_shape) != tuple(data.image_shape):
            raise FulaError(
                f"donor '{donor.path.name}' takes images {tuple(donor.staged.input_shape)}, "
                f"the data gives {data.image_shape} (C, H, W); set size and channels in [data]"
            )

    def _check_labels(self, name: str) -> None:
        own, data = (self.source(d) for d in (self.spec.donor(name).images, self.spec.data))
        check_label_order(own.classes, data.classes, f"[donors.{name}.data]", "[data]")

    def _images(self, wave: PlannedWave) -> CellImages:
        """The images of a wave's cells."""
        own, training = self.spec.data, self._training_data(wave)
        train, test = self.source(training), self.source(own)
        moments = normalisation_of(training, train), normalisation_of(own, test)
        return CellImages(wave.cells[0], train.train, test.test, *moments, self.device)

    def _training_data(self, wave: PlannedWave) -> DataSpec:
        """What trains the stitches: the run's data, the sender's own, or the correlated set."""
        data, kind = self.spec.data, wave.key.stitch_data
        if kind == "sender":
            return self.spec.donor(wave.key.front).data or data
        if kind == "correlated":
            return data.model_copy(update={"options": {**data.options, "variant": "correlated"}})
        return data

    def _evaluations(
        self, images: CellImages
    ) -> Iterator[tuple[str, Callable[[], Iterator[Batch]]]]:
        marked = images.shortcut is not None
        size = self.spec.evaluation.batch_size
        yield "own", images.tests(batch_size=size)
        for name in self.spec.evaluation.sets:
            if marked and name != "shortcut":
                yield name, images.tests(name, size)
