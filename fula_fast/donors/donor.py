"""Donors: train a network from its recipe, or load it where it was trained before.

    recipe = donor_recipe(source, model="resnet18", options={"width": 16})
    donor = ensure_donor(recipe, source, cache_dir="donors")
    donor.staged, donor.metrics.test_accuracy, donor.content_hash

A recipe is JSON and decides the weights (device and library versions change their last bits);
a donor is stored under its recipe's hash.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout

from ..device.precision import PLAIN
from ..errors import FulaError
from ..files import sealed
from ..files.atomic import folder, remove, writing
from ..files.paths import user_path
from ..models import Staged, build, content_hash, load_checkpoint, save_checkpoint
from ..models.families import DEFAULTS, built_classes, resolved_options
from ..models.labels import check_fit, check_label_order, check_stored_normalisation
from ..models.libraries import fetched_by_name
from ..models.stored import read_description, read_meta
from ..pipelines import Input, Shortcut, Source
from ..study.protocol import Attack
from .training import (
    DEFAULT_TRAINING,
    PLAIN_INPUT,
    Adversary,
    DonorMetrics,
    DonorTraining,
    EpochReport,
    evaluate,
    score,
    train_donor,
)
from .training_run import TrainingRecipe

if TYPE_CHECKING:
    from ..study.donor_spec import DonorSpec

__all__ = [
    "Donor",
    "DonorMetrics",
    "DonorTraining",
    "EpochReport",
    "donor_at_hand",
    "donor_from_checkpoint",
    "donor_path",
    "donor_recipe",
    "ensure_donor",
    "evaluate",
    "fresh_model",
    "recipe_hash",
    "recipe_of",
    "train_donor",
]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Donor:
    """A trained network on the CPU in eval mode, and where it comes from.

    `recipe` is None for a donor read from a checkpoint of the user's. `trained` says whether this
    call trained it.
    """

    staged: Staged
    metrics: DonorMetrics
    content_hash: str
    path: Path
    recipe: dict[str, Any] | None = None
    trained: bool = False


def donor_recipe(
    source: Source,
    *,
    model: str,
    options: Mapping[str, Any] | None = None,
    training: DonorTraining = DEFAULT_TRAINING,
    adversarial: Attack | None = None,
    answers: bool = True,
) -> dict[str, Any]:
    """The JSON recipe of a donor with every default filled in, so that equal donors hash equally.

    `model`, `options`: as `build` takes them. `adversarial`: the attack on `training.alpha` of each
    batch. `answers`: whether fetched weights are asked for them. The data count by their content;
    an unknown recipe or option raises `FulaError`.
    """
    chosen, given, shortcut = dict(options or {}), training.given, training.shortcut
    return {
        "model": model,
        "options": resolved_options(model, chosen) if model in DEFAULTS else chosen,
        "data": {"source": source.name, "content": source.content_hash},
        "seed": training.seed,
        "recipe": training.recipe,
        **_set(training.resolved),
        "pad": training.pad,
        "flip": training.flip,
        "normalisation": given.normalisation and asdict(given.normalisation),
        **({"frame": asdict(given.frame)} if given.frame else {}),
        "shortcut": None if shortcut is None else asdict(shortcut),
        "adversarial": adversarial.model_dump() if adversarial and training.alpha else None,
        "alpha": training.alpha,
        "permute_labels": training.permute_labels,
        **({} if answers else {"answers": False}),
    }


def _set(recipe: TrainingRecipe) -> dict[str, Any]:
    """A recipe's values but for those left at their defaults: what is added later changes no
    donor's name."""
    defaults = {f.name: f.default for f in fields(recipe)}
    return {name: v for name, v in asdict(recipe).items() if defaults[name] != v}


def recipe_of(donor: DonorSpec, source: Source, given: Input = PLAIN_INPUT) -> dict[str, Any]:
    """The recipe of a `[donors.*]` table; `untrained` is zero epochs, and so is `pretrained`."""
    training = DonorTraining(
        seed=donor.seed,
        recipe=donor.recipe,
        epochs=0 if donor.untrained or donor.as_fetched else donor.epochs,
        batch_size=donor.batch_size,
        lr=donor.lr,
        pad=4 if donor.crop_padding is None else donor.crop_padding,
        flip=True if donor.flip is None else donor.flip,
        given=given,
        shortcut=donor.shortcut and Shortcut(**donor.shortcut.model_dump()),
        alpha=0.0 if donor.adversarial is None else donor.adversarial.alpha,
        permute_labels=donor.permute_labels,
    )
    attack = _plain_attack(donor.adversarial)
    return donor_recipe(
        source,
        model=donor.model,
        options=donor.build_options(),
        training=training,
        adversarial=attack,
        answers=donor.head is None or not donor.as_fetched,
    )


