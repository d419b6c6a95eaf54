"""Direct matching: the closed form, nothing is trained (Csiszárik et al. 2021)."""

from __future__ import annotations

from .registry import Mark, Method

DM = Method(
    "dm",
    "DM",
    "the least-squares map onto `g` at its own site, in closed form from a few hundred images",
    "can the front's activations be mapped onto the end's?",
    'underrates: few images. By default (`dm_stats = "refreshed"`) as many epochs of passes as '
    "others train for refresh the batch-norm statistics of the model behind it; with "
    '`"stale"` there is no pass, and those stay the donors\' own',
    mark=Mark("#000000", "s", (0, (1, 1.2))),
)
