"""The tables of a spec that say what a donor is and which images it sees."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ..attacks.settings import Attack, Settings
from ..errors import FulaError, nearest, not_none
from ..models.families import free_options
from ..models.heads import head_choice
from ..models.libraries import LIBRARIES, fetched_by_name, library_of
from ..pipelines.draws.frame import Frame, Normalisation
from ..pipelines.sources.registry import record_of
from .protocol import HIGHEST_RATE
from .toml import Form

Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""Generators and tables keep seeds as 64-bit integers."""


Moments = Annotated[tuple[float, ...] | None, Form("a number, or one per channel")]


class SpecTable(Settings):
    """A table of the spec."""


class DataSpec(SpecTable):
    """A data set and how its images reach a model.

    - `source`: a named data set, as `fula-fast data list` prints them.
    - `data_dir`: folder of the data; unset: $FULA_DATA, else `./data`.
    - `size`: side in pixels to resize to; unset keeps the source's own.
    - `channels`: of the images; gray ones are repeated where it is 3.
    - `train_images`, `test_images`: at most so many, spread evenly over the classes; unset: all.
    - `download`: whether missing files may be downloaded.
    - `mean`, `std`: per-channel normalisation; unset: the source's own, which is
      none but for `colour-mnist`; 0 and 1 leave pixels in [0, 1].
    - `options`: passed on to the source (for example the variant of `colour-mnist`).
    - `stream`: who makes batches: memory on the device, DALI, or NumPy; all give the same ones.
    """

    source: str = "digits"
    data_dir: str | None = None
    size: int | None = Field(default=None, ge=1)
    channels: Literal[1, 3] = 3
    train_images: int | None = Field(default=None, ge=1)
    test_images: int | None = Field(default=None, ge=1)
    download: bool = False
    mean: Moments = None
    std: Moments = None
    options: dict[str, Any] = Field(default_factory=dict)
    stream: Literal["resident", "dali", "reference"] = "resident"

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _per_channel(cls, value: Any, info: ValidationInfo) -> Any:
        """One number stands for every channel."""
        channels = info.data.get("channels", 3)
        if isinstance(value, int | float):
            return (value,) * channels
        if isinstance(value, list | tuple) and len(value) != channels:
            raise ValueError(f"{list(value)} must be one number, or one per channel ({channels})")
        return value

    @model_validator(mode="after")
    def _both_moments(self) -> DataSpec:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std are given together, or neither")
        if self.std is not None and min(self.std, default=0) <= 0:
            raise ValueError(f"std = {list(self.std)} must be positive")
        return self

    @property
    def normalises(self) -> bool | None:
        """Whether `mean` and `std` change the pixels; None where the source decides."""
        return None if self.mean is None else any(self.mean) or set(self.std) != {1.0}

    def identity(self) -> dict[str, Any]:
        """What decides the pixels: not where the data lies, nor which backend reads it."""
        values = self.model_dump(exclude={"data_dir", "download", "stream"})
        named = record_of(self.source)
        if named is not None and named.at_path and self.data_dir:
            values["folder"] = Path(self.data_dir).name
        return {k: v for k, v in values.items() if v not in (None, {})}


class InputSpec(SpecTable):
    """How images reach one donor; both donors of a stitch see the same images of [data], decoded,
    cropped, flipped and marked once.

    - `size`: side in pixels that the network takes; unset: images as they are.
    - `resize`: their shorter side before they are cut to `size` from the middle; unset: `size`.
    - `crop`: `centre`, or `none`: images are squeezed to `size` whole.
    - `interpolation`: of resizing, antialiased.
    - `mean`, `std`: per-channel normalisation; unset: that of the donor's data.
    """

    size: int | None = Field(default=None, ge=1)
    resize: int | None = Field(default=None, ge=1)
    crop: Literal["centre", "none"] = "centre"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: Moments = None
    std: Moments = None

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _agrees(self) -> InputSpec:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std are given together, or neither")
        if self.std is not None and min(self.std, default=0) <= 0:
            raise ValueError(f"std = {list(self.std)} must be positive")
        if self.resize is not None and (self.size is None or self.crop == "none"):
            raise ValueError("resize acts beside size, and with crop = 'centre'; leave it out")
        if self.resize is not None and self.resize < not_none(self.size):
            raise ValueError(
                f"resize = {self.resize} is less than size = {self.size}, which is cut out of it"
            )
        return self

    @property
    def frame(self) -> Frame | None:
        """How images are resized and cut; None where they are left as they are."""
        if self.size is None:
            return None
        cut = None if self.crop == "none" else self.resize or self.size
        return Frame(self.size, cut, self.interpolation)

    def normalisation(self, channels: int) -> Normalisation | None:
        """By its own mean and std, of images of that many channels; None where they are unset.

        Raises `FulaError` for another number of channels.
        """
        if self.mean is None or self.std is None:
            return None
        mean, std = (v * channels if len(v) == 1 else v for v in (self.mean, self.std))
        if len(mean) != channels or len(std) != channels:
            raise FulaError(
                f"mean = {list(mean)}, std = {list(std)} must be one number, or one per channel "
                f"({channels})"
            )
        return Normalisation(mean, std)


