"""Options of an attack as texts: read without torch, switches on or off."""

import subprocess
import sys
from dataclasses import fields
from fractions import Fraction

import numpy as np
import pytest

from fula_fast.attacks.options import NAMES, TEXT_NAMES, AttackOptions, Savings, checked
from fula_fast.cli.key_values import attack_options
from fula_fast.errors import FulaError


@pytest.mark.parametrize("name", [*(f.name for f in fields(Savings)), "random_start", "compile"])
@pytest.mark.parametrize(
    "text, value",
    [
        ("on", True),
        ("true", True),
        ("True", True),
        ("off", False),
        ("OFF", False),
        ("false", False),
    ],
)
def test_switches(name, text, value):
    assert attack_options([f"{name}={text}"]) == {name: value}
    chosen = checked({name: value})
    assert getattr(chosen if name in NAMES else chosen.savings, name) is value


def test_numbers_and_names():
    texts = ["eps = 4/255", "step=0.01", "steps=7", "seed=3", "norm=l2", "precision=fast"]
    assert attack_options(texts) == {
        "eps": 4 / 255, "step": 0.01, "steps": 7, "seed": 3, "norm": "l2", "precision": "fast"
    }  # fmt: skip
    assert checked({}) == AttackOptions()


@pytest.mark.parametrize("name", ["steps", "eot", "seed", "restarts", "batch_size"])
@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32])
def test_whole_numbers_of_numpy_are_kept_as_ints(name, kind):
    kept = getattr(checked({name: kind(7)}), name)
    assert kept == 7 and type(kept) is int


@pytest.mark.parametrize("name", ["eps", "step"])
@pytest.mark.parametrize("value", [np.float32(0.25), np.float64(0.25), Fraction(1, 4), np.int64(1)])
def test_numbers_of_other_kinds_are_kept_as_floats(name, value):
    kept = getattr(checked({name: value}), name)
    assert kept == value and type(kept) is float


@pytest.mark.parametrize("name", ["eps", "batch_size", "seed"])
@pytest.mark.parametrize("value", [True, np.True_, np.int64(-1), "3", [3], 3 + 0j])
def test_what_is_no_number_or_too_small_is_refused(name, value):
    with pytest.raises(FulaError, match=f"^{name} = .* must be a "):
        checked({name: value})


@pytest.mark.parametrize("value", [np.float32("nan"), np.float32("inf"), 10**400])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(FulaError, match="^eps = .* must be a finite number"):
        checked({"eps": value})


@pytest.mark.parametrize("name, value", [("steps", np.float64(3)), ("seed", np.uint64(2**63))])
def test_counts_that_are_not_whole_or_too_large_are_refused(name, value):
    with pytest.raises(FulaError, match=f"^{name} = "):
        checked({name: value})


def test_every_option_but_objects_has_a_text():
    assert set(TEXT_NAMES) == {f.name for f in (*fields(AttackOptions), *fields(Savings))} - {
        "savings", "starts", "keep_images"
    }  # fmt: skip


def test_a_text_without_a_key_is_refused():
    with pytest.raises(FulaError, match="not of the form KEY=VALUE"):
        attack_options(["=3"])


def test_mistakes_are_found_without_torch():
    code = "import sys\nfrom fula_fast.cli.commands import main\ntry:\n    main()\nfinally:\n    assert 'torch' not in sys.modules"
    found = subprocess.run(
        [sys.executable, "-c", code, "attack", "nowhere", "--option", "compaction=maybe"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 2
    assert found.stderr == "error: compaction = 'maybe' must be true or false (on or off)\n"