def _plain_attack(attack: Attack | None) -> Attack | None:
    return None if attack is None else Attack(**attack.model_dump(include=set(Attack.model_fields)))


def recipe_hash(recipe: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over the recipe's canonical JSON."""
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def donor_path(cache_dir: str | Path, recipe: Mapping[str, Any]) -> Path:
    """Where the donor of a recipe is stored: its model's name and 16 digits of its hash."""
    model = re.sub(r"[^\w.]+", "-", recipe["model"])
    return user_path(cache_dir) / f"{model}-{recipe_hash(recipe)[:16]}.safetensors"


def fresh_model(
    model: str,
    *,
    seed: int,
    num_classes: int,
    input_shape: Sequence[int],
    hook: str = "post_relu",
    options: Mapping[str, Any] | None = None,
) -> Staged:
    """`build` with weights drawn from `seed`; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(
            model, num_classes=num_classes, input_shape=input_shape, hook=hook, **(options or {})
        )


def ensure_donor(
    recipe: Mapping[str, Any],
    source: Source,
    *,
    cache_dir: str | Path,
    hook: str = "post_relu",
    stream: str = "resident",
    device: str | torch.device = "cpu",
    precision: str = PLAIN,
    replace_damaged: bool = False,
    progress: Callable[[EpochReport], None] | None = None,
) -> Donor:
    """The donor of a `donor_recipe`: loaded from `cache_dir` if it is there, else trained and
    saved.

    Either way the model is read from its file, so a resumed run sees the very same one. Where
    another process trains the same donor, its model is waited for. A damaged file raises
    `FulaError`, or is trained again with a logged warning where `replace_damaged`.
    """
    path = donor_path(cache_dir, recipe)
    how = {"stream": stream, "device": device, "precision": precision, "progress": progress}
    return stored_or_made(
        path,
        recipe,
        load=lambda: load_checkpoint(path, hook=hook),
        make=lambda: _train(recipe, source, path, **how),
        replace_damaged=replace_damaged,
    )


def stored_or_made(
    path: Path,
    recipe: Mapping[str, Any],
    *,
    load: Callable[[], Staged],
    make: Callable[[], DonorMetrics],
    replace_damaged: bool,
) -> Donor:
    """The donor that `path` stores under this recipe, read by `load`; else, by one process at a
    time, what `make` stores there. A damaged file as of `ensure_donor`."""
    damaged = path.exists()
    donor = _stored(path, recipe, load, replace_damaged)
    if donor is None:
        with _alone(path):
            if not damaged:  # another may have made it meanwhile
                donor = _stored(path, recipe, load, replace_damaged)
            if donor is None:
                metrics, loaded = make(), load()
                content = content_hash(loaded)
                donor = Donor(loaded, metrics, content, path, dict(recipe), trained=True)
    return donor


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes from training the donor at `path` at the same time."""
    folder(path.parent)
    lock = FileLock(path.with_suffix(".lock"))
    with writing(path):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _LOG.warning("another process trains '%s'; waiting for it", path.name)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _stored(
    path: Path, recipe: Mapping[str, Any], load: Callable[[], Staged], replace_damaged: bool
) -> Donor | None:
    if not path.exists():
        return None
    try:
        staged = load()
        meta = read_meta(path)
        if meta.get("recipe") != json.loads(json.dumps(recipe)):
            raise sealed.Damaged(path, sealed.DONOR, "it holds a donor of another recipe")
        metrics = sealed.validated(path, sealed.DONOR, meta.get("metrics"), DonorMetrics)
    except sealed.Damaged as error:
        if not replace_damaged:
            raise FulaError(f"{error}: delete it for that") from None
        _LOG.warning("%s: training this donor again", error)
        remove(path)
        return None
    return Donor(staged, metrics, meta["content_hash"], path, dict(recipe))


def _train(recipe: Mapping[str, Any], source: Source, path: Path, **how: Any) -> DonorMetrics:
    """Train the recipe's donor, `how` as `train_donor` takes it, and save it with its metrics."""
    attack = None
    if recipe["alpha"]:
        attack = pgd_adversary(Attack(**recipe["adversarial"]), recipe["seed"])
    given = Input.from_json(recipe)  # recipes without a frame do not name it
    answers = recipe.get("answers", True)
    fetched = not answers or fetched_by_name(recipe["options"].get("pretrained"))
    own = fetched and not recipe["epochs"]
    staged = fresh_model(
        recipe["model"],
        seed=recipe["seed"],
        num_classes=built_classes(recipe["model"], 0 if own else source.num_classes),
        input_shape=given.shape(source.image_shape),
        options=recipe["options"],
    )
    staged.classifies = staged.classifies and answers
    plain = ("recipe", "epochs", "batch_size", "lr", "seed", "pad", "flip", "alpha")
    training = DonorTraining(
        **{key: recipe[key] for key in (*plain, "permute_labels")},
        shortcut=recipe["shortcut"] and Shortcut(**recipe["shortcut"]),
        given=given,
    )
    metrics = train_donor(staged, source, training, attack=attack, **how)
    made = {key: str(how[key]) for key in ("device", "precision")}
    store_donor(staged, path, recipe, metrics, made)
    return metrics


def store_donor(
    staged: Staged,
    path: Path,
    recipe: Mapping[str, Any],
    metrics: DonorMetrics,
    made: Mapping[str, str],
) -> None:
    """Store a donor under its recipe; `made`: what it was computed with."""
    made = {**made, "torch": torch.__version__}
    save_checkpoint(
        staged, path, {"recipe": dict(recipe), "metrics": asdict(metrics), "made": made}
    )


def pgd_adversary(attack: Attack, seed: int) -> Adversary:
    """Adversarial training's PGD on the true labels (protocol: eval mode, pixels in [0, 1])."""
    from ..attacks.pgd import pgd
    from ..attacks.start_noise import start_noise

    def adversary(
        model: Staged, images: torch.Tensor, labels: torch.Tensor, index: torch.Tensor, epoch: int
    ) -> torch.Tensor:
        noise = None
        if attack.random_start:
            shape = images.shape[1:]
            noise = start_noise(attack.norm, index.tolist(), shape, seed=seed, stream=epoch)
        return pgd(model, images, labels, attack, noise=noise)

    return adversary


def donor_from_checkpoint(
    path: str | Path,
    source: Source,
    *,
    model: str = "",
    options: Mapping[str, Any] | None = None,
    hook: str = "post_relu",
    given: Input = PLAIN_INPUT,
    answers: bool = True,
    device: str | torch.device = "cpu",
    precision: str = PLAIN,
) -> Donor:
    """A donor from the user's own file: ours, or weights of `model` that another program wrote.

    Its test accuracy is measured on `source`, unless no `answers` are asked for; then it may be of
    other classes, or of none. Raises `FulaError` naming the file where it cannot be read, and where
    its weights, classes or image size differ from the model's or the data's.
    """
    into = None
    if model:
        stored = None if answers else read_description(user_path(path))
        classes = stored.built_classes if stored else built_classes(model, source.num_classes)
        shape = {"num_classes": classes, "input_shape": given.shape(source.image_shape)}
        into = build(model, hook=hook, **shape, **(options or {}))
    staged = load_checkpoint(path, into=into, hook=hook, answers=answers)
    try:
        check_fit(staged, source, given.shape(source.image_shape), answers=answers)
        if answers:
            roles = f"'{staged.name}'", f"'{source.name}'"
            check_label_order(staged.classes, source.classes, *roles)
    except FulaError as error:
        raise FulaError(f"checkpoint '{path}': {error}") from None
    check_stored_normalisation(staged, given.normalisation, f"checkpoint '{path}'")
    how = {"answers": answers, "device": device, "precision": precision}
    return donor_at_hand(staged, source, user_path(path), given=given, **how)


def donor_at_hand(
    staged: Staged,
    source: Source,
    path: Path,
    *,
    given: Input = PLAIN_INPUT,
    answers: bool = True,
    device: str | torch.device = "cpu",
    precision: str = PLAIN,
) -> Donor:
    """A model that is there already as a donor, its test accuracy measured on `source`.

    Without labels there it is None, and where no `answers` are asked for. It goes to `device` and
    back. `path`: what messages call it.
    """
    known: tuple[float | None, float | None] = None, None
    if answers:
        staged.to(device)
        known = score(staged, source, device=device, precision=precision, **vars(given))
        staged.to("cpu")
    metrics = DonorMetrics(*known, None, None, 0.0, 0)
    return Donor(staged, metrics, content_hash(staged), path)
