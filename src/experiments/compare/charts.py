"""The Plotly charts of the comparison's HTML report, as JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io
from plotly.colors import hex_to_rgb, qualitative

from experiments.compare import statistics
from experiments.compare.ranking import COSTS, Comparison, Row
from experiments.compare.statistics import Estimate, Sample

MOST_VARIANTS = 60  # per chart
_MOST_MAIN_EFFECTS = 12
_DECADES = 100  # from the smallest to the largest number on a logarithmic axis
_LEGEND_LINE = 20  # pixels
MOST_ROWS = 20  # at a time in a chart with a row for each variant
_COLORS = qualitative.T10
_ROOM = (0.05, 0.1)  # that a label takes of the width and the height of a chart


@dataclass(frozen=True)
class Chart:
    """A Plotly figure with its title and caption."""

    title: str
    caption: str
    figure: dict[str, Any]  # Plotly's `data` and `layout`; the `meta` of a trace is the rank of its variant, or ranks
    min_width: int = 0  # pixels; if given, it takes the whole width of the page, and scrolls where that is less


def charts(
    comparison: Comparison, read: Sequence[Row], histories: Mapping[str, Mapping[str, Sequence[float]]]
) -> list[Chart]:
    """All charts of a comparison.

    Args:
        comparison: the ranked variants.
        read: the variants, with those of their runs whose histories were read.
        histories: run id -> metric of `curve_metrics` -> one value per epoch.
    """
    comparison = replace(comparison, rows=tuple(row for row in comparison.rows if not row.diverged))
    rows = [row for row in comparison.rows if row.rank <= MOST_VARIANTS or row.pareto]
    return [
        *_intervals(comparison, rows),
        *(chart for metric in curve_metrics(comparison) if (chart := _curves(metric, read, histories))),
        *_importance(comparison.importance),
        *_main_effects(comparison),
        *(chart for cost in COSTS if (chart := _costs(comparison, rows, cost))),
    ]


def curve_metrics(comparison: Comparison) -> list[str]:
    """The validation metrics of every epoch, accuracy and loss first."""
    names = {name for row in comparison.rows for run in row.runs for name in run.metrics if name.startswith("val_")}
    first = ("val_accuracy", "val_loss")
    return [*first, *sorted(names - {*first})]


def templates() -> dict[str, Any]:
    """Plotly's templates for the light and the dark theme of the page."""
    themes = {"light": ("plotly_white", "#fff"), "dark": ("plotly_dark", "#16191d")}  # background colors of the page
    found = {}
    for theme, (name, background) in themes.items():
        template = go.layout.Template(plotly.io.templates[name])  # a copy, because Plotly's own is global
        template.update(layout={"paper_bgcolor": background, "plot_bgcolor": background})
        found[theme] = template.to_plotly_json()
    return found


def _intervals(comparison: Comparison, rows: Sequence[Row]) -> list[Chart]:
    metric = comparison.metric
    methods = ", ".join(sorted({row.mean.method for row in rows if row.mean.method})) or "not available"
    found = [
        _interval_chart(
            f"{metric} of every variant",
            f"95 % confidence intervals: {methods}.",
            metric,
            [(row, row.mean) for row in rows],
        )
    ]
    differences = [(row, row.difference) for row in rows if row.difference]
    if differences:
        title = f"{metric}: difference from best"
        caption = "Trials with one seed have no intervals."
        if any(difference.low is not None for _, difference in differences):
            caption = "Confidence intervals at the level of Holm's method, as the verdicts in the table."
        found.append(_interval_chart(title, caption, "difference", differences, zero={"color": "grey", "width": 1}))
    return found


