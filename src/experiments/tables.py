"""Leaderboards as files and tables to read."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from experiments.compare import OldRow as Row

_MOST_ROWS = 20  # of a note: MLflow cuts it at 8,000 characters


def as_csv(rows: Sequence[Row], metric: str) -> str:
    """Every row, numbers in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_head(metric))
    for row in rows:
        spread = "" if row.standard_deviation is None else row.standard_deviation
        writer.writerow([row.rank, row.label, row.seeds, row.mean, spread, row.best_epoch, row.seconds, row.run_id])
    return text.getvalue()


def as_markdown(rows: Sequence[Row], metric: str, most: int | None = None) -> str:
    """A table in Markdown, of at most so many rows."""
    head = ["rank", "what differs", "seeds", metric, "best epoch", "time", "run"]
    lines = [head, ["---:", "---", "---:", "---:", "---:", "---:", "---"], *map(_cells, rows[:most])]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    table = "\n".join(f"| {' | '.join(line)} |" for line in escaped)
    left_out = len(rows) - (most or len(rows))
    return table + (f"\n\nand {left_out} more in leaderboard.md" if left_out > 0 else "") + "\n"


def note(rows: Sequence[Row], metric: str) -> str:
    """The head of the leaderboard, short enough for a description."""
    return as_markdown(rows, metric, _MOST_ROWS)


def as_table(rows: Sequence[Row], metric: str) -> Table:
    """A table for the console."""
    table = Table(box=None, pad_edge=False)
    for name in ("rank", "what differs", "seeds", metric, "best epoch", "time", "run"):
        words = name == "what differs"  # alone may be broken: a broken run id could not be copied
        table.add_column(
            name, justify="left" if name in ("what differs", "run") else "right", no_wrap=not words, overflow="fold"
        )
    for row in rows:
        table.add_row(*_cells(row))
    return table


def write_search_history(file: Path, trials: Sequence[tuple[int, float, bool]], metric: str, mode: str) -> None:
    """Draws what every trial (number, value, pruned or not) has reached."""
    from experiments import plots  # matplotlib, which no other sweep needs

    plots.search_history(trials, metric, mode).savefig(file)


def _head(metric: str) -> list[str]:
    return ["rank", "what_differs", "seeds", metric, "standard_deviation", "best_epoch", "seconds", "run_id"]


def _cells(row: Row) -> list[str]:
    spread = f" ± {row.standard_deviation:.4f}" if row.standard_deviation is not None else ""
    value = f"{row.mean:.4f}{spread}"
    return [
        str(row.rank),
        row.label,
        str(row.seeds),
        value,
        f"{row.best_epoch:.3g}",
        f"{row.seconds:.1f} s",
        row.run_id,
    ]
