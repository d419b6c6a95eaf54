"""The report of a run: `write_report`, `write_latex`, `summary`, `self_accuracy`.

`studies` sorts rows into figures, without drawing; `stitching_plot`, `heat_map` and
`similarity_plots` draw; `page` writes `report.html` with the pictures in it and their PNG and SVG
files beside it, `latex` tables for a paper.

To draw a figure of rows by hand: `stitching_plot`, `heat_map` of `studies`, `similarity_maps`,
`similarity_profile`, `tau_map` of `pair_similarities`, inside `look()`; `save` writes it.
`differences`: of two runs' rows; `compared`: of two `run_rows`, a table as text, of which
`write_comparison` makes a page.
"""

from ..measures.self_accuracy import self_accuracy
from .between_runs import RunRows, compared, differences, run_rows
from .comparison_page import write_comparison
from .heat_map import heat_map
from .latex import write_latex
from .page import write_report
from .similarity_cells import pair_similarities
from .similarity_plots import similarity_maps, similarity_profile, tau_map
from .stitching_plot import stitching_plot
from .studies import studies, varying
from .style import figure, look, save
from .summary import summary

__all__ = [
    "RunRows",
    "compared",
    "differences",
    "figure",
    "heat_map",
    "look",
    "pair_similarities",
    "run_rows",
    "save",
    "self_accuracy",
    "similarity_maps",
    "similarity_profile",
    "stitching_plot",
    "studies",
    "summary",
    "tau_map",
    "varying",
    "write_comparison",
    "write_latex",
    "write_report",
]
