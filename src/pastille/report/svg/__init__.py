"""Plots as inline SVG: pure functions from numbers to markup, coloured by the page's style sheet.

Every plot names itself to a screen reader, tells series apart by shape as well as by colour, and escapes
every label. No plot needs a script, a namespace or an identifier that could clash with another's.
"""

from pastille.report.svg.confusion import confusion_matrix
from pastille.report.svg.curves import training_curve
from pastille.report.svg.forest import forest_block
from pastille.report.svg.learned import learned_plot
from pastille.report.svg.promise import promise_plot
from pastille.report.svg.reliability import reliability_diagram
from pastille.report.svg.rows import (
    axis_header,
    dumbbell,
    left_bar,
    limit_axis,
    limit_header,
    limit_row,
    share_bar,
    time_bars,
)
from pastille.report.svg.scatter import key_mark, tradeoff_plot
from pastille.report.svg.steps import steps_plot
from pastille.report.svg.stress import stress_curve

__all__ = [
    "axis_header",
    "confusion_matrix",
    "dumbbell",
    "forest_block",
    "key_mark",
    "learned_plot",
    "left_bar",
    "limit_axis",
    "limit_header",
    "limit_row",
    "promise_plot",
    "reliability_diagram",
    "share_bar",
    "steps_plot",
    "stress_curve",
    "time_bars",
    "tradeoff_plot",
    "training_curve",
]