class ShortcutSpec(SpecTable):
    """A class-revealing marker pasted on images.

    Written as a table, as "pattern+location" ("aruco+class"), or as one of the preprint's three
    settings: "pattern" (pixel+random), "location" (noise+class), "both" (pixel+class).

    - `pattern`: what the marker looks like; of `noise` it says nothing about the class.
    - `location`: where it is pasted: a place of the class's own, or any.
    - `size`: its side in pixels.
    - `seed`: of the patterns and places.
    """

    pattern: Literal["pixel", "aruco", "noise"]
    location: Literal["class", "random"]
    size: int = Field(default=4, ge=1)
    seed: Seed = 0

    @property
    def label(self) -> str:
        """The name of this setting in tables; the same text is a valid spec where defaults hold."""
        extra = [f"size={self.size}"] * (self.size != 4) + [f"seed={self.seed}"] * (self.seed != 0)
        return "+".join([self.pattern, self.location, *extra])


_SETTINGS = {"pattern": "pixel+random", "location": "noise+class", "both": "pixel+class"}


def _shortcut(value: Any) -> Any:
    if not isinstance(value, str) or value == "none":
        return None if value == "none" else value
    pattern, plus, location = _SETTINGS.get(value, value).partition("+")
    if not plus:
        valid = [*_SETTINGS, "none", "pixel+random", "aruco+class", "noise+class"]
        raise ValueError(f"unknown shortcut '{value}'{nearest(value, valid)}")
    return {"pattern": pattern, "location": location}


OneShortcut = Annotated[
    ShortcutSpec | None,
    BeforeValidator(_shortcut),
    Form("a table, text as `pixel+class` or `aruco+random`, or `none`"),
]


class Marked(SpecTable):
    """A shortcut by itself.

    - `shortcut`: the marker.
    """

    shortcut: OneShortcut = None


class Adversarial(Attack):
    """Adversarial training of a donor; `true` takes all defaults.

    - `alpha`: attacked share of each batch.
    """

    alpha: float = Field(default=0.5, gt=0, le=1)


def _head(text: str) -> str:
    try:
        return str(head_choice(text))
    except FulaError as error:
        raise ValueError(str(error)) from None


OneHead = Annotated[
    str, AfterValidator(_head), Form("`linear-probe` or `knn=K`, also `of N` images, or `none`")
]


