"""`fula-fast spec` and `fula-fast guide`."""

from __future__ import annotations

import json

import pytest

from fula_fast.cli import commands


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as leaving:
        commands.app(list(arguments), prog_name="fula-fast")
    out, err = capsys.readouterr()
    return leaving.value.code or 0, out, err


def test_a_key_is_printed_with_its_words(capsys):
    code, out, _ = run(capsys, "spec", "protocol.momentum")
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    assert code == 0 and lines[0] == ["protocol.momentum"]
    assert lines[1:4] == [["type", "number"], ["default", "0.9"], ["range", "≥ 0, < 1"]]


def test_the_whole_spec_as_json(capsys):
    code, out, _ = run(capsys, "spec", "--json")
    found = {each["key"]: each for each in json.loads(out)}
    assert code == 0 and found["data.channels"]["type"] == "`1`, `3`"
    assert found["protocol.attack.eps"]["default"] == "8/255"


def test_a_wrong_key_is_refused_in_one_line(capsys):
    code, _, err = run(capsys, "spec", "grid.fronts")
    assert code == 2 and "did you mean 'grid.front'" in err and err.count("\n") == 1
