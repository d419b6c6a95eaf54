"""The report of a run: `write_report`, `summary`, `self_accuracy`.

`studies` sorts rows into figures, without drawing; `stitching_plot` and `heat_map` draw; `page`
writes `report.html` with the pictures in it and their PNG and SVG files beside it.
"""

from ..measures.self_accuracy import self_accuracy
from .page import write_report
from .summary import summary

__all__ = ["self_accuracy", "summary", "write_report"]
