"""Parallel coordinates of a search: an axis for each searched key and the objective, a line for each variant."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from experiments.compare.charts import Chart, is_logarithmic, numbers_first
from experiments.compare.ranking import Comparison

_AXIS_WIDTH = 115  # pixels, for its name
_COLORS = [[0, "#9aa3ac"], [1, "#e4572e"]]  # from the worst to the best, readable on light and on dark ground


def parallel_coordinates(comparison: Comparison) -> list[Chart]:
    """The chart of a search with at least two variants; none of other comparisons."""
    rows = [row for row in comparison.rows if not row.diverged]
    keys = [key for key in comparison.space if len({row.distinguishing_values.get(key) for row in rows}) > 1]
    if not keys or len(rows) < 2:
        return []
    names = Counter(key.rpartition(".")[2] for key in keys)
    axes = []
    for key in keys:
        name = key.rpartition(".")[2]
        texts = [row.distinguishing_values.get(key, "none") for row in rows]
        axes.append(_axis(name if names[name] == 1 else key, texts, comparison.space[key]))
    values = [row.mean.value for row in rows]
    low, high = min(values), max(values)
    axes.append({"label": comparison.metric.removeprefix("best/"), "values": values, "range": [low, high]})
    line = {"color": values, "cmin": low, "cmax": high, "colorscale": _COLORS, "reversescale": comparison.mode == "min"}
    figure = go.Figure(go.Parcoords(dimensions=axes, line=line, meta=[row.rank for row in rows]))
    figure.update_layout(template="none", height=420, margin={"l": 60, "r": 60, "t": 60, "b": 30})
    caption = "A line for each variant; the best ones are red. Drag along an axis to select a range, click it to clear."
    return [Chart("Searched keys and the objective", caption, json.loads(figure.to_json()), _AXIS_WIDTH * len(axes))]


def _axis(label: str, texts: Sequence[str], space: str) -> dict[str, Any]:
    """An axis with the values that a key takes; values that are no numbers, or were chosen from a list, are its ticks.

    Args:
        label: name of the axis.
        texts: a value for each line.
        space: what they were drawn from, in words; empty if that was not recorded.
    """
    numbers = [numbers_first(text)[0] for text in texts]
    if space.startswith("choice") or not all(map(math.isfinite, numbers)):
        names = sorted(set(texts), key=numbers_first)
        ticks = {"tickvals": [*range(len(names))], "ticktext": names}
        return {"label": label, "values": [*map(names.index, texts)], "range": [0, len(names) - 1], **ticks}
    low, high = min(numbers), max(numbers)
    if not is_logarithmic(numbers, space):
        return {"label": label, "values": numbers, "range": [low, high]}
    decades = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    marks = [mark for decade in decades for mark in (10.0**decade, 2 * 10.0**decade, 5 * 10.0**decade)]
    marks = [mark for mark in marks if low <= mark <= high]
    marks = marks if len(marks) > 1 else [low, high]
    ticks = {"tickvals": [*map(math.log10, marks)], "ticktext": [f"{mark:g}" for mark in marks]}
    ends = [math.log10(low), math.log10(high)]
    return {"label": label, "values": [*map(math.log10, numbers)], "range": ends, **ticks}
