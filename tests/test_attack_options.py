"""Options of an attack as texts: read without torch, switches on or off."""

import subprocess
import sys
from dataclasses import fields

import pytest

from fula_fast.attack_options import NAMES, TEXT_NAMES, AttackOptions, Savings, checked, from_texts
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
    assert from_texts([f"{name}={text}"]) == {name: value}
    chosen = checked({name: value})
    assert getattr(chosen if name in NAMES else chosen.savings, name) is value


def test_numbers_and_names():
    texts = ["eps = 4/255", "step=0.01", "steps=7", "seed=3", "norm=l2", "precision=fast"]
    assert from_texts(texts) == {
        "eps": 4 / 255, "step": 0.01, "steps": 7, "seed": 3, "norm": "l2", "precision": "fast"
    }  # fmt: skip
    assert checked({}) == AttackOptions()


def test_every_option_but_objects_has_a_text():
    assert set(TEXT_NAMES) == {f.name for f in (*fields(AttackOptions), *fields(Savings))} - {
        "savings", "starts", "keep_images"
    }  # fmt: skip


def test_a_text_without_a_key_is_refused():
    with pytest.raises(FulaError, match="not of the form KEY=VALUE"):
        from_texts(["=3"])


def test_mistakes_are_found_without_torch():
    code = "import sys\nfrom fula_fast.cli import main\ntry:\n    main()\nfinally:\n    assert 'torch' not in sys.modules"
    found = subprocess.run(
        [sys.executable, "-c", code, "attack", "nowhere", "--option", "compaction=maybe"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 2
    assert found.stderr == "error: compaction = 'maybe' must be true or false (on or off)\n"
