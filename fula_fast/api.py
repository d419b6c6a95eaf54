"""The Python interface: one stitched model (`stitch`), or a whole grid of them (`sweep`).

>>> from fula_fast.models import build
>>> front, end = (build("resnet18", num_classes=10, input_shape=(1, 8, 8), width=4)
...               for _ in range(2))
>>> found = stitch(front, end, 9, 9, "digits", method="dm", device="cpu", quiet=True)
>>> found.stitch.weight.shape, found.model(torch.rand(5, 1, 8, 8)).shape
(torch.Size([32, 32]), torch.Size([5, 10]))

A grid is a spec of tables, or the name of one that ships:

>>> results = sweep("quickstart", "runs/quickstart")  # doctest: +SKIP
>>> results.rows, results.to_pandas()  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from .device.precision import PLAIN
from .donors.guessing import warn_near_chance
from .donors.training import evaluate
from .engine.solo import run_cell
from .engine.task import WaveTask, stitches_of
from .errors import FulaError
from .files.paths import user_path
from .measures.agreement import COLUMNS as AGREEMENT
from .measures.registry import OF_LABELS
from .methods import FULA
from .models import Staged, batchnorm, content_hash
from .models.copies import unwrapped
from .models.labels import check_stored_normalisation
from .pipelines import Normalisation
from .progress import Progress, open_progress
from .report.after_sweep import sweep_with_report
from .results import Results, Similarities, behind, html_table, load, similarities
from .runs.cell_images import CellImages
from .runs.given_data import Data, given_moments, given_source, given_spec
from .runs.one_cell import (
    Donor,
    StitchOptions,
    cell_of,
    check_fit,
    donor_of,
    end_to_be,
    protocol_of,
    uncut,
    with_asked_head,
)
from .stitching.stitch import Stitch
from .study.cell import Cell
from .study.protocol import Protocol
from .study.resources import resources
from .study.similarity_plan import similarity_spec
from .study.spec import EngineSpec, Spec, parse_table
from .study.toml import plain, read_toml


@dataclass(frozen=True, eq=False, repr=False)
class Stitched:
    """A stitch after training, in its model, with its measures on the test images.

    - `stitch`: the trained affine map; `stitch.weight` (features out, in), `stitch.bias` (out,).
    - `model`: images (B, C, H, W) in [0, 1] to logits (B, classes), in eval mode, its normalisation
      inside, with the running statistics that this stitch's training left behind; the donors
      themselves are not touched.
    - `front_accuracy`, `end_accuracy`: of the donors by themselves on the same test images, None
      where a donor has other classes than the data.
    - `accuracy`: top-1, in [0, 1]; None, as `agreement_right_wrong` and `kappa`, for data without
      labels, and as all agreements with an end without a head. `agreement_top1`: share of images to
      which the stitched model and the end give one answer; `agreement_right_wrong`: that both get
      right, or both wrong. `agreement_soft`: overlap of their softmax outputs. `kappa`: error
      consistency, agreement beyond chance; NaN where both are always right, or always wrong.
    - `term_stitch`: ||h - g|| / ||g|| at the end site. `loss`: mean training loss of the last
      epoch, None where nothing is trained. `seconds`: of training.
    """

    method: str
    front_site: int
    end_site: int
    protocol: Protocol
    stitch: Stitch
    model: nn.Module
    accuracy: float | None
    agreement_top1: float | None
    agreement_right_wrong: float | None
    agreement_soft: float | None
    kappa: float | None
    term_stitch: float
    loss: float | None
    seconds: float
    front_accuracy: float | None
    end_accuracy: float | None

    @property
    def metrics(self) -> dict[str, float | None]:
        """The measures by name."""
        return {name: getattr(self, name) for name in _METRICS}

    def _repr_html_(self) -> str:
        """The measures, as a notebook shows them."""
        about = f"{self.method}, sites {self.front_site} → {self.end_site}"
        return html_table(("measure", "value"), self.metrics.items(), about)

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={v:.4g}" for k, v in self.metrics.items() if v is not None)
        return f"Stitched({self.method}, sites {self.front_site} -> {self.end_site}, {shown})"


_METRICS = (*AGREEMENT, "term_stitch", "loss", "seconds", "front_accuracy", "end_accuracy")


def stitch(
    front: Donor,
    end: Donor,
    front_site: int | str,
    end_site: int | str,
    data: Data,
    method: str | Mapping[str, Any] = FULA.name,
    protocol: str = "fula-v2",
    *,
    seed: int = 0,
    data_seed: int | None = None,
    alpha: float = 0.0,
    shortcut: Any = None,
    subset: int | None = None,
    normalisation: Normalisation | Literal["source"] | None = "source",
    head: str | None = None,
    device: str = "auto",
    precision: str = PLAIN,
    quiet: bool = False,
    **options: Any,
) -> Stitched:
    """Train one stitch from `front` at `front_site` into `end` at `end_site`, and measure it.

    `front`, `end`: models cut into stages (`fula_fast.stages`, `fula_fast.models.build`), or paths
    of checkpoints. Sites are numbers from 1, or names (their `site_names`). `data`: a `Source`, the
    name of one (resized to the donors' input), or sets of images as (train, test) or {"train": …,
    "test": …}; of one set alone every fifth image of a class is a test image. A set is an
    `ImageSet`, (images, labels) or images as `pipelines.sources.arrays` says, a torch `Dataset` or
    `DataLoader` of (image, label) or of images, or a Hugging Face data set. Without labels all but
    `tlm`, accuracies, shortcuts, subsets and attacks works.
    `method`: a method's name, or weights of trained ones, as {"fula": 0.5, "tlm": 0.5}; or with
    stages, {"stages": [{"fula": 1, "weighting": "last"}, {"tlm": 1}]}, as a spec's mixtures.
    `protocol`: a preset, and `options` replace its values: `epochs=5`, `weighting="last"`, ….

    `seed` draws a random initial stitch; `data_seed` (default: `seed`) order, crops and DM images.
    `alpha`: attacked share of each batch. `shortcut`: marker pasted on all images, as of a spec
    ("pattern", "aruco+class", …). `subset`: train on the first so many classes.
    `normalisation`: of the images, as the donors were trained with; by default the source's own.
    Data of your own have none: give a `Normalisation(mean, std)`, or None for pixels in [0, 1].
    Donors that take images differently have it inside: see `models.with_input`.
    `head`: what answers for the end, as in a donor's table: "linear-probe", "knn=20" (fitted to the
    training images, and kept in the cache of donors), or "none": accuracies and agreements are
    None. By default its own classifier, which has the classes of the data.
    `precision`: fp32 or fp64. `quiet`: show no progress.

    The numbers are those of a sweep's cell with `executor = "solo"`. Raises `FulaError` for a site
    out of range, donors and data that do not fit each other or the method, an unknown method,
    protocol, option or source, and a loss that is not finite.
    """
    asked = {
        "front_site": front_site, "end_site": end_site, "seed": seed, "alpha": alpha,
        "data_seed": seed if data_seed is None else data_seed, "shortcut": shortcut,
        "subset": subset, "head": head, "device": device, "precision": precision,
    }  # fmt: skip
    given = parse_table(StitchOptions, asked, "stitch")
    rule = protocol_of(protocol, plain(options))
    front, end = donor_of(front, "front", rule), donor_of(end, "end", rule)
    found = given_source(data, end, answers=head is None)
    source = found.source
    cell = cell_of(method, rule, given, (front, end))
    check_fit(cell, front, end_to_be(end, given, source), source)
    moments = given_moments(normalisation, source, front, end)
    for role, donor in (("front", front), ("end", end)):
        check_stored_normalisation(donor, moments, role)
    if given.alpha > 0 and moments is not None:
        raise FulaError(
            f"alpha = {given.alpha} attacks pixels in [0, 1], but the images are normalised; set "
            "alpha = 0, or give plain pixels, for example as (images, labels)"
        )
    device = _device(given.device)
    end = with_asked_head(end, given, source, moments, device)
    images = CellImages(cell, source.train, source.test, moments, moments, device)
    accuracies = _accuracies(front, end, images)
    with Progress() if quiet else open_progress() as progress:
        progress.run_started(1, 0)
        for note in found.notes:
            progress.note(note)
        result = _run(cell, front, end, images, given.precision, progress, accuracies)
        progress.cell_done({"status": "ok"})
    return result


def _device(asked: str) -> torch.device:
    return torch.device(resources(parse_table(EngineSpec, {"device": asked}, "stitch")).device)


def _accuracies(front: Staged, end: Staged, images: CellImages) -> dict[str, float | None]:
    """Of both donors on the cell's test images; refuses one that gives no finite logits."""
    options = {"normalisation": images.test_moments, "shortcut": images.shortcut}
    found: dict[str, float | None] = {}
    for role, donor in (("front", front), ("end", end)):
        found[f"{role}_accuracy"] = None
        if donor.classifies and donor.num_classes == images.test.num_classes:
            donor = donor.float().to(images.device)
            measured = evaluate(donor, images.test, device=images.device, **options)
            found[f"{role}_accuracy"] = measured.accuracy
            warn_near_chance(f"{role} '{donor.name}'", measured.accuracy, images.test)
    return found