def _interval_chart(
    title: str,
    caption: str,
    x_title: str,
    estimates: Sequence[tuple[Row, Estimate]],
    zero: Mapping[str, Any] | None = None,
) -> Chart:
    """A row for each estimate; with a line at 0 if its style `zero` is given."""
    traces = []
    for index, (row, estimate) in enumerate(estimates):
        point = {"x": [estimate.value], "y": [index], "error_x": _errors([estimate])}
        traces.append(go.Scatter(**point, mode="markers", marker_size=9, **_style(row)))
    if len(estimates) > MOST_ROWS:
        caption += f" Of {len(estimates)} variants, the first {MOST_ROWS} that the filter selects are shown."
    chart = _chart(title, caption, traces, x_title)
    layout = chart.figure["layout"]
    # The page leaves out the rows of variants that its filter does not select.
    layout |= {"height": 44 * len(estimates) + 80, "showlegend": False, "meta": "rows"}
    layout["yaxis"] |= {
        "tickvals": list(range(len(estimates))),
        "showticklabels": False,
        "range": [len(estimates) - 0.5, -0.9],
        "zeroline": False,
    }
    # Names are above the intervals: beside them, long ones would leave no room for the chart on a small screen.
    style: dict[str, Any] = {"xref": "paper", "x": 0, "xanchor": "left", "yanchor": "bottom", "yshift": 4}
    style |= {"showarrow": False, "font": {"size": 11}}
    layout["annotations"] = [style | {"y": index, "text": _name(row)} for index, (row, _) in enumerate(estimates)]
    layout["xaxis"] |= {"zeroline": False, "nticks": 5}
    if zero:
        layout["shapes"] = [{"type": "line", "x0": 0, "x1": 0, "yref": "paper", "y0": 0, "y1": 1, "line": zero}]
    return chart


def _curves(metric: str, rows: Sequence[Row], histories: Mapping[str, Mapping[str, Sequence[float]]]) -> Chart | None:
    """Learning curves: means over the seeds, with bands from the lowest to the highest seed.

    Variants that have no color of their own are shown faintly, without a band and a line of the legend.
    """
    traces, most = [], 1
    for row in rows:
        curves = [curve for run in row.runs if (curve := histories.get(run.run_id, {}).get(metric))]
        if not curves:
            continue
        epochs = min(map(len, curves))
        most = max(most, epochs)
        values = np.array([curve[:epochs] for curve in curves])
        steps = list(range(1, epochs + 1))
        style = _style(row)
        faint = row.rank > len(_COLORS)
        if len(curves) > 1 and not faint:
            outline = [*values.max(axis=0), *values.min(axis=0)[::-1]]
            band = {"x": steps + steps[::-1], "y": outline, "fill": "toself", "mode": "none", "hoverinfo": "skip"}
            shade = f"rgba{(*hex_to_rgb(style['marker_color']), 0.15)}"
            traces.append(go.Scatter(**band, fillcolor=shade, **style | {"showlegend": False}))
        mode, mean = "lines" if epochs > 1 else "markers", values.mean(axis=0).tolist()
        style |= {"opacity": 0.35, "line_width": 1} if faint else {"showlegend": True}
        traces.append(go.Scatter(x=steps, y=mean, mode=mode, line_color=style["marker_color"], **style))
    if not traces:
        return None
    caption = "Means over the seeds, up to the last epoch that all reached; bands from the lowest to the highest seed."
    if len(rows) > len(_COLORS):
        caption += f" Variants after the first {len(_COLORS)} are gray."
    chart = _chart(f"{metric} by epoch", caption, traces, "epoch", metric)
    chart.figure["layout"]["xaxis"] |= {"tickformat": "d", "dtick": math.ceil(most / 10)}
    chart.figure["layout"]["height"] += _LEGEND_LINE * min(len(rows), len(_COLORS))
    return chart


