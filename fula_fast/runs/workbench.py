"""The workbench of a run: its data, donors and streams, each opened once and when first needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..attacks.columns import attacked_images, attacked_models
from ..donors.donor import Donor
from ..donors.obtain import (
    as_published,
    input_on,
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
from ..models.labels import check_gradient, check_label_order
from ..models.preparation import prepared
from ..pipelines import Batch, ImageSet, Input, Source
from ..progress import Progress
from ..study.donor_spec import DataSpec
from ..study.facts import network_shape
from ..study.plan import Plan, PlannedWave
from ..study.protocol import Protocol
from ..study.spec import Spec
from .cell_images import CellImages
from .pair_inputs import PairInputs, pair_inputs


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
        alike = {(w.key.front, w.key.end, w.key.stitch_data): w for w in self.plan.waves}
        for wave in alike.values():
            self.inputs(wave)
        if train:
            train([n for n in dict.fromkeys((*stitched, *compared)) if self._is_to_train(n)])
        for wave in self.plan.waves:
            self._check_pair(wave, *self._pair(wave))
        for name in compared:
            self._check_labels(name)
            self._check_images(name, self.donor(name, self.spec.base_protocol.hook))

    def _is_to_train(self, name: str) -> bool:
        donor = self.spec.donor(name)
        source = self.source(donor.images)
        return name not in self._modules and is_to_train(donor, source, self.donor_folder)

    def _pair(self, wave: PlannedWave) -> tuple[Donor, Donor]:
        front, end = (self.donor(name, wave.key.hook) for name in (wave.key.front, wave.key.end))
        return front, end

    def input(self, name: str) -> Input:
        """What a donor takes of the cells' images."""
        donor, data = self.spec.donor(name), self.spec.data
        return input_on(donor, self.source(donor.images), data, self.source(data))

    def inputs(self, wave: PlannedWave, *, plain: bool = False) -> PairInputs:
        """Where a wave's images become what its donors take; `plain`: not before the donors, so
        that an attack moves pixels in [0, 1]."""
        data, training = self.spec.data, self._training_data(wave)
        names = wave.key.front, wave.key.end
        return pair_inputs(
            [self.input(name) for name in names],
            [as_published(self.spec.donor(name), data) for name in names],
            (
                normalisation_of(training, self.source(training)),
                normalisation_of(data, self.source(data)),
            ),
            plain=plain or bool(wave.key.attack) or wave.measures_robustness,
        )

    def _prepared(self, donor: Donor, given: Input) -> Staged:
        """The donor for the images of batches, which may be what it takes already."""
        if given == Input():
            return donor.staged
        return prepared(donor.staged, given, self.source(self.spec.data).image_shape)

    def task(self, wave: PlannedWave, *, training: bool = True, plain: bool = False) -> WaveTask:
        """A wave with its donors, streams and test sets; no stream where nothing is to be trained.

        `plain`: its images are pixels in [0, 1], for an attack.
        """
        front, end = self._pair(wave)
        self._check_pair(wave, front, end)
        inputs = self.inputs(wave, plain=plain)
        images = self._images(wave, inputs)
        return WaveTask(
            cells=tuple(wave.cells),
            front=self._prepared(front, inputs.front),
            end=self._prepared(end, inputs.end),
            stream=images.stream(self.spec.data.stream) if training and wave.key.epochs else None,
            dm_images=images.closed_form,
            evaluations=dict(self._evaluations(images)),
            epochs=wave.key.epochs,
            device=self.device,
            precision=self.plan.precision,
            mode=self.plan.mode,
            compile=self.spec.engine.compile,
            turns=wave.turn_of,
            flops=wave.flops,
            room=None if self.plan.budget is None else self.plan.budget - wave.memory,
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
            check_gradient(self.donor(name, wave.key.hook).staged, f"attack '{attack}'")
            inputs = self.inputs(wave, plain=True)
            images, labels = attacked_images(self._images(wave, inputs).tests()(), limit)
            given = inputs.front if name == wave.key.front else inputs.end
            donor = self._prepared(self.donor(name, wave.key.hook), given).to(self.device)
            ((found, _),) = attacked_models(donor, donor, images, labels, attack, options)
            self._robust[key] = found["robust_accuracy"]
        return self._robust[key]

    def _check_pair(self, wave: PlannedWave, front: Donor, end: Donor) -> None:
        """Images must fit both donors; labels the end, whose head names the classes."""
        self._check_labels(wave.key.end)
        if wave.measures_robustness:
            self._check_labels(wave.key.front)
        for name, donor in ((wave.key.front, front), (wave.key.end, end)):
            self._check_images(name, donor)

    def _check_images(self, name: str, donor: Donor) -> None:
        shape = network_shape(self.spec.donor(name), self.source(self.spec.data).image_shape)
        if tuple(donor.staged.input_shape) != tuple(shape):
            raise FulaError(
                f"donor '{donor.path.name}' takes images {tuple(donor.staged.input_shape)}, "
                f"the data gives {shape} (C, H, W); set size and channels in [data], or size in "
                f"[donors.{name}.input]"
            )

    def _check_labels(self, name: str) -> None:
        own, data = (self.source(d) for d in (self.spec.donor(name).images, self.spec.data))
        check_label_order(own.classes, data.classes, f"[donors.{name}.data]", "[data]")

    def _images(self, wave: PlannedWave, inputs: PairInputs) -> CellImages:
        """The images of a wave's cells."""
        train, test = (self.source(d) for d in (self._training_data(wave), self.spec.data))
        sets = train.train, test.test
        return CellImages(wave.cells[0], *sets, *inputs.moments, self.device, inputs.frame)

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
