"""Writes comparisons as tables: on the console, in Markdown, and as CSV."""

import csv
import io
import math
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from experiments.compare.ranking import COSTS, Comparison, Row
from experiments.compare.statistics import Estimate
from experiments.errors import ExperimentError

DESCRIPTION_ROWS = 20  # in the description of a run, which MLflow cuts at 8,000 characters
_MIN_TEXT_WIDTH = len("no significant difference")  # characters
_NARROW_LABEL, _NARROW_VERDICT = 16, len("no significant")  # characters, so that a result takes 80 columns
_GAP = 2  # between columns
_MARK = "*"
_LEGEND = f"{_MARK} Pareto-optimal in this cost."
_CROWDED = "~"
_CROWDED_LEGEND = f"{_CROWDED} Measured while other jobs ran on the same machine: longer than alone, and not compared."


@dataclass(frozen=True)
class Column:
    """A column of the table: its cells, and the numbers to sort it by."""

    name: str
    cells: list[str]
    numbers: list[float | str] = field(default_factory=list)  # "" for an empty cell
    is_text: bool = False  # text is aligned to the left and may wrap
    min_text_width: int = _MIN_TEXT_WIDTH  # characters

    @property
    def min_width(self) -> int:
        """Width that it needs on a console, in characters."""
        lines = [line for text in (self.name, *self.cells) for line in text.split("\n")]
        return min(max(map(len, lines)), self.min_text_width if self.is_text else sys.maxsize)


