"""One harness for comparisons: methods side by side, studies that go on where they stopped, intervals, reports."""

from laai.compare.arms import compare
from laai.compare.pictures import COLOURS, OTHERS, heat_map, picture, plot
from laai.compare.rows import Rows
from laai.compare.statistics import (
    Cell,
    crossed_interval,
    crossed_weights,
    over_tasks,
    rank_correlation,
    ratio_interval,
    spearman,
)
from laai.compare.study import Options, Runner, Study
from laai.compare.tables import Row, about, counted, distinct, number, only, signed, table

__all__ = [
    "COLOURS", "OTHERS", "Cell", "Options", "Row", "Rows", "Runner", "Study", "about", "compare", "counted",
    "crossed_interval", "crossed_weights", "distinct", "heat_map", "number", "only", "over_tasks",
    "picture", "plot", "rank_correlation", "ratio_interval", "signed", "spearman", "table",
]  # fmt: skip