def _run(
    cell: Cell,
    front: Staged,
    end: Staged,
    images: CellImages,
    precision: str,
    progress: Progress,
    accuracies: Mapping[str, float | None],
) -> Stitched:
    task = WaveTask(
        (cell,),
        front.float().to(images.device),
        end.float().to(images.device),
        images.stream() if cell.trains and cell.protocol.epochs else None,
        images.closed_form,
        {"test": images.tests()},
        cell.protocol.epochs,
        device=images.device,
        precision=precision,
        progress=progress,
    )
    initial = stitches_of(task)[cell.id]
    donors = (donor.to(task.dtype) for donor in (task.front, task.end))
    outcome, model = run_cell(task, cell, initial, *donors)
    if outcome.error:
        raise FulaError(outcome.error)
    measures = outcome.metrics | accuracies | {"seconds": outcome.metrics["train_seconds"]}
    unknown = () if images.test.labelled else OF_LABELS
    measures |= dict.fromkeys(unknown if end.classifies else AGREEMENT)
    return Stitched(
        cell.method, cell.front_site, cell.end_site, cell.protocol, model.stitch,
        behind(images.test_moments, batchnorm.frozen(model)),
        **{name: measures[name] for name in _METRICS},
    )  # fmt: skip


def sweep(
    spec: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    resume: bool = False,
    retry_failed: bool = False,
    fail_fast: bool = False,
    quiet: bool = False,
    data: Data | None = None,
    models: Mapping[str, Staged] | None = None,
    donors: str | Path | None = None,
    overrides: Mapping[str, Any] | Iterable[str] = (),
) -> Results:
    """Run a grid of stitched models; write its run folder and report, and return its table.

    `spec`: a TOML file, a shipped recipe's name ("quickstart"), or the same tables as a
    dictionary. `out`: the run's folder, by default runs/NAME. `resume`: go on with the run there:
    missing and failed cells only; `retry_failed`: failed ones alone.

    `data`: as of `stitch`, in the place of the spec's [data] source; size, channels, mean, std and
    limits of that table hold for them. The run keeps their content hash, so `resume` needs the same
    data again; `load` needs none.

    `models`: donors of your own by name, cut into stages; their tables in the spec, if any, say
    nothing of a model. `donors`: folder of trained donors (default: the user's cache). `overrides`:
    of the spec's keys, as {"protocol.epochs": 5} or texts as of `--set`.

    A cell that fails leaves a row with `status` "failed"; the others go on, unless `fail_fast`.
    Raises `FulaError` for a spec or a folder that cannot be used, and for an unusable donor.
    """
    models = {name: unwrapped(model) for name, model in (models or {}).items()}
    options = {"resume": resume or retry_failed, "fail_fast": fail_fast}
    options |= {"retry_failed": retry_failed}
    with given_spec(data, _with_models(spec, models), overrides) as (loaded, notes):
        folder = user_path(out) if out is not None else Path("runs") / loaded.name
        run = _run_spec(loaded, folder, quiet, models, donors, notes, **options)
    return load(run, models)


