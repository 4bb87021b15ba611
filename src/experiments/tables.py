"""Comparisons as tables: for the console, for a note in Markdown, and as CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.compare import COSTS, Comparison, Row
from experiments.errors import ExperimentError
from experiments.significance import Estimate

_MOST_ROWS = 20  # of a note: MLflow cuts it at 8,000 characters
_MARK = "*"
_LEGEND = f"{_MARK} no other variant is as good at a lower cost of this kind, or better at the same (Pareto front)."


@dataclass(frozen=True)
class _Column:
    name: str
    cells: list[str]
    words: bool = False  # may be broken over lines


def as_csv(comparison: Comparison) -> str:
    """Every variant, numbers in full."""
    text = io.StringIO()
    rows = [_values(comparison, row) for row in comparison.rows]
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _values(comparison: Comparison, row: Row) -> dict[str, object]:
    """Column of the CSV file -> value; None is an empty cell."""
    difference = row.difference
    return {
        "rank": row.rank,
        "what_differs": row.label,
        **{key: row.differing.get(key) for key in comparison.swept},
        "seeds": len(row.runs),
        comparison.metric: row.mean.value,
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
    """A table in Markdown, of at most so many rows, and what a reader must know of it."""
    columns = _columns(comparison, comparison.rows[:most])
    aligned = ["---" if column.words else "---:" for column in columns]
    lines = [[column.name for column in columns], aligned, *zip(*(column.cells for column in columns), strict=True)]
    escaped = [[cell.strip().replace("|", "\\|") for cell in line] for line in lines]
    table = "\n".join(f"| {' | '.join(line)} |" for line in escaped)
    left_out = len(comparison.rows) - (most or len(comparison.rows))
    more = [f"and {left_out} more in leaderboard.md"] if left_out > 0 else []
    notes = "\n".join(f"- {note}" for note in _notes(comparison))
    return "\n\n".join([table, *more, notes, f"Best run: {comparison.best_run.run_id}"]) + "\n"


def note(comparison: Comparison) -> str:
    """The head of the table, short enough for a description."""
    return as_markdown(comparison, _MOST_ROWS)


def show(comparison: Comparison, console: Console) -> None:
    """Prints the table, in two parts where it is wider than the console, and the notes."""
    columns = _columns(comparison, comparison.rows)
    whole = _table(columns)
    costs = 4  # columns at the end
    parts = [whole]
    if console.measure(whole).maximum > console.width:
        parts = [_table(columns[:-costs]), _table([columns[0], *columns[-costs:]])]
    for part in parts:
        console.print()
        console.print(part)
    console.print()
    for sentence in _notes(comparison):
        console.print(sentence, soft_wrap=True, markup=False, highlight=False)


def write(text: str, path: str) -> None:
    """Writes a file, whole or not at all.

    Raises:
        ExperimentError: it cannot be written.
    """
    file = Path(path)
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_text(text)
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ExperimentError(f"{path} cannot be written: {error.strerror}.") from error


def write_search_history(file: Path, trials: Sequence[tuple[int, float, bool]], metric: str, mode: str) -> None:
    """Draws what every trial (number, value, pruned or not) has reached."""
    from experiments import plots  # matplotlib, which no other sweep needs

    plots.search_history(trials, metric, mode).savefig(file)


def _table(columns: Sequence[_Column]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        words = column.words
        table.add_column(column.name, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*cells)
    return table


def _columns(comparison: Comparison, rows: Sequence[Row]) -> list[_Column]:
    """What a reader sees of some rows; the last four are the test set and the costs."""
    metric = comparison.metric.removeprefix("best/")
    return [
        _Column("rank", [str(row.rank) for row in rows]),
        _Column("what differs", [row.label for row in rows], words=True),
        _Column("seeds", [str(len(row.runs)) for row in rows]),
        _Column(metric, [_estimate(row.mean) for row in rows]),
        _Column("to the best", [_estimate(row.difference, "+") if row.difference else "" for row in rows]),
        _Column("p", ["" if row.p is None else "<0.001" if row.p < 0.001 else f"{row.p:.3f}" for row in rows]),
        _Column("verdict", [row.verdict for row in rows], words=True),
        _Column("test", ["" if row.test_accuracy is None else f"{row.test_accuracy:.4f}" for row in rows]),
        *(_Column(name, [_cost(row, cost) for row in rows]) for name, cost in zip(_COST_NAMES, COSTS, strict=True)),
    ]


_COST_NAMES = ("parameters", "MACs", "seconds")


def _notes(comparison: Comparison) -> list[str]:
    marked = any(row.pareto for row in comparison.rows)
    return [*comparison.notes, *([_LEGEND] if marked and len(comparison.rows) > 1 else [])]


def _estimate(estimate: Estimate, sign: str = "") -> str:
    """A number with its interval."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{sign}.4f}"
    return f"{estimate.value:{sign}.4f} [{estimate.low:{sign}.4f}, {estimate.high:{sign}.4f}]"


def _cost(row: Row, cost: str) -> str:
    if cost not in row.costs:
        return ""
    value = row.costs[cost]
    text = f"{value:.1f}" if cost == "train_seconds" else f"{value:,.0f}"
    return text + (_MARK if cost in row.pareto else " ")