class DonorSpec(SpecTable):
    """One donor: an architecture, and how it is trained or where its checkpoint lies.

    - `name`: set by the table's own name.
    - `model`: an architecture of the package, or `LIBRARY:NAME` of timm, torchvision, open_clip or
      hf (transformers); may be left out where a checkpoint names it.
    - `width`: channels of the first stage; unset: the model's own, as for the next three.
    - `stem`: `lowres` for images of 32 pixels, `stock` as the architecture was published.
    - `residuals`: whether a ResNet has its skip connections.
    - `batch_norm`: whether a VGG has batch norm.
    - `options`: further options of the architecture (for example `every` of a ViT).
    - `pretrained`: weights that its library offers: true, or which of them (a tag, a file); it is
      trained on only where `epochs` is set.
    - `seed`: of its first weights and of its training's order.
    - `recipe`: how it is trained: `paper`, 200 epochs as in the FuLA preprint; `fast`; `simclr`,
      without labels (SimCLR; its augmentations but for `flip`), the classifier a linear probe; or
      `imagenet`, torchvision's 90 epochs for a ResNet-50, on random crops (give `input` its size).
    - `head`: where its answers come from, if not from its own classifier: `linear-probe`, logistic
      regression on the frozen network's features of its training images; `knn=K`, the votes of
      their K nearest (weighted as by Wu et al. 2018), which no gradient follows; either `of N`: of
      at most N of its images, as many of each class as goes; `none`: it answers nothing,
      accuracies stay empty, what needs answers is refused, and images need no labels.
    - `epochs`, `batch_size`, `lr`: replace the recipe's value.
    - `data`: what it is trained on; unset: the run's data.
    - `input`: how images reach it; what is unset is as its library says of a pretrained model, else
      as in the donor's data.
    - `crop_padding`, `flip`: augmentation of its training; unset: the protocol's.
    - `shortcut`: marker on its training images.
    - `checkpoint`: file of its weights; it is not trained then.
    - `untrained`: a control: its first weights.
    - `permute_labels`: a control: trained on labels that are permuted.
    - `adversarial`: trained on attacked images: a table, or true.
    - `min_accuracy`: below it the run stops.
    """

    name: str = ""
    model: str = ""
    width: int | None = Field(default=None, ge=1)
    stem: Literal["lowres", "stock"] | None = None
    residuals: bool | None = None
    batch_norm: bool | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    pretrained: bool | str = False
    seed: Seed = 0
    recipe: Literal["paper", "fast", "simclr", "imagenet"] = "fast"
    head: OneHead | None = None
    epochs: int | None = Field(default=None, ge=0)
    batch_size: int | None = Field(default=None, ge=2)
    lr: float | None = Field(default=None, gt=0, le=HIGHEST_RATE)
    data: DataSpec | None = None
    input: InputSpec | None = None
    crop_padding: int | None = Field(default=None, ge=0)
    flip: bool | None = None
    shortcut: OneShortcut = None
    checkpoint: str | None = None
    untrained: bool = False
    permute_labels: bool = False
    adversarial: Annotated[Adversarial | None, Form("a table, or true or false")] = None
    min_accuracy: float | None = Field(default=None, ge=0, le=1)

    @field_validator("adversarial", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return {True: {}, False: None}[value] if isinstance(value, bool) else value

    @field_validator("options")
    @classmethod
    def _free(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "pretrained" in value:
            raise ValueError("pretrained stands beside model in a donor's table, not in options")
        try:
            return free_options(value)
        except FulaError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _one_origin(self) -> DonorSpec:
        if not self.model and not self.checkpoint:
            raise ValueError("give a model (for example model = 'resnet18') or a checkpoint")
        if self.checkpoint and self.untrained:
            raise ValueError("a donor has a checkpoint or is untrained, not both")
        if self.pretrained and (self.checkpoint or self.untrained):
            raise ValueError("a donor is one of pretrained, untrained, or has a checkpoint")
        if self.pretrained and library_of(self.model) is None:
            raise ValueError(
                f"model '{self.model}' has no pretrained weights; give a checkpoint, or a model of "
                f"{', '.join(f'{name}:NAME' for name in LIBRARIES)}"
            )
        if self.untrained and (self.adversarial or self.permute_labels):
            raise ValueError("an untrained donor takes neither adversarial nor permute_labels")
        if self.recipe == "simclr" and (self.adversarial or self.permute_labels):
            raise ValueError("recipe = 'simclr' takes neither adversarial nor permute_labels")
        if self.recipe == "imagenet" and (self.adversarial or self.shortcut):
            raise ValueError(
                "recipe = 'imagenet' crops images after a shortcut is pasted and before an attack; "
                "it takes neither shortcut nor adversarial"
            )
        if self.headless and self.min_accuracy is not None:
            raise ValueError("a donor with head = 'none' has no accuracy; leave min_accuracy out")
        if self.adversarial and self.input:
            raise ValueError(
                "adversarial training attacks images as they are decoded, which input changes; "
                "give one of the two, or a checkpoint"
            )
        return self

    @property
    def images(self) -> DataSpec:
        """`data`, of a donor that has its own or was given the run's by `load_spec`."""
        return not_none(self.data)

    @property
    def frame(self) -> Frame | None:
        """How its images are resized and cut."""
        return self.input.frame if self.input else None

    @property
    def headless(self) -> bool:
        """Whether nothing is asked of its last layer."""
        return self.head is not None and not head_choice(self.head).fitted

    @property
    def needs_no_labels(self) -> bool:
        """Whether images without labels make it: nothing of it is trained on them, or fitted."""
        made = self.recipe == "simclr" or self.untrained
        return not self.model or self.as_fetched or (self.headless and made)

    @property
    def as_fetched(self) -> bool:
        """Whether its pretrained weights are left as they are."""
        return bool(self.pretrained) and self.epochs is None

    @property
    def own_classes(self) -> bool:
        """Whether its network has the classes of its library's weights, whatever the data's are."""
        return self.as_fetched and (self.head is not None or fetched_by_name(self.pretrained))

    def build_options(self) -> dict[str, Any]:
        """The options that `fula_fast.models.build` takes for this donor."""
        given = self.model_dump(include={"width", "stem", "residuals", "batch_norm"})
        fetched = {"pretrained": self.pretrained} if self.pretrained else {}
        return {k: v for k, v in given.items() if v is not None} | self.options | fetched

    def recipe_identity(self) -> dict[str, Any]:
        """What decides the donor's weights: neither its name nor what is demanded of it."""
        shown = {"input": self.input.model_dump(exclude_none=True)} if self.input else {}
        if self.checkpoint:
            built = {"checkpoint": self.checkpoint, "model": self.model, **self.build_options()}
            return built | shown | ({"head": self.head} if self.head else {})
        values = self.model_dump(
            exclude={"name", "min_accuracy", "data", "input", "options", "checkpoint", "pretrained"}
        )
        values |= self.build_options()
        if self.untrained:
            first = ("model", "seed", "untrained", "head", *self.build_options())
            values = {k: values[k] for k in first}
        usual = {"width": 64, "stem": "lowres", "residuals": True, "lr": None}
        kept = {k: v for k, v in values.items() if v is not None and usual.get(k, ...) != v}
        return kept | shown | {"data": self.data.identity() if self.data else {}}
