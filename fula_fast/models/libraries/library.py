"""What a library of models is to us: a record. Without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...errors import FulaError

if TYPE_CHECKING:
    from torch import nn

_ANSWER_SECONDS = 10.0


@dataclass(frozen=True)
class Request:
    """A network that is asked of a library.

    `name`: `LIBRARY:KIND`. `num_classes`: 0 for the library's own number. `pretrained`: whether its
    weights are the library's, or which of them (a tag, a file). `options`: the library's own.
    `input_shape`: (C, H, W).
    """

    name: str
    num_classes: int
    input_shape: tuple[int, ...]
    pretrained: bool | str = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.name.partition(":")[2]

    @property
    def side(self) -> int:
        return self.input_shape[1]

    def check_colour(self) -> None:
        """Raise `FulaError` unless images have three channels."""
        if self.input_shape[0] != 3:
            raise FulaError(
                f"'{self.name}' takes 3 channels, not {self.input_shape[0]}; load with channels = 3"
            )

    @property
    def classes(self) -> dict[str, int]:
        """The argument that torchvision and timm take for them."""
        return {"num_classes": self.num_classes} if self.num_classes else {}


@dataclass(frozen=True)
class LibraryModel:
    """What a library gave: a module from images to one tensor.

    `blocks`: names of its blocks, where the library tells them. `classifies`: it gives logits, not
    an embedding. `pretrained`: which weights it has, where that was asked for without a name.
    """

    module: nn.Module
    blocks: Sequence[str] | None = None
    classifies: bool = True
    pretrained: bool | str = False


@dataclass(frozen=True)
class Library:
    """A library of models: `timm:NAME` for the one named timm.

    `package` is imported, `install` installed. `kinds`: what a NAME may be. `network` builds with
    random or pretrained weights and raises what the library raises; `bring` says which file holds
    the weights, where they cannot be fetched; `given` is `size`, `resize`, `crop`, `interpolation`,
    `mean` and `std` of the images that its pretrained networks take, as far as it says.
    """

    name: str
    package: str
    install: str
    kinds: str
    network: Callable[[Request], LibraryModel]
    bring: Callable[[Request], str]
    given: Callable[[Request], dict[str, Any]]

    def check_installed(self, model: str) -> None:
        """Raise `FulaError` with the command that installs it, unless it is there."""
        try:
            import_module(self.package)
        except ImportError as error:
            raise FulaError(
                f"model '{model}' needs {self.package}, which is not installed; "
                f"run: pip install {self.install}"
            ) from error


def given_input(size: int, resize: int | None, said: Mapping[str, Any]) -> dict[str, Any]:
    """`Library.given`, where a configuration says `interpolation`, `mean` and `std`; `resize` None:
    images are squeezed to `size` whole."""
    return {
        "size": size,
        **({"crop": "none"} if resize is None else {"resize": resize}),
        "interpolation": said["interpolation"],
        "mean": tuple(said["mean"]),
        "std": tuple(said["std"]),
    }


@contextmanager
def patient_once(repository: str | None) -> Iterator[None]:
    """Where the hub does not answer for `repository`, only its cache is looked into: for each file
    that it lacks it would be tried again for half a minute, with a line each time."""
    if not repository:
        yield
        return
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    before = constants.HF_HUB_OFFLINE
    try:
        HfApi().model_info(repository.partition("@")[0], timeout=_ANSWER_SECONDS)
    except HfHubHTTPError:  # an answer; what it says is said again of the file
        pass
    except Exception:  # of whichever HTTP library the hub uses
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