def only(comparison: Comparison, ranks: str) -> Comparison:
    """The comparison with some of its rows alone; intervals, tests and notes stay those of all variants.

    Args:
        comparison: of all variants.
        ranks: of the rows, separated by commas.

    Raises:
        ExperimentError: there is no such rank.
    """
    rows = {str(row.rank): row for row in comparison.rows}
    names = [rank.strip() for rank in ranks.split(",")]
    if (wrong := next((name for name in names if name not in rows), None)) is not None:
        allowed = "1 is the only rank" if len(rows) == 1 else f"ranks are 1 to {len(rows)}"
        raise ExperimentError(f"--only {ranks}: {wrong or 'an empty rank'} is no rank; {allowed}.")
    return replace(comparison, rows=tuple(rows[name] for name in dict.fromkeys(names)))


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All variants as an object of the JSON output, with all digits."""
    rows = []
    for row in comparison.rows:
        difference = row.difference or Estimate(math.nan)
        values = {
            "rank": row.rank,
            "variant": row.label,
            "values": dict(row.distinguishing_values),
            "seeds": len(row.runs),
            **_as_object("mean", row.mean),
            **_as_object("difference", difference),
            "p": row.p,
            "test": row.test,
            "verdict": row.verdict,
            "test_accuracy": row.test_accuracy,
            "costs": {cost: row.costs.get(cost) for cost in COSTS},
            "pareto": sorted(row.pareto),
            "run_ids": [run.run_id for run in row.runs],
        }
        rows.append(values)
    head = {"title": comparison.title, "metric": comparison.metric, "mode": comparison.mode}
    return {**head, "rows": rows, "notes": list(notes(comparison))}


def _as_object(name: str, estimate: Estimate) -> dict[str, Any]:
    if math.isnan(estimate.value):
        return {name: None}
    return {name: {"value": estimate.value, "low": estimate.low, "high": estimate.high, "method": estimate.method}}


_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$",
    "→": r"$\to$", "…": r"\dots{}", **{character: f"\\{character}" for character in "&%$#_{}"},
}  # fmt: skip


def as_latex(comparison: Comparison) -> str:
    """The table in LaTeX, for the package booktabs; its notes are comments."""
    shown = columns(comparison, comparison.rows)
    kept = [column for column in shown if any(cell.strip() for cell in column.cells)]
    lines = [[column.name for column in kept], *zip(*(column.cells for column in kept), strict=True)]
    head, *rows = (" & ".join(map(_as_latex, line)) + r" \\" for line in lines)
    spec = "".join("l" if column.is_text else "r" for column in kept)
    comments = [f"% {sentence}" for sentence in notes(comparison)]
    parts = [rf"\begin{{tabular}}{{{spec}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([r"% \usepackage{booktabs}", *comments, *parts]) + "\n"


def _as_latex(cell: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in cell.strip())
    return re.sub(r"(?<![\w.])-(?=[\d.])", "$-$", escaped)


def as_csv(comparison: Comparison) -> str:
    """All variants as CSV, with all digits."""
    text = io.StringIO()
    rows = [_values(comparison, row) for row in comparison.rows]
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _values(comparison: Comparison, row: Row) -> dict[str, object]:
    """Columns of the CSV file -> values; None for an empty cell."""
    difference = row.difference
    return {
        "rank": row.rank,
        "variant": row.label,
        **{key: row.distinguishing_values.get(key) for key in comparison.distinguishing_keys},
        "seeds": len(row.runs),
        comparison.metric: None if math.isnan(row.mean.value) else row.mean.value,
        "low": row.mean.low,
        "high": row.mean.high,
        "interval": row.mean.method,
        "difference": difference.value if difference else None,
        "difference_low": difference.low if difference else None,
        "difference_high": difference.high if difference else None,
        "p": row.p,
        "test": row.test,
        "verdict": row.verdict,
        "test_accuracy": row.test_accuracy,
        **{cost: row.costs.get(cost) for cost in COSTS},
        "pareto": " ".join(sorted(row.pareto)),
        "run_ids": " ".join(run.run_id for run in row.runs),
    }


def as_markdown(comparison: Comparison, most: int | None = None) -> str:
    """The result, the table of at most `most` rows, and the other notes, in Markdown."""
    shown = columns(comparison, comparison.rows[:most])
    aligned = ["---" if column.is_text else "---:" for column in shown]
    lines = [[column.name for column in shown], aligned, *zip(*(column.cells for column in shown), strict=True)]
    escaped = [[cell.strip().replace("|", "\\|") for cell in line] for line in lines]
    table = "\n".join(f"| {' | '.join(line)} |" for line in escaped)
    left_out = len(comparison.rows) - (most or len(comparison.rows))
    more = [f"and {left_out} more in leaderboard.md"] if left_out > 0 else []
    result, *remarks = notes(comparison)
    listed = "\n".join(f"- {sentence}" for sentence in remarks)
    return "\n\n".join([f"**{result}**", table, *more, listed, f"Best run: {comparison.best_run.run_id}"]) + "\n"


def print_table(comparison: Comparison, console: Console) -> None:
    """Prints the table, in several parts if it is wider than the console, and the notes.

    The first part is the result: rank, variant, mean, difference, p and verdict, if necessary in rows of several lines;
    seeds, test accuracy and costs follow.
    """
    shown, gap = columns(comparison, comparison.rows), _GAP
    parts = [shown]
    if _width(shown, gap) > console.width:
        rank, variant, seeds, mean, verdict, difference, p, *others = shown
        result = [rank, variant, mean, difference, p, verdict]
        if _width(result, gap) > console.width:
            result, gap = _narrowed(result), 1
        parts = [*_parts(result, gap, console.width), *_parts([rank, seeds, *others], gap, console.width)]
    for part in parts:
        console.print()
        console.print(_table(_with_wrapped_labels(part, gap, console.width), gap))
    console.print()
    for sentence in notes(comparison):
        console.print(sentence, soft_wrap=True, markup=False, highlight=False)


def write_file(text: str, path: str) -> None:
    """Writes a file atomically.

    Raises:
        ExperimentError: the file cannot be written.
    """
    file = Path(path)
    part = file.with_name(f".{file.name}.part")
    try:
        if file.exists() and not file.is_file():  # such as /dev/stdout, which cannot be replaced
            file.write_text(text, encoding="utf-8")
            return
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ExperimentError(f"{path} cannot be written: {error.strerror}.") from error


def write_search_history(file: Path, trials: Sequence[tuple[int, float, bool]], metric: str, mode: str) -> None:
    """Plots the values of all trials, each given as number, value and whether it was pruned."""
    from experiments import plots  # imports matplotlib, which only a search needs

    plots.search_history(trials, metric, mode).savefig(file)


def _table(columns: Sequence[Column], gap: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    for column in columns:
        justify: Literal["left", "right"] = "left" if column.is_text else "right"
        width = column.min_width
        table.add_column(column.name, justify=justify, no_wrap=not column.is_text, min_width=width, overflow="fold")
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*cells)
    return table


def _width(columns: Sequence[Column], gap: int) -> int:
    """Width that columns need side by side, in characters."""
    return sum(column.min_width for column in columns) + gap * (len(columns) - 1)


def _narrowed(result: Sequence[Column]) -> list[Column]:
    """The columns of a result with intervals below their means, and verdicts in two lines."""
    rank, variant, *numbers, verdict = result
    numbers = [
        replace(c, name=c.name.replace(" from", "\nfrom"), cells=[cell.replace(" [", "\n[") for cell in c.cells])
        for c in numbers
    ]
    verdict = replace(verdict, cells=[textwrap.fill(cell, _NARROW_VERDICT) for cell in verdict.cells])
    return [rank, replace(variant, min_text_width=_NARROW_LABEL), *numbers, verdict]


def _with_wrapped_labels(columns: Sequence[Column], gap: int, width: int) -> list[Column]:
    """The columns with labels that wrap where it does not harm their numbers."""
    room = max(1, width - _width([column for column in columns if column.name != "variant"], gap) - gap)
    return [
        replace(column, cells=[_wrapped(label, room) for label in column.cells]) if column.name == "variant" else column
        for column in columns
    ]


def _wrapped(label: str, width: int) -> str:
    """A label in lines; a word that is too long for one is broken after its dots, and then after its equals sign."""
    lines = textwrap.wrap(label, width, break_long_words=False, break_on_hyphens=False)
    for mark in (r"\.(?=[a-z])", "="):
        broken = [re.sub(mark, "\\g<0>\n", line) if len(line) > width else line for line in lines]
        lines = [line for each in broken for line in each.split("\n")]
    return "\n".join(lines)


def _parts(columns: Sequence[Column], gap: int, width: int) -> list[list[Column]]:
    """Columns that fit side by side, with the first one in every part."""
    parts = [[*columns[:1]]]
    for column in columns[1:]:
        if _width([*parts[-1], column], gap) > width and len(parts[-1]) > 1:
            parts.append([*columns[:1]])
        parts[-1].append(column)
    return parts


def columns(comparison: Comparison, rows: Sequence[Row]) -> list[Column]:
    """The columns of the table for some of its rows."""
    return [
        _numbers("rank", "{:.0f}", [row.rank for row in rows]),
        Column("variant", [row.label for row in rows], is_text=True),
        _numbers("seeds", "{:.0f}", [len(row.runs) for row in rows]),
        _estimates(comparison.metric.removeprefix("best/"), "", [row.mean for row in rows]),
        Column("verdict", [row.verdict for row in rows], is_text=True),
        _estimates("difference from best", "+", [row.difference for row in rows]),
        Column("p", [_p(row.p) for row in rows], _sortable(row.p for row in rows)),
        _numbers("test", "{:.4f}", [row.test_accuracy for row in rows]),
        *(
            Column(name, [_cost(row, cost) for row in rows], _sortable(row.costs.get(cost) for row in rows))
            for cost, name in COSTS.items()
        ),
    ]


def notes(comparison: Comparison) -> list[str]:
    """The notes of the comparison, and the meaning of its marks."""
    marked = any(row.pareto for row in comparison.rows)
    crowded = any(row.beside_others and "train_seconds" in row.costs for row in comparison.rows)
    legends = [*([_LEGEND] if marked and len(comparison.rows) > 1 else []), *([_CROWDED_LEGEND] if crowded else [])]
    return [*comparison.notes, *legends]


def _numbers(name: str, template: str, values: Sequence[float | None]) -> Column:
    return Column(name, ["" if value is None else template.format(value) for value in values], _sortable(values))


def _estimates(name: str, sign: str, estimates: Sequence[Estimate | None]) -> Column:
    """A column of numbers with their intervals."""
    known = [None if found is None or math.isnan(found.value) else found for found in estimates]
    cells = ["" if found is None else _estimate(found, sign) for found in known]
    return Column(name, cells, _sortable(None if found is None else found.value for found in known))


def _sortable(values: Iterable[float | None]) -> list[float | str]:
    return ["" if value is None else value for value in values]


def _estimate(estimate: Estimate, sign: str) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{sign}.4f}"
    return f"{estimate.value:{sign}.4f} [{estimate.low:{sign}.4f}, {estimate.high:{sign}.4f}]"


def _p(p: float | None) -> str:
    return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _cost(row: Row, cost: str) -> str:
    if cost not in row.costs:
        return ""
    value = row.costs[cost]
    text = f"{value:.1f}" if cost == "train_seconds" else f"{value:,.0f}"
    crowded = cost == "train_seconds" and row.beside_others
    return text + (_MARK if cost in row.pareto else _CROWDED if crowded else " ")
