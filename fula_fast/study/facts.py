"""What planning must know about data and donors: shapes, classes, costs. No torch.

Facts of published data sets stand in their records; those of folders and archives are read from
the data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from ..errors import FulaError
from ..files.paths import user_path
from ..models.families import built_classes
from ..models.heads import FittedHead, HeadChoice, head_choice
from ..models.labels import ANY_HEAD, HEAD_INSTEAD, accuracy_on, no_answers_for
from ..pipelines.sources.registry import record_of
from .donor_spec import DataSpec, DonorSpec

if TYPE_CHECKING:
    from ..models import Description
    from ..models.stored import Described

Shape = tuple[int, ...]


@dataclass(frozen=True)
class DataFacts:
    """Image shape (C, H, W), number of classes and of training images; whether images are
    normalised, that is, no pixels in [0, 1]; number of test images."""

    shape: Shape
    classes: int
    train_images: int
    normalised: bool = False
    test_images: int = 0

    @property
    def labelled(self) -> bool:
        """Whether images have labels: without, there are no classes."""
        return self.classes > 0


def data_facts(data: DataSpec) -> DataFacts:
    """Facts of a data set: nominal for those known by name, else read from the data itself."""
    named = record_of(data.source)
    if named is not None and named.nominal is not None:
        side, classes, train, test = named.nominal
        side = data.size or side
        shape = (data.channels, side, side)
        counts = _limited(train, data.train_images), _limited(test, data.test_images)
        return DataFacts(shape, classes, counts[0], bool(data.normalises), counts[1])
    from ..pipelines import load_source

    source = load_source(
        data.source,
        data_dir=data.data_dir,
        size=data.size,
        channels=data.channels,
        download=data.download,
        **data.options,
    )
    train = _limited(len(source.train), data.train_images)
    test = _limited(len(source.test), data.test_images)
    own = source.normalisation is not None
    normalised = own if data.normalises is None else data.normalises
    return DataFacts(tuple(source.image_shape), source.num_classes, train, normalised, test)


def _limited(images: int, most: int | None) -> int:
    return images if most is None else min(images, most)


@dataclass(frozen=True)
class DonorFacts:
    """A donor as planning sees it; tuples run over sites 1 … k.

    `names`: of the sites. `shapes`: of the activation, without the batch axis. `flops`: of the
    stage that ends there, per image. `saved`: elements that the stage keeps for its backward pass,
    per image. `classes`, `head_flops`: of the head. `weights`: elements of all parameters.
    `classifies`: it answers; `votes`: by neighbours, whom no gradient follows. `fitted`: the head
    that has to be fitted first, its features and their number of images.
    """

    name: str
    input_shape: Shape
    classes: int
    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    flops: tuple[int, ...]
    saved: tuple[int, ...]
    head_flops: int
    weights: int = 0
    classifies: bool = True
    votes: bool = False
    fitted: tuple[HeadChoice, int, int] | None = None

    @property
    def num_sites(self) -> int:
        return len(self.shapes)

    def elements(self, site: int) -> int:
        """Elements of one image's activation at a site (0: the image)."""
        return prod(self.shapes[site - 1] if site else self.input_shape)

    def flops_between(self, start: int, stop: int) -> int:
        """FLOPs per image of the stages behind site `start` up to site `stop`."""
        return sum(self.flops[start:stop])


def donor_facts(donor: DonorSpec, data: DataFacts, hook: str) -> DonorFacts:
    """Facts of a donor for data of this shape; raises `FulaError` for an unknown model.

    A checkpoint that describes its own model needs no `model` in the spec.
    """
    from ..models.families import DEFAULTS

    try:
        stored = None if donor.model else _stored(donor)
        model, request = _built(stored) if stored else (donor.model, _request(donor, data))
        facts = _of_layout if model in DEFAULTS else _of_description
        found = facts(donor.name, model, request | {"hook": hook})
        if stored and stored.head:
            found = _answering(found, stored.head)
        return with_head(found, donor, data)
    except FulaError as error:
        raise FulaError(f"[donors.{donor.name}] {error}") from None