def _main_effects(comparison: Comparison) -> list[Chart]:
    """For each key in which variants differ, the metric by its values, averaged over the other keys."""
    found = []
    for key in comparison.distinguishing_keys[:_MOST_MAIN_EFFECTS]:
        groups: dict[str, list[Row]] = {}
        for row in comparison.rows:
            if key in row.distinguishing_values:
                groups.setdefault(row.distinguishing_values[key], []).append(row)
        if len(groups) < 2:
            continue
        if len(groups) > len(comparison.rows) / 2 and all(math.isfinite(numbers_first(name)[0]) for name in groups):
            found.append(_scatter(key, groups, comparison.metric, comparison.space.get(key, "")))
            continue
        names = sorted(groups, key=numbers_first)
        estimates = [_over_seeds(groups[name], comparison.metric) for name in names]
        points = [(name, row) for name in names for row in groups[name]]
        single = go.Scatter(
            x=[name for name, _ in points],
            y=[row.mean.value for _, row in points],
            text=[_name(row) for _, row in points],
            mode="markers",
            marker={"color": "grey", "opacity": 0.5},
            name="single variants",
        )
        means = go.Scatter(
            x=names,
            y=[estimate.value for estimate in estimates],
            error_y=_errors(estimates),
            mode="lines+markers",
            marker={"size": 9, "color": _COLORS[0]},
            name="mean",
        )
        caption = (
            "Means over all variants with this value, with 95 % confidence intervals over the seeds. The values are "
            "comparable only if each was combined with the same values of the other keys."
        )
        chart = _chart(f"Main effect of {key}", caption, [single, means], key, comparison.metric)
        chart.figure["layout"]["xaxis"]["type"] = "category"
        found.append(chart)
    return found


def _importance(shares: Mapping[str, float]) -> list[Chart]:
    """The importance of the searched keys, the largest at the top."""
    if not shares:
        return []
    bars = go.Bar(x=list(shares.values()), y=list(shares), orientation="h", marker_color=_COLORS[0])
    caption = "Share of each searched key in what makes the best tenth of the trials good (PED-ANOVA)."
    chart = _chart("Importance of the searched keys", caption, [bars], "share")
    chart.figure["layout"] |= {"height": 44 * len(shares) + 100}
    chart.figure["layout"]["yaxis"]["autorange"] = "reversed"
    return [chart]


def _scatter(key: str, groups: Mapping[str, Sequence[Row]], metric: str, space: str) -> Chart:
    """The metric against the numbers that a search has drawn."""
    points = [(numbers_first(name)[0], row) for name, rows in groups.items() for row in rows]
    numbers = [number for number, _ in points]
    trials = go.Scatter(
        x=numbers,
        y=[row.mean.value for _, row in points],
        text=[_name(row) for _, row in points],
        mode="markers",
        marker={"size": 9, "color": _COLORS[0]},
    )
    caption = "Each point is a variant; the values of the other keys differ, too."
    chart = _chart(f"{metric} against {key}", caption, [trials], key, metric)
    if is_logarithmic(numbers, space):
        chart.figure["layout"]["xaxis"] |= {"type": "log", "exponentformat": "power"}  # and not 100µ
    return chart


def is_logarithmic(numbers: Sequence[float], space: str) -> bool:
    """Whether an axis is logarithmic: if the numbers were drawn so, or where that was not recorded span two decades.

    Args:
        numbers: on the axis.
        space: what they were drawn from, in words; empty if that was not recorded.
    """
    if space:
        return space.endswith(", log")
    return min(numbers) > 0 and max(numbers) >= _DECADES * min(numbers)


