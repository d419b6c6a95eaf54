"""How an attack on trained models is run: every option, checked. Needs no torch, so that a mistake
on the command line is answered at once.

    checked({"eps": 4 / 255, "compaction": False}) -> AttackOptions
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any

from ..device.mode import COMPILED, MODES
from ..device.precision import FAST, PLAIN
from ..errors import FulaError, nearest, not_none

NORMS = ("linf", "l2")
_ASKED_MODES = ("auto", *MODES)
PRECISIONS = (PLAIN, FAST, "fast")
_SEEDS = 2**63


def _check_switches(options: object, names: Iterable[str]) -> None:
    """Every switch a bool: a text such as 'off' would count as true."""
    for name in names:
        value = getattr(options, name)
        if not isinstance(value, bool):
            raise FulaError(f"{name} = {value!r} must be true or false (on or off)")


def _number(name: str, value: object) -> float:
    """A finite number >= 0 of any kind (NumPy's too) as a float."""
    number = math.nan
    if isinstance(value, Real) and not isinstance(value, bool):
        with suppress(OverflowError):  # a whole number beyond every float
            number = float(value)
    if not 0 <= number < math.inf:
        raise FulaError(f"{name} = {value!r} must be a finite number >= 0")
    return number


def _count(name: str, value: Any, least: int) -> int:
    """A whole number of any kind (NumPy's too) as an int."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not (whole and value >= least):
        raise FulaError(f"{name} = {value!r} must be a whole number >= {least}")
    return int(value)


CUDA_BATCH, CPU_BATCH = 512, 128
"""Images in a batch where `batch_size` is not given."""


@dataclass(frozen=True)
class Savings:
    """Work left out without changing which images count as robust; each may be switched off.

    single_sample: one EOT sample for a model that is deterministic in eval mode. The mean of equal
        gradients is that gradient, and l-inf steps use only its sign; for l2 the mean differs by
        rounding (20 additions and a division). Checked, not assumed: two gradients of the first
        images must agree bit for bit, else all samples are taken.
    compaction: a fooled image leaves the batch. A flag asks whether *any* point looked at fools the
        model, so nothing that comes after the first can change it. The exact model confirms the
        image before it leaves; if it does not (rounding, bfloat16), the image goes on. The image
        reported is then the first that fools, where the reference reports the last. Needs a
        deterministic model: a random one would be asked for confirmation more often than by the
        reference.
    packing: images of all lanes and stages share full batches (on CUDA, where batches are of a few
        fixed sizes, of those lanes of a wave that are stitched at the same sites). In eval mode no
        image influences another, and APGD's state, its iteration included, is per image. Off, a
        batch holds the images of one lane and stage, as the reference's does.
    fold: batch norm is folded into convolutions for the gradients: the same function to rounding;
        confirmation uses the model as given.

    Images that are misclassified from the start are never attacked; the reference's flags exclude
    them too. Raises `FulaError` for a switch that is not a bool.
    """

    single_sample: bool = True
    compaction: bool = True
    packing: bool = True
    fold: bool = True

    def __post_init__(self) -> None:
        _check_switches(self, [f.name for f in fields(self)])


SAVINGS = tuple(f.name for f in fields(Savings))


@dataclass(frozen=True)
class AttackOptions:
    """How an attack is run.

    norm, eps: the ball around each image, in pixels of [0, 1]. step, random_start: PGD's. steps,
    eot: instead of the attack's own numbers of iterations and of EOT samples. seed: of the start
    noise. restarts: runs per stage, each from a start of its own. batch_size: images in flight; by
    default 512 on CUDA, 128 elsewhere. precision: "fp32"; "bf16" searches in bfloat16, confirms
    every image in full precision and attacks the survivors again in full precision, so that its
    robust images are robust to the fp32 attack too; "fast" leaves that second attack out. mode:
    "auto" captures the iteration in a CUDA graph on CUDA (PGD's loop only where it pays); "eager";
    "compiled" passes the models through torch.compile; "captured" needs CUDA. compile adds
    torch.compile to a captured iteration. keep_images: keep the adversarial images. starts: another
    source of start noise (for comparisons), (stage, lane, image indices (n,)) -> (n, C, H, W).

    Numbers of NumPy are taken too; what is kept are an int or a float. Raises `FulaError`, naming
    option and value, for a value of another type or out of its range.
    """

    norm: str = "linf"
    eps: float = 8 / 255
    step: float = 2 / 255
    random_start: bool = False
    steps: int | None = None
    eot: int | None = None
    seed: int = 0
    restarts: int = 1
    batch_size: int | None = None
    precision: str = PLAIN
    mode: str = "auto"
    compile: bool = False
    keep_images: bool = False
    savings: Savings = Savings()
    starts: Callable[..., Any] | None = field(default=None, repr=False)

    @property
    def batch(self) -> int:
        """`batch_size`, once a device has given the one that was not set."""
        return not_none(self.batch_size)

    def __post_init__(self) -> None:
        _check_switches(self, ("random_start", "compile", "keep_images"))
        for name in ("eps", "step"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        for name in ("restarts", "batch_size", "steps", "eot"):
            value = getattr(self, name)
            if value is not None or name == "restarts":
                object.__setattr__(self, name, _count(name, value, 1))
        object.__setattr__(self, "seed", _count("seed", self.seed, 0))
        if self.seed >= _SEEDS:
            raise FulaError(f"seed = {self.seed} must lie in [0, 2**63)")
        check_norm(self.norm)
        check_ball(self.norm, self.eps)
        check_mode(self.mode)
        check_precision(self.precision)
        if not isinstance(self.savings, Savings):
            raise FulaError(
                f"savings = {self.savings!r} must be a Savings(...); "
                f"or switch one by its own name: {', '.join(SAVINGS)}"
            )
        if self.starts is not None and not callable(self.starts):
            raise FulaError(f"starts = {self.starts!r} must be a function that gives start noise")

    @property
    def compiles(self) -> bool:
        """Whether models go through torch.compile."""
        return self.compile or self.mode == COMPILED


NAMES = tuple(f.name for f in fields(AttackOptions))
_IN_PROGRAMS = ("savings", "starts", "keep_images")  # objects, and what a caller decides
TEXT_NAMES = (*(name for name in NAMES if name not in _IN_PROGRAMS), *SAVINGS)
"""The options that have a name and a value on the command line."""
SWITCHES = ("random_start", "compile", *SAVINGS)
"""The options that are on or off."""


MEANT = {"epsilon": "eps", "step_size": "step", "iterations": "steps"}
"""Other programs' names of options, which are understood."""


def own_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options under our names. Raises `FulaError` where one is given by both."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        own = MEANT.get(name, name)
        if own in found or (own != name and own in options):
            raise FulaError(f"'{name}' and '{own}' are the same option; give one of them")
        found[own] = value
    return found


def checked(options: Mapping[str, Any], known: Iterable[str] = (*NAMES, *SAVINGS)) -> AttackOptions:
    """`AttackOptions` from its fields and, beside them, single savings by name.

    Raises `FulaError` for a name that is not `known`, and for what `AttackOptions` refuses.
    """
    known, options = tuple(known), own_names(options)
    for name in options:
        if name not in known:
            raise FulaError(f"unknown attack option '{name}'{nearest(name, known)}")
    switched = {name: options[name] for name in SAVINGS if name in options}
    rest = {name: value for name, value in options.items() if name not in SAVINGS}
    chosen = AttackOptions(**rest)
    return replace(chosen, savings=replace(chosen.savings, **switched))


def check_ball(norm: str, eps: float) -> None:
    """Raise `FulaError` for an l-inf ball that holds every image: eps in levels of 0 to 255."""
    if norm == "linf" and eps > 1:
        raise FulaError(
            f"eps = {eps:g}: pixels lie in [0, 1], where no two differ by more than 1; "
            f"for {eps:g} of 255 levels give {eps:g}/255"
        )


def check_norm(norm: str) -> None:
    """Raise `FulaError` unless `norm` is one of `NORMS`."""
    if norm not in NORMS:
        raise FulaError(f"norm = '{norm}': must be 'linf' or 'l2'")


def check_mode(mode: str) -> None:
    """Raise `FulaError` unless `mode` is one of the modes, or "auto"."""
    if mode not in _ASKED_MODES:
        raise FulaError(f"unknown mode '{mode}'{nearest(str(mode), _ASKED_MODES)}")


def check_precision(precision: str) -> None:
    """Raise `FulaError` unless `precision` is one of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise FulaError(f"unknown precision '{precision}'{nearest(str(precision), PRECISIONS)}")
