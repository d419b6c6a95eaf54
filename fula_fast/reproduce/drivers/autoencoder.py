"""Autoencoders stitched at the bottleneck: encoder of one data set, decoder of another."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure as Drawing
from torch import Tensor, nn
from torch.nn import functional

from ...files import sealed
from ...files.atomic import remove
from ...files.paths import cache_folder
from ...measures.agreement import right
from ...models import Staged
from ...pipelines import (
    Augmentation,
    PairedStream,
    Source,
    evaluation_batches,
    open_stream,
    paired_evaluation,
)
from ...report.style import figure, look, save
from ...store.tables import write_tables
from ..evidence import Row
from ..experiment import Experiment
from ..lab import Figure, Lab, Task

COLUMNS = {
    "latent": "size of the code",
    "self": "sender and receiver are the same",
    "mse": "mean squared error to a test image of the receiver's, paired by class",
    "receiver_accuracy": "accuracy of the receiver's classifier on its own reconstructions",
    "receiver_mse": "mean squared error of the receiver's own reconstructions",
}
"""What the columns of its rows mean that no other table has."""

_LOG = logging.getLogger(__name__)
_WIDE, _SIDE = 32, 28
_PLAIN = Augmentation(0, False)
_BATCH = 128
_MACS = 2_000_000  # multiply-adds of one pass of the whole network, about


def tasks(experiment: Experiment) -> list[Task]:
    """One task per sender, receiver, seed and size of the code."""
    options = experiment.options
    pairs = [(s, r) for s in options["data"] for r in options["data"]]
    steps = options["steps"] // len(options["data"]) + options["stitch_steps"]  # one per data set
    return [
        Task(
            f"{sender}-{receiver}-{seed}-{latent}",
            {"sender": sender, "receiver": receiver, "seed": seed, "latent": latent},
            3.0 * _MACS * _BATCH * steps,
        )
        for sender, receiver in pairs
        for seed in options["seeds"]
        for latent in options["latents"]
    ]


class Autoencoder(nn.Module):
    """Gray images (B, 1, 28, 28) to a code (B, latent) and back."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, _WIDE // 2, 3, 2, 1), nn.ReLU(), nn.Conv2d(_WIDE // 2, _WIDE, 3, 2, 1),
            nn.ReLU(), nn.Flatten(), nn.Linear(_WIDE * 49, latent),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(latent, _WIDE * 49), nn.ReLU(), nn.Unflatten(1, (_WIDE, 7, 7)),
            nn.ConvTranspose2d(_WIDE, _WIDE // 2, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(_WIDE // 2, 1, 4, 2, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def run(task: Task, lab: Lab) -> list[Row]:
    """Train both autoencoders (or find them), then the affine map between their codes."""
    names = task.arguments["sender"], task.arguments["receiver"]
    seed, latent = task.arguments["seed"], task.arguments["latent"]
    options = lab.experiment.options
    sources = [_gray(lab, name) for name in names]
    models = [_trained(lab, source, seed, latent) for source in sources]
    stitch = _stitch(lab, models, sources, seed, latent)
    donor = lab.donor(lab.experiment.donors[names[1]], names[1])
    judge = lab.staged(lab.experiment.donors[names[1]], names[1])
    back = models[1].decoder
    scores = _scores(lab, judge, lambda x: back(stitch(models[0].encoder(x))), *sources)
    own = _scores(lab, judge, models[1], sources[1], sources[1])
    if seed == options["seeds"][0]:
        _draw(lab, (*names, latent), lambda x: back(stitch(models[0].encoder(x))), sources)
    return [
        {
            "front": names[0], "end": names[1], "seed": seed, "method": "affine", "latent": latent,
            "self": names[0] == names[1], "status": "ok", **scores,
            "receiver_accuracy": own["accuracy"], "receiver_mse": own["mse"],
            "end_accuracy": donor.metrics.test_accuracy, "end_hash": donor.content_hash,
        }
    ]  # fmt: skip


def _gray(lab: Lab, name: str) -> Source:
    chosen = lab.experiment.data[name]
    return lab.source(chosen.table | chosen.limits | {"channels": 1, "size": _SIDE})


def _trained(lab: Lab, source: Source, seed: int, latent: int) -> Autoencoder:
    """The autoencoder of a data set, from the cache of donors or trained now."""
    steps = lab.experiment.options["steps"]
    key = repr(("autoencoder", latent, _WIDE, source.content_hash, seed, "steps", steps)).encode()
    folder = lab.donors or cache_folder() / "donors"
    path = folder / f"autoencoder-{hashlib.sha256(key).hexdigest()[:16]}.safetensors"
    model = _seeded(lambda: Autoencoder(latent), seed).to(lab.device)
    made = {"key": key.hex(), "steps": steps, "seed": seed}
    if path.exists() and (state := _stored(path, made)) is not None:
        model.load_state_dict(state)
        return model.eval().requires_grad_(False)
    stream = open_stream(
        source.train, batch_size=_BATCH, seed=seed, augmentation=_PLAIN, device=lab.device
    )
    pairs = ((b.images, b.images) for epoch in count() for b in stream.epoch(epoch))
    _descend(model, model.parameters(), islice(pairs, steps))
    sealed.write_tensors(path, sealed.DONOR, model.state_dict(), made)
    return model.eval().requires_grad_(False)


def _stored(path: Path, made: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """The weights in a file of the cache, or None, with a warning, where it is not that model."""
    try:
        state, meta = sealed.read_tensors(path, sealed.DONOR)
        if meta != made:
            raise sealed.Damaged(path, sealed.DONOR, "it holds another model")
    except sealed.Damaged as error:
        _LOG.warning("%s: training this model again", error)
        remove(path)
        return None
    return state


def _stitch(
    lab: Lab, models: list[Autoencoder], sources: list[Source], seed: int, latent: int
) -> nn.Linear:
    """The affine map trained to reconstruct an image of the receiver's, paired by class."""
    stitch = _seeded(lambda: nn.Linear(latent, latent), seed).to(lab.device)
    stream = PairedStream(
        *(source.train for source in sources), batch_size=_BATCH, seed=seed,
        augmentation=_PLAIN, device=lab.device,
    )  # fmt: skip
    pairs = ((a.images, b.images) for epoch in count() for a, b in stream.epoch(epoch))
    whole = nn.Sequential(models[0].encoder, stitch, models[1].decoder)
    _descend(whole, stitch.parameters(), islice(pairs, lab.experiment.options["stitch_steps"]))
    return stitch.requires_grad_(False)


def _seeded(make: Callable[[], nn.Module], seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _descend(
    model: nn.Module, parameters: Iterator[nn.Parameter], pairs: Iterator[tuple[Tensor, Tensor]]
) -> None:
    """Adam (1e-3) on the mean squared error between model(x) and y."""
    optimiser = torch.optim.Adam(parameters, lr=1e-3)
    for x, y in pairs:
        optimiser.zero_grad(set_to_none=True)
        functional.mse_loss(model(x), y).backward()
        optimiser.step()


@torch.no_grad()
def _scores(
    lab: Lab, judge: Staged, model: Callable[[Tensor], Tensor], first: Source, second: Source
) -> Mapping[str, float]:
    """How often the receiver's classifier sees the right class, and the error to a paired image."""
    correct = error = images = 0.0
    for a, b in paired_evaluation(first.test, second.test, _BATCH, str(lab.device)):
        drawn = model(a.images)
        logits = judge(drawn.repeat(1, 3, 1, 1))
        correct += float(right(logits, a.labels).sum())
        error += float((drawn - b.images).square().mean()) * len(a.labels)
        images += len(a.labels)
    return {"accuracy": correct / images, "mse": error / images}


def _draw(
    lab: Lab, names: tuple[str, str, int], model: Callable[[Tensor], Tensor], sources: list[Source]
) -> None:
    """A test image of each class above its reconstruction by the other data set's decoder; its
    pixels as a table beside it."""
    test = sources[0].test
    first = [int(np.flatnonzero(test.labels == c)[0]) for c in range(test.num_classes)]
    (batch,) = evaluation_batches(test, len(first), lab.device, order=np.array(first))
    with torch.no_grad():
        shown = {"image": batch.images, "reconstruction": model(batch.images)}
    rows = [
        {"kind": kind, "class": name, "pixels": (255 * image).round().flatten().tolist()}
        for kind, images in shown.items()
        for name, image in zip(test.classes, images, strict=True)
    ]
    stem = f"reconstructions-{'-'.join(map(str, names))}"
    write_tables(lab.plots, rows, stem, {"kind": "string", "class": "string"})
    with look():
        save(reconstructions(rows), lab.plots / f"{stem}.svg")


def reconstructions(rows: Sequence[Row]) -> Drawing:
    """A row's `pixels`, 28 x 28 numbers from 0 to 255, as a gray image, in the line of its `kind`
    and the column of its `class`. Call it inside `report.look`."""
    kinds, classes = (list(dict.fromkeys(row[key] for row in rows)) for key in ("kind", "class"))
    drawn = figure(0.7 * len(classes), 0.95 * len(kinds))
    panels = drawn.subplots(len(kinds), len(classes), squeeze=False)
    for row in rows:
        axes = panels[kinds.index(row["kind"]), classes.index(row["class"])]
        axes.imshow(np.reshape(row["pixels"], (_SIDE, _SIDE)), cmap="gray", vmin=0, vmax=255)
        axes.set_axis_off()
    for axes, name in zip(panels[0], classes, strict=True):
        axes.set_title(name)
    return drawn


def pictures(lab: Lab, rows: list[Row]) -> list[Figure]:
    """The reconstructions of every pair."""
    pairs = dict.fromkeys((row["front"], row["end"], row["latent"]) for row in rows)
    data = lab.experiment.data
    return [
        Figure(
            lab.plots / f"reconstructions-{a}-{b}-{latent}.png",
            f"Test images ({data[a].label}, above) through their own encoder ({latent} numbers), "
            f"an affine stitch and the decoder of {data[b].label} (below).",
        )
        for a, b, latent in pairs
    ]
