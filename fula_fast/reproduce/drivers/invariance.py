"""Invariance-aware stitching: stitches trained on identically represented inputs, and on ordinary.

For a front and a site every training image x gets an x' that the front maps to (nearly) the same
activation: from uniform noise by sign-gradient steps of 1/255 on ||f(x') - f(x)|| / ||f(x)||, in
eval mode and inside the pixel range (the FuLA authors' later method).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...attacks.start_noise import start_noise
from ...models import Staged
from ...pipelines import ImageSet, Source
from ...pipelines.decode.cache import build_once, load_array, save_arrays
from ...study.expand import site_pairs
from ...study.protocol import Protocol
from ...study.spec import Spec
from ..evidence import Row
from ..experiment import Experiment
from ..lab import Lab, Task, cells_of, parts_of, row_of, treatments

COLUMNS = {
    "images": "what the stitch was trained on: ordinary, or identically represented images",
    "distance": "‖f(x') − f(x)‖ / ‖f(x)‖ that is left of identically represented images x', mean",
}
"""What the columns of its rows mean that no other table has."""

STEP = 1 / 255
_BATCH = 128
_STREAM = 0x1D


def tasks(experiment: Experiment) -> list[Task]:
    """One task per pair of donors and of sites; methods and seeds of it run together. Raises
    `FulaError` for methods that do not fit the sites or the epochs."""
    sweep, options = experiment.sweeps[0], experiment.options
    facts = sweep.donor_facts()
    images, steps = min(sweep.data.train_images, options["images"]), options["steps"]
    lanes = 2 * len(options["methods"]) * len(options["seeds"])
    rule, found = _rule(sweep.spec, options), []
    for front, end in sweep.spec.asked_grid.donor_pairs():
        for i, j in site_pairs(sweep.spec.asked_grid.sites, facts[front], facts[end]):
            search = 2 * steps * images * sum(facts[front].flops[:i])
            stitches = 3 * lanes * images * options["epochs"] * sum(facts[end].flops[j:])
            treatments(options["methods"], rule, facts[end].num_sites + 1 - j)
            key = {"front": front, "end": end, "sites": (i, j)}
            taken = 2 * options["epochs"] * (images // _BATCH)
            found.append(Task(f"{front}-{end}-{i}-{j}", key, search + stitches, taken))
    return found


def run(task: Task, lab: Lab) -> list[Row]:
    """Train every method on both kinds of images; test all on the real test images."""
    names = {role: task.arguments[role] for role in ("front", "end")}
    sites, options = task.arguments["sites"], lab.experiment.options
    spec = lab.experiment.sweeps[0].spec
    front, end = (lab.staged(spec.donor(name)) for name in names.values())
    ordinary = lab.source(spec.data)
    ordinary = replace(ordinary, train=ordinary.train.evenly(options["images"]))
    found = lab.donor(spec.donor(names["front"])).content_hash
    alike, distance = identically_represented(
        front, found, sites[0], ordinary.train, options["steps"]
    )
    rule = _rule(spec, options)
    sources = {"ordinary": ordinary, "identically represented": replace(ordinary, train=alike)}
    depth = {"front_sites": front.num_sites, "end_sites": end.num_sites, "distance": distance}
    return [
        row | depth | {"images": kind}
        for kind, source in sources.items()
        for row in _rows(lab, front, end, sites, source, ordinary.train, rule, names, options)
    ]


def _rule(spec: Spec, options: Mapping[str, Any]) -> Protocol:
    """The stitches' protocol: no augmentation, whose images have no counterparts."""
    return spec.base_protocol.model_copy(
        update={"bn": "eval", "crop_padding": 0, "flip": False, "epochs": options["epochs"]}
    )


def _rows(
    lab: Lab, front: Staged, end: Staged, sites: tuple[int, int], source: Source,
    natural: ImageSet, rule: Protocol, names: Mapping[str, str], options: Mapping[str, Any],
) -> list[Row]:  # fmt: skip
    rows = []
    for seed in options["seeds"]:
        terms = end.num_sites + 1 - sites[1]
        cells = cells_of(options["methods"], [seed], sites, rule, terms, data_seed=seed, **names)
        found = lab.lanes(front, end, cells, source, natural=natural, data_seed=seed)
        rows += [row_of(outcome) for outcome in found]
    return rows


def identically_represented(
    front: Staged, front_hash: str, site: int, images: ImageSet, steps: int
) -> tuple[ImageSet, float]:
    """The images' counterparts x', as uint8, and the mean distance that is left.

    Made once per front, site, images and number of steps, and kept in the cache.
    """
    key = f"{front_hash[:16]}-{site}-{images.content_hash[:16]}-{steps}"
    entry = build_once("iri", key, lambda folder: _fill(folder, front, site, images, steps))
    alike = ImageSet(load_array(entry, "images"), images.labels, images.classes)
    return alike, float(load_array(entry, "distance").mean())


def _fill(folder: Path, front: Staged, site: int, images: ImageSet, steps: int) -> None:
    pixels, left = [], []
    for part in parts_of(len(images), _BATCH):
        batch = torch.from_numpy(images.images[part]).permute(0, 3, 1, 2)
        x = batch.to(next(front.parameters()).device).float() / 255
        numbers = range(part.start, part.stop)
        noise = start_noise("linf", list(numbers), x.shape[1:], seed=0, stream=_STREAM).to(x)
        found, distance = search(front, site, x, (noise + 1) / 2, steps)
        pixels.append((found * 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())  # truncated
        left.append(distance.cpu().numpy())
    save_arrays(folder, images=np.concatenate(pixels), distance=np.concatenate(left))


def search(front: Staged, site: int, x: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """x' (B, C, H, W) in [0, 1] with nearly the activation of x, and each one's distance (B,)."""
    with torch.no_grad():
        target = front.run(x, 0, site).flatten(1)
    size = target.norm(dim=1)
    current = start
    for _ in range(steps):
        current = current.detach().requires_grad_(True)
        distance = (front.run(current, 0, site).flatten(1) - target).norm(dim=1) / size
        (gradient,) = torch.autograd.grad(distance.sum(), current)
        current = (current - STEP * gradient.sign()).clamp(0, 1)
    with torch.no_grad():
        last = (front.run(current, 0, site).flatten(1) - target).norm(dim=1) / size
    return current.detach(), last
