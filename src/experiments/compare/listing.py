"""Lists runs and sweeps, the newest first, as tables and as JSON."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.filesize import decimal
from rich.table import Table

from experiments.compare.names import find_sweeps
from experiments.compare.variants import differences, swept_keys
from experiments.errors import ExperimentError
from experiments.tracking import runs, sizes
from experiments.tracking.runs import StoredRun
from experiments.tracking.store import nothing_recorded, shown_uri

LAST = 20  # runs or sweeps that are shown by default
_OF_RUNS = "tags.`sweep.name` IS NULL"
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


@dataclass(frozen=True)
class Entry:
    """A run, or a sweep by its parent, as it is listed."""

    run: StoredRun
    differs: Mapping[str, str]  # key -> value that tells a run from the others; of a sweep, its swept keys
    best: StoredRun | None  # whose results count: the run itself, or the best run of a sweep
    bytes: int  # of its artifacts; of a sweep, with those of its own runs
    jobs: int = 0  # of a sweep

    @property
    def objective(self) -> str | None:
        """The metric that the best epoch was chosen by."""
        return self.best.params.get("objective", "val_accuracy") if self.best else None

    @property
    def value(self) -> float | None:
        """The objective in the best epoch."""
        return self.best.metrics.get(f"best/{self.objective}") if self.best else None

    @property
    def test_accuracy(self) -> float | None:
        """The accuracy on the test set."""
        return self.best.metrics.get("test/accuracy") if self.best else None

    @property
    def status(self) -> str:
        """How it has ended, in a word, with the reason of a failure."""
        for word in ("diverged", "superseded", "pruned"):
            if word in self.run.tags:
                return word
        reason = self.run.tags.get("reason", "")
        return self.run.status.lower() + (f" ({reason})" if reason else "")


def list_runs(query: str = "", sweep: str = "", last: int | None = None) -> tuple[list[Entry], bool]:
    """The newest runs, and whether there are more.

    Args:
        query: a filter that they must match; empty for none.
        sweep: whose runs to list, in the order of its jobs; empty for all runs.
        last: how many at most; by default 20, or all of a sweep.

    Raises:
        ExperimentError: nothing is recorded, there is no such sweep, or the filter is refused.
    """
    _check_recorded()
    if sweep:
        (parent,) = find_sweeps([sweep])
        found = runs.runs_of(parent, query)
        most = last or len(found)
        more, found = len(found) > most, found[-most:]
    else:
        most = last or LAST
        found = runs.search_runs(f"{query} and {_OF_RUNS}" if query else _OF_RUNS, most + 1)
        more, found = len(found) > most, found[:most]
    entries = zip(found, differences(found), sizes.sizes(found), strict=True)
    return [Entry(run, differs, run, size) for run, differs, size in entries], more


def list_sweeps(last: int | None = None) -> tuple[list[Entry], bool]:
    """The newest sweeps, at most 20 or so many, and whether there are more.

    Raises:
        ExperimentError: nothing is recorded.
    """
    _check_recorded()
    most = last or LAST
    found = runs.sweeps(most + 1)
    parents = found[:most]
    ids = [run_id for parent in parents if (run_id := parent.tags.get("best_run_id"))]
    best = runs.by_ids(ids)
    return [_sweep(parent, best.get(parent.tags.get("best_run_id", ""))) for parent in parents], len(found) > most


def _sweep(parent: StoredRun, best: StoredRun | None) -> Entry:
    jobs = runs.job_list(parent)
    size = sum(sizes.sizes([parent, *runs.own_runs(parent)]))
    return Entry(parent, dict.fromkeys(swept_keys(jobs), ""), best, size, len(jobs))


def _check_recorded() -> None:
    if nothing_recorded():
        raise ExperimentError(f"Nothing is recorded in {shown_uri()} yet.", advice="Start with: experiments train")


def as_json(entry: Entry) -> dict[str, Any]:
    """A run or sweep as an object of the JSON output."""
    run = entry.run
    is_sweep = "sweep.name" in run.tags
    values: dict[str, Any] = {
        "run_id": run.run_id,
        "name": run.name,
        "differs": list(entry.differs) if is_sweep else dict(entry.differs),
        "objective": entry.objective,
        "value": entry.value,
        "test_accuracy": entry.test_accuracy,
        "seconds": run.seconds,
        "status": entry.status,
        "bytes": entry.bytes,
        "started": datetime.fromtimestamp(run.started, UTC).isoformat(timespec="seconds"),
    }
    if is_sweep:
        return values | {"jobs": entry.jobs, "best_run_id": run.tags.get("best_run_id")}
    seed = run.params.get("seed")
    return values | {"seed": int(seed) if seed else None, "sweep": run.tags.get("sweep")}


def table(entries: Sequence[Entry]) -> Table:
    """The runs or sweeps as a table; among runs of several sweeps, without the values that most of them have."""
    counts = Counter(pair for entry in entries for pair in entry.differs.items())
    mixed = len({entry.run.tags.get("sweep") for entry in entries}) > 1
    usual = {pair for pair, count in counts.items() if mixed and 2 * count > len(entries)}
    of_sweeps = any("sweep.name" in entry.run.tags for entry in entries)
    shown = Table(box=None, pad_edge=False)
    shown.add_column("id", no_wrap=True)
    shown.add_column("sweep" if of_sweeps else "run", overflow="fold", min_width=16)
    shown.add_column("what differs", overflow="fold", min_width=16)
    for name in [*(["jobs"] if of_sweeps else []), "objective", "test", "seconds"]:
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("status", overflow="fold")
    for name in ("size", "age"):
        shown.add_column(name, justify="right", no_wrap=True)
    for entry in entries:
        pairs = [pair for pair in entry.differs.items() if pair not in usual]
        differs = " ".join(f"{key}={value}" if value else key for key, value in pairs)
        numbers = [entry.value, entry.test_accuracy]
        shown.add_row(
            entry.run.run_id[:8],
            entry.run.name,
            differs,
            *([str(entry.jobs)] if of_sweeps else []),
            *("" if number is None else f"{number:.4f}" for number in numbers),
            "" if entry.run.seconds is None else f"{entry.run.seconds:.1f}",
            entry.status,
            decimal(entry.bytes),
            _age(time.time() - entry.run.started),
        )
    return shown


def _age(seconds: float) -> str:
    unit, length = next(((unit, length) for unit, length in _UNITS if seconds >= length), _UNITS[-1])
    return f"{max(seconds, 0) / length:.0f} {unit}"
