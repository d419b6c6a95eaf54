"""Specs of many kinds, each with what else a plan depends on: for tests that compare plans."""

from __future__ import annotations

from typing import Any

_DONORS = {
    "a": {"model": "resnet18", "width": 8},
    "b": {"model": "resnet18", "width": 8, "seed": 1},
    "v": {"model": "vgg19", "width": 8},
}
GIB = 2**30


def _spec(grid: dict[str, Any], **tables: Any) -> dict[str, Any]:
    data = {"source": "digits", "size": 32}
    grid = grid if "pairs" in grid else {"front": "a", "end": "b", **grid}
    return {"data": data, "donors": _DONORS, "grid": grid, **tables}


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one pair": (_spec({"sites": "all-pairs", "seeds": [0]}), {}),
    "seeds": (_spec({"sites": "all-pairs", "seeds": [0, 1, 5]}), {"budget": GIB // 2}),
    "several donors": (
        _spec({"front": ["a", "b"], "end": ["a", "b", "v"], "methods": ["hint", "dm"]}),
        {"workers": 3},
    ),
    "axes": (
        _spec(
            {
                "methods": ["dm", "fula", "tlm"],
                "axes": {
                    "lr": [1e-3, 1e-2], "bn": ["train", "eval"], "epochs": [0, 3],
                    "optimiser": ["adam", "sgd"], "momentum": [0.5, 0.9],
                },
            }
        ),
        {"precision": "bf16", "budget": GIB},
    ),
    "shortcuts and subsets": (
        _spec(
            {
                "shortcut": ["none", "both"], "subset": [2, 10, "all"], "methods": ["hint", "slm"],
                "sites": [[1, 2], [9, 4], 3],
            }
        ),
        {},
    ),
    "attacked": (
        _spec(
            {
                "alpha": [0, 0.3, 1], "methods": ["dm", "hint", "fula"], "seeds": [0, 1],
                "axes": {"share": ["first", "random"], "attack_target": ["clean", "adversarial"]},
            },
            protocol={"batch_size": 64},
        ),
        {"budget": GIB, "fused": False},
    ),
    "closed forms": (
        _spec(
            {"methods": ["dm"], "seeds": [0, 1], "data_seeds": [0, 3], "alpha": [0, 0.5],
             "sites": "all-pairs"},
            protocol={"dm_stats": "stale"},
        ),
        {"workers": 4},
    ),
    "starts": (
        _spec(
            {"seeds": [0, 1, 2], "data_seeds": [7], "methods": ["hint", "fula"],
             "axes": {"init": ["dm", "random", "identity"]}}
        ),
        {},
    ),
    "weightings": (
        _spec(
            {
                "weightings": ["uniform", "last", "cutoff=2"],
                "methods": ["slm", "fula", {"name": "half", "fula": 0.5, "tlm": 0.5}],
                "protocols": ["fula-v1", "fula-v2", "smith25"],
            }
        ),
        {"workers": 2},
    ),
    "soft term": (
        _spec({"sites": "all-pairs", "methods": ["fula", "hint"], "seeds": [0, 1],
               "weightings": ["uniform", "last"]}, protocol={"fula_soft": True}),
        {"budget": GIB},
    ),
    "robust": (
        _spec(
            {"methods": ["hint", "fula"], "alpha": [0, 0.5], "axes": {"robust": ["none", "pgd-10"]}},
            protocol={"attack": {"eps": 0.05}},
        ),
        {},
    ),
    "similarity": (
        _spec({"methods": ["hint"]}, similarity={"measures": ["cknna"]}),
        {"budget": 4 * GIB},
    ),
    "listed twice": (_spec({"seeds": [0, 1, 0], "methods": ["dm", "hint"]}), {}),
    "alone": (_spec({"seeds": [0, 1]}, engine={"executor": "solo"}), {"workers": 2}),
    "other hooks": (
        _spec({"protocols": ["balogh23", "balogh25"], "sites": [[2, 3], [3, 3]], "seeds": [4]}),
        {"workers": 5, "budget": 2 * GIB},
    ),
}  # fmt: skip
"""Specs by kind, and further arguments of `plan`."""
