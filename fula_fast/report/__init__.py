"""The report of a run: `write_report`, `write_latex`, `summary`, `self_accuracy`.

`studies` sorts rows into figures, without drawing; `stitching_plot`, `heat_map` and
`similarity_plots` draw; `page` writes `report.html` with the pictures in it and their PNG and SVG
files beside it, `latex` tables for a paper.
"""

from ..measures.self_accuracy import self_accuracy
from .latex import write_latex
from .page import write_report
from .summary import summary

__all__ = ["self_accuracy", "summary", "write_latex", "write_report"]
