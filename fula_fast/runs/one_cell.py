"""One stitched model asked for from Python: what the arguments of `fula_fast.stitch` mean, and
whether they fit together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from ..device.precision import ReferencePrecision
from ..donors.donor import donor_at_hand
from ..donors.fitted_head import foreseen, with_head
from ..donors.obtain import training_precision
from ..errors import FulaError
from ..files.paths import cache_folder
from ..methods import method as method_named
from ..methods import objective
from ..methods.weightings import term_weights
from ..models import Staged, load_checkpoint
from ..models.copies import private_copy, unwrapped
from ..models.heads import head_choice
from ..models.labels import (
    ANY_HEAD,
    accuracy_on,
    check_answers,
    check_classifies,
    check_gradient,
    check_label_order,
    no_labels_for,
)
from ..models.preparation import prepared, unprepared
from ..pipelines import Input, Normalisation, Source
from ..stitching.stitch import Geometry
from ..study.cell import Cell
from ..study.donor_spec import OneHead, OneShortcut, Seed, SpecTable
from ..study.grid_methods import Objective, objectives
from ..study.grid_spec import Mixture
from ..study.protocol import Protocol
from ..study.protocol import protocol as preset
from ..study.site_names import Site, site_number
from ..study.spec import parse_table
from ..study.toml import explain, plain

Donor = Staged | str | Path


class StitchOptions(SpecTable):
    """The plain arguments of `stitch` that are no protocol options, checked."""

    front_site: Site
    end_site: Site
    seed: Seed
    data_seed: Seed
    alpha: float = Field(ge=0, le=1)
    shortcut: OneShortcut
    subset: int | None = Field(ge=1)
    head: OneHead | None
    device: str
    precision: ReferencePrecision


def protocol_of(name: str, options: Mapping[str, Any]) -> Protocol:
    """A preset with options replaced; `FulaError` names what is wrong with one."""
    try:
        return preset(name, **options)
    except ValidationError as error:
        raise explain(error, Protocol, "") from None


def cell_of(
    method: str | Mapping[str, Any],
    rule: Protocol,
    given: StitchOptions,
    donors: tuple[Staged, Staged],
) -> Cell:
    """The cell that the arguments mean."""
    name = method if isinstance(method, str) else "mixture"
    sites = [
        site_number(site, donor.site_names, f"{role} {donor.name}")
        for role, site, donor in zip(
            ("front", "end"), (given.front_site, given.end_site), donors, strict=True
        )
    ]
    how = _asked(name, method).at(rule, donors[1].num_sites + 1 - sites[1])
    return Cell(
        "front", "end", sites[0], sites[1], name, how.objective, how.protocol,
        given.alpha, given.shortcut, given.subset, given.seed, given.data_seed, "stitch",
        how.stages, how.combine,
    )  # fmt: skip


def _asked(name: str, method: str | Mapping[str, Any]) -> Objective:
    """A method's name, weights, or a mixture as in a spec."""
    if isinstance(method, str) or not {"stages", "combine"} & method.keys():
        return Objective(name, objective(method))
    (found,) = objectives([parse_table(Mixture, plain({"name": name, **method}), "method")])
    return found


def donor_of(given: Donor, role: str, rule: Protocol) -> Staged:
    """The user's donor as a private copy in eval mode.

    Raises `FulaError` for a model that is not cut into stages, or cut at another hook.
    """
    if isinstance(given, str | Path):
        return load_checkpoint(given, hook=rule.hook)
    model: Any = unwrapped(given)
    if not isinstance(model, Staged):
        raise FulaError(uncut(role, model))
    if model.hook != rule.hook:
        raise FulaError(
            f"{role} is cut with hook = '{model.hook}', but protocol '{rule.preset}' stitches at "
            f"'{rule.hook}'; cut it there, or pass hook='{model.hook}'"
        )
    return private_copy(model).eval()