def similarity(
    spec: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    resume: bool = False,
    quiet: bool = False,
    models: Mapping[str, Staged] | None = None,
    donors: str | Path | None = None,
    overrides: Mapping[str, Any] | Iterable[str] = (),
) -> Similarities:
    """Compare a spec's donors layer by layer, without training; write a run folder and its report.

    The spec's `[similarity]` table says which measures, donors and images; without one the usual
    measures are taken, of the grid's pairs or of all donors. Arguments are those of `sweep`; a
    `[grid]` gives pairs alone, and `out` is runs/NAME-similarity by default. Raises `FulaError` as
    `sweep` does, and where the run would not fit in memory.
    """
    models = {name: unwrapped(model) for name, model in (models or {}).items()}
    loaded = similarity_spec(_with_models(spec, models), overrides)
    folder = user_path(out) if out is not None else Path("runs") / f"{loaded.name}-similarity"
    return similarities(_run_spec(loaded, folder, quiet, models, donors, resume=resume))


def _run_spec(
    spec: Spec,
    folder: Path,
    quiet: bool,
    models: Mapping[str, Staged] | None,
    donors: str | Path | None,
    notes: tuple[str, ...] = (),
    **options: bool,
) -> Path:
    """Run a spec with its report; the folder."""
    place = None if donors is None else user_path(donors)
    with Progress() if quiet else open_progress() as progress:
        for note in notes:
            progress.note(note)
        found = sweep_with_report(
            spec, folder, progress=progress, donors=place, modules=models, **options
        )
    return found.run.folder


def _with_models(
    spec: str | Path | Mapping[str, Any], models: Mapping[str, Staged]
) -> str | Path | Mapping[str, Any]:
    """The spec with a donor's table for each model, which its content names."""
    if not models:
        return spec
    table = dict(spec) if isinstance(spec, Mapping) else read_toml(spec)
    donors = dict(table.get("donors", {}))
    for name, model in models.items():
        if not isinstance(model, Staged):
            raise FulaError(uncut(f"model '{name}'", model))
        if model.preparation is not None:
            raise FulaError(
                f"model '{name}' has an input of its own, which the run's folder would not keep; "
                f"give the model without it, and its values in [donors.{name}.input]"
            )
        given = donors.get(name, {})
        if clash := {"model", "checkpoint", "pretrained", "untrained"} & set(given):
            raise FulaError(
                f"[donors.{name}] sets {min(clash)}, but models gives '{name}' itself; keep one"
            )
        donors[name] = {**given, "checkpoint": f"content {content_hash(model)}"}
    return table | {"donors": donors}