def with_head(facts: DonorFacts, donor: DonorSpec, data: DataFacts) -> DonorFacts:
    """Facts of a network with the head that its donor's table names; `data`: the donor's own.

    Raises `FulaError` where labels ask for answers that there are not.
    """
    if donor.head is None:
        if data.labelled and not facts.classifies:
            instead = f"it gives an embedding of {facts.classes} numbers"
            asked = accuracy_on(donor.images.source) if donor.data else "accuracy"
            raise FulaError(no_answers_for(asked, instead, ANY_HEAD))
        sure = donor.own_classes and donor.pretrained is True  # others are known when fetched
        if data.labelled and sure and facts.classes != data.classes:
            raise FulaError(
                f"its weights answer with {facts.classes} classes, but its data have "
                f"{data.classes}; {HEAD_INSTEAD}"
            )
        return facts
    choice = head_choice(donor.head)
    if not choice.fitted:
        return replace(facts, classifies=False)
    features = _features(facts.shapes[-1]) if facts.classifies else facts.classes
    images = choice.fitted_to(data.train_images) if choice.neighbours else 0
    head = FittedHead(features, data.classes, choice.neighbours, images)
    return replace(_answering(facts, head), fitted=(choice, features, data.train_images))


def _answering(facts: DonorFacts, head: FittedHead) -> DonorFacts:
    """Facts with a fitted head in the place of the classifier, or behind the embedding."""
    return replace(
        facts, classes=head.classes, classifies=True, votes=head.votes,
        head_flops=facts.head_flops + 2 * head.weights, weights=facts.weights + head.weights,
    )  # fmt: skip


def _features(shape: Shape) -> int:
    return shape[1] if len(shape) == 2 else shape[0]


def _request(donor: DonorSpec, data: DataFacts) -> dict[str, Any]:
    classes = built_classes(donor.model, 0 if donor.own_classes else data.classes)
    return {
        "num_classes": classes, "input_shape": network_shape(donor, data.shape)
    } | donor.build_options()  # fmt: skip


def network_shape(donor: DonorSpec, shape: Shape) -> Shape:
    """(C, H, W) that a donor's network takes of images of that shape."""
    return donor.frame.shape(shape) if donor.frame else shape


def _stored(donor: DonorSpec) -> Described:
    """What a checkpoint's own header says of its model."""
    from ..models import read_description

    path = user_path(donor.checkpoint)
    stored = read_description(path)
    if stored is None:
        raise FulaError(
            f"checkpoint '{path}' does not say which model it is for; "
            "name it, for example model = 'resnet18'"
        )
    return stored


def _built(stored: Described) -> tuple[str, dict[str, Any]]:
    """The model of a checkpoint, and how it is built."""
    shape = {"num_classes": stored.built_classes, "input_shape": stored.input_shape}
    return stored.name, shape | stored.options


def _of_layout(name: str, model: str, request: dict[str, Any]) -> DonorFacts:
    """The project's own architectures: walked layer by layer."""
    from ..models.families import layout_of
    from ..models.layout import walk
    from ..models.saved import saved_elements

    layout = layout_of(model, **request)
    shape, shapes, flops, saved, weights = request["input_shape"], [], [], [], 0
    for stage in layout.stages:
        saved.append(saved_elements(stage.layers, shape)[0])
        cost = walk(stage.layers, shape)
        shape = cost.shape
        shapes.append(shape)
        flops.append(cost.flops)
        weights += cost.parameters
    head = walk(layout.head, shape)
    weights += head.parameters
    made_for = request["input_shape"], request["num_classes"]
    names = tuple(stage.name for stage in layout.stages)
    sites = names, tuple(shapes), tuple(flops), tuple(saved)
    return DonorFacts(name, *made_for, *sites, head.flops, weights)


def _of_description(name: str, model: str, request: dict[str, Any]) -> DonorFacts:
    """Other models: from their description."""
    from ..models import describe

    return described_facts(name, describe(model, **request))


def described_facts(name: str, found: Description) -> DonorFacts:
    """Facts from a model's description, with the usual number of saved maps."""
    from ..models.saved import usual_saved

    names = tuple(site.name for site in found.sites)
    shapes = tuple(tuple(site.shape) for site in found.sites)
    flops = tuple(site.flops for site in found.sites)
    saved = tuple(map(usual_saved, shapes))
    made_for = tuple(found.input_shape), found.num_classes
    sites = names, shapes, flops, saved
    costs = found.head.flops, found.parameters
    return DonorFacts(name, *made_for, *sites, *costs, found.classifies)