def _errors(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """Plotly's error bars for some intervals; of length 0 where there is none."""
    ends = [(e.value if e.low is None else e.low, e.value if e.high is None else e.high) for e in estimates]
    return {
        "symmetric": False,
        "array": [high - e.value for e, (_, high) in zip(estimates, ends, strict=True)],
        "arrayminus": [e.value - low for e, (low, _) in zip(estimates, ends, strict=True)],
    }


def _over_seeds(rows: Sequence[Row], metric: str) -> Estimate:
    """The mean over variants, with a t interval over the seeds that all of them have."""
    values = [{int(run.params["seed"]): run.metrics[metric] for run in row.runs} for row in rows]
    common = set.intersection(*map(set, values))
    if not common:
        return Estimate(float(np.mean([row.mean.value for row in rows])))
    return statistics.estimate(Sample({seed: float(np.mean([v[seed] for v in values])) for seed in common}))


def _costs(comparison: Comparison, rows: Sequence[Row], cost: str) -> Chart | None:
    """The metric against a cost, with its Pareto front."""
    priced = [row for row in rows if cost in row.costs]
    crowded = cost == "train_seconds" and any(row.beside_others for row in priced)
    if crowded or len({row.costs[cost] for row in priced}) < 2:
        return None
    front = sorted((row for row in priced if cost in row.pareto), key=lambda row: row.costs[cost])
    line = go.Scatter(
        x=[row.costs[cost] for row in front],
        y=[row.mean.value for row in front],
        mode="lines",
        line={"color": "grey", "dash": "dot"},
        hoverinfo="skip",
        name="Pareto front",
    )
    labelled = _with_room([*front, *priced], cost)
    points = [
        go.Scatter(
            x=[row.costs[cost]],
            y=[row.mean.value],
            mode="markers+text",
            text=[str(row.rank) if row.rank in labelled else ""],
            textposition="top center",
            cliponaxis=False,  # or the number of a point at the top is cut off
            marker={"size": 12 if cost in row.pareto else 7, "symbol": "diamond" if cost in row.pareto else "circle"},
            **_style(row),
        )
        for row in priced
    ]
    caption = "Numbers: ranks, where there is room. Diamonds: Pareto-optimal variants."
    name = COSTS[cost]
    return _chart(f"{comparison.metric} against {name}", caption, [line, *points], name, comparison.metric)


def _with_room(rows: Sequence[Row], cost: str) -> set[int]:
    """The ranks of the first variants and of Pareto-optimal ones, without those that would overlap an earlier one."""
    points = {row.rank: (row.costs[cost], row.mean.value) for row in rows}
    width, height = (max(values) - min(values) for values in zip(*points.values(), strict=True))
    kept: dict[int, tuple[float, float]] = {}
    for row in rows:
        x, y = points[row.rank]
        near = any(abs(x - a) <= _ROOM[0] * width and abs(y - b) <= _ROOM[1] * height for a, b in kept.values())
        if not near and (row.rank <= len(_COLORS) or cost in row.pareto):
            kept[row.rank] = (x, y)
    return set(kept)


def _chart(title: str, caption: str, traces: Sequence[go.Scatter | go.Bar], x_title: str, y_title: str = "") -> Chart:
    figure = go.Figure(traces)
    figure.update_layout(
        template="none",  # the page sets the one of its theme
        margin={"l": 10, "r": 10, "t": 36, "b": 10},  # at the top, room for the buttons
        xaxis={"title": x_title, "automargin": True},
        yaxis={"title": y_title, "automargin": True},
        height=380,
        showlegend=len(traces) > 1,
        legend={"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "maxheight": 0.7},
        hoverlabel={"namelength": -1},
    )
    return Chart(title, caption, json.loads(figure.to_json()))


def _style(row: Row) -> dict[str, Any]:
    """Properties that all traces of a variant share."""
    return {
        "name": _name(row),
        "meta": row.rank,
        "legendgroup": str(row.rank),
        "marker_color": _COLORS[row.rank - 1] if row.rank <= len(_COLORS) else "#8c8c8c",
        "showlegend": False,
    }


def _name(row: Row) -> str:
    """Rank and label, escaped because Plotly reads HTML tags."""
    return f"{row.rank} {row.label}".replace("&", "&amp;").replace("<", "&lt;")


def numbers_first(text: str) -> tuple[float, str]:
    """What to sort values by, which were numbers before they were recorded as texts; others are infinite."""
    try:
        return float(text), text
    except ValueError:
        return math.inf, text