def end_to_be(end: Staged, given: StitchOptions, source: Source) -> Staged:
    """The end as it will answer: by its own classifier, or by the `head` that is yet to be fitted.

    Raises `FulaError` for a head that the data cannot give, and for no answers where nothing says
    that none are asked for.
    """
    if given.head is not None:
        return foreseen(end, head_choice(given.head), source)
    if source.labelled:
        check_classifies(end, accuracy_on(source.name), ANY_HEAD)
    return end


def with_asked_head(
    end: Staged, given: StitchOptions, source: Source, moments: Normalisation | None, device: Any
) -> Staged:
    """The end with its head, fitted to the training images now or found in the cache of donors.

    `moments`: of the images, where the end has no input of its own.
    """
    if given.head is None:
        return end
    bare, own = unprepared(end)
    seen = (own if end.preparation else Input(None, moments)).of(source.image_shape)
    place = {"device": device, "precision": training_precision(given.precision)}
    donor = donor_at_hand(bare, source, Path("end"), given=seen, answers=False, **place)
    folder = cache_folder() / "donors"
    headed = with_head(
        donor, head_choice(given.head), source, cache_dir=folder, given=seen,
        replace_damaged=True, **place,
    ).staged  # fmt: skip
    return prepared(headed, own, end.input_shape) if end.preparation else headed


def uncut(role: str, given: Any) -> str:
    """What to say of a model that is not cut into stages."""
    return (
        f"{role} is a {type(given).__name__}, not a model cut into stages; "
        "cut it with fula_fast.stages(module, sites=[...], input_shape=(C, H, W))"
    )


def check_fit(cell: Cell, front: Staged, end: Staged, source: Source) -> None:
    """Raise `FulaError` for donors and data that do not fit each other or the cell; `end` as of
    `end_to_be`."""
    if not source.labelled:
        _check_no_labels_needed(cell)
    if cell.weighted:
        term_weights(cell.protocol.weighting, end.num_sites + 1 - cell.end_site)
    for role, donor in (("front", front), ("end", end)):
        if donor.input_shape != source.image_shape:
            raise FulaError(
                f"{role} '{donor.name}' takes images {donor.input_shape}, but '{source.name}' has "
                f"{source.image_shape} (C, H, W); resize the data, or use donors of its size"
            )
    if cell.alpha > 0:
        check_gradient(end, f"alpha = {cell.alpha}")
    if cell.protocol.measures_robustness:
        check_gradient(end, f"robust = '{cell.protocol.robust}'")
    for name in cell.objective:
        if method_named(name).needs_classifier:
            check_gradient(end, f"method '{name}'")
        if method_named(name).labels:
            _check_classes(name, front, end, source)
    if end.classifies:
        names = f"end '{end.name}'", f"'{source.name}'"
        check_label_order(end.classes, source.classes, *names)
        check_answers(end.num_classes, source.num_classes, *names)
    sites = Geometry(front.site_shapes[cell.front_site - 1], end.site_shapes[cell.end_site - 1])
    if not cell.objective and not sites.like:
        raise FulaError(
            f"{cell.method} needs sites of one form, not {sites.source} and {sites.target}; "
            "choose other sites, or a trained method"
        )


def _check_no_labels_needed(cell: Cell) -> None:
    asked = [f"method '{name}'" for name in cell.objective if method_named(name).labels]
    asked += [f"alpha = {cell.alpha}"] * (cell.alpha > 0)
    asked += [f"shortcut '{cell.shortcut_label}'"] * (cell.shortcut is not None)
    asked += [f"subset = {cell.subset}"] * (cell.subset is not None)
    if asked:
        raise FulaError(no_labels_for(asked[0]))


def _check_classes(method: str, front: Staged, end: Staged, source: Source) -> None:
    counts = {"front": front.num_classes} if front.classifies else {}
    counts |= {"end": end.num_classes, f"'{source.name}'": source.num_classes}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise FulaError(
            f"{method} trains on labels, which must mean the same to both donors and the data, but "
            f"their class counts differ ({shown}); use another method, or donors of one task"
        )
