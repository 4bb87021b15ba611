"""The progress of a sweep: one live table on a terminal, a line per event elsewhere."""

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from statistics import median
from typing import TextIO, TypeVar

from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import track
from rich.table import Table
from rich.text import Text

from experiments.config.configuration import Configuration
from experiments.config.names import names
from experiments.sweeps import worker
from experiments.sweeps.jobs import Job, State, counts

_WORTH_A_LINE = 20  # checked jobs
T = TypeVar("T")


class Console(RichConsole):
    """A console whose reader may go away, as `head` does, without ending the sweep."""

    def on_broken_pipe(self) -> None:
        """Prints nothing more."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Display:
    """Shows jobs as they start, finish epochs and end."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        # Where nobody looks at it, a table may be as wide as its content.
        self.console = Console(file=sys.stdout, highlight=False, markup=False, width=None if terminal else 200)
        self.start_times: dict[int, float] = {}
        self.latest_epochs: dict[int, Mapping[str, float]] = {}
        self.epoch_times: dict[int, list[float]] = {}  # when epochs have ended
        self.durations: list[float] = []
        self.order: list[Job] = []  # as they started
        self.standings: list[str] = []  # lines below the live table

    def print(self, text: str) -> None:
        """Prints a line."""
        self.console.print(Text(text), soft_wrap=True)

    def show(self, table: Table) -> None:
        """Prints a table between empty lines."""
        self.console.print()
        self.console.print(table)
        self.console.print()

    def progress(self, what: str, of: Iterable[T], total: int) -> Iterator[T]:
        """Iterates over `of` with a progress bar."""
        if self.console.is_terminal:
            return iter(track(of, description=what, total=total, console=self.console, transient=True))
        if total > _WORTH_A_LINE:
            self.print(f"{what}: {total:,} jobs")
        return iter(of)

    def status(self, what: str) -> AbstractContextManager[object]:
        """Shows on a terminal what is being waited for."""
        return self.console.status(what) if self.console.is_terminal else nullcontext()

    def live(self, jobs: Sequence[Job], to_run: int, n_jobs: int, metric: str) -> AbstractContextManager[object]:
        """Shows a live table of the jobs on a terminal as long as it is open.

        Args:
            jobs: of the sweep, also those of earlier calls and those that are still to come; the best one is marked.
            to_run: how many will be started.
            n_jobs: jobs at a time.
            metric: metric of an epoch to show.
        """
        if not self.console.is_terminal:
            return nullcontext()
        live_table = partial(self._live_table, jobs, len(self.order) + to_run, n_jobs, metric)
        return Live(get_renderable=live_table, console=self.console, refresh_per_second=2)

    def started(self, job: Job) -> None:
        """Shows that a job has started."""
        self.start_times[job.number] = time.monotonic()
        self.order.append(job)
        self._line(job, "started")

    def epoch_ended(self, job: Job, message: Mapping[str, float]) -> None:
        """Shows the epoch that a job has finished."""
        self.latest_epochs[job.number] = message
        self.epoch_times.setdefault(job.number, []).append(time.monotonic())
        self._line(job, epoch_line(message))

    def ended(self, job: Job) -> None:
        """Shows how a job has ended."""
        self.durations.append(time.monotonic() - self.start_times[job.number])
        self._line(job, f"{_outcome(job)}, {self.durations[-1]:.1f} s")

    def skipped(self, job: Job) -> None:
        """Shows that a job is not run because its result exists."""
        self.print(f"[{job.number}] {job.label}: an equal run exists: {_outcome(job)}")

    def _line(self, job: Job, text: str) -> None:
        if not self.console.is_terminal:
            self.print(f"[{job.number}] {job.label}: {text}")

    def _live_table(self, jobs: Sequence[Job], total: int, n_jobs: int, metric: str) -> RenderableType:
        standings = self.standings[-max(1, self.console.height // 4) :]
        best = _best(jobs)
        shown = self._shown(self.console.height - len(standings) - 4, best)  # header, rest, summary, and the cursor
        header = ["job", "variant", "epoch", metric, "time", "state"]
        rows = [[*self._cells(job, metric), "best so far" if job is best else job.state] for job in shown]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        room = self.console.width - sum(widths) + widths[1] - 2 * (len(widths) - 1)
        table = Table(*header, box=None, pad_edge=False)
        for job, (number, label, *cells, state) in zip(shown, rows, strict=True):
            style = "bold green" if job is best else _STYLES.get(job.state, "red")
            table.add_row(number, _shortened(label, room), *cells, Text(state, style))
        numbers = {job.number for job in shown}
        hidden = [job for job in self.order if job.number not in numbers]
        lines = [Text(line, no_wrap=True, overflow="ellipsis") for line in standings]
        lines += [Text(f"Not shown: {counts(hidden)}")] if hidden else []
        return Group(table, *lines, Text(self._summary(total, n_jobs), style="bold"))

    def _cells(self, job: Job, metric: str) -> tuple[str, str, str, str, str]:
        """Number, label, epoch, value of the metric and duration of a job."""
        epoch = self.latest_epochs.get(job.number)
        value = job.objective if job.objective is not None else epoch[metric] if epoch else None
        seconds = job.run.seconds if job.run and job.run.seconds else self._elapsed(job)
        return (
            str(job.number),
            job.label,
            f"{epoch['epoch']:.0f}/{epoch['epochs']:.0f}" if epoch else "",
            "" if value is None else f"{value:.4f}",
            f"{seconds:.0f} s",
        )

    def _shown(self, room: int, best: Job | None) -> list[Job]:
        """The jobs that the screen has room for: the best one, the running ones, and those that have ended last."""
        first = [best] if best else []
        running = [job for job in self.order if job.state == State.RUNNING][: max(1, room - len(first))]
        ended = [job for job in self.order if job.state != State.RUNNING]
        last = ended[max(0, len(ended) - max(0, room - len(first) - len(running))) :]
        return [*(first if best not in last else []), *last, *running]

    def _elapsed(self, job: Job) -> float:
        """Seconds since the job has started."""
        return time.monotonic() - self.start_times[job.number]

    def _summary(self, total: int, n_jobs: int) -> str:
        waiting = max(0, total - len(self.order))
        running = [job for job in self.order if job.state == State.RUNNING]
        head = f"{len(self.order) - len(running)} of {len(self.order) + waiting} jobs done, {len(running)} running"
        by_epochs = [self._by_epochs(job) for job in running]
        durations = self.durations or [duration for duration in by_epochs if duration]
        if not durations or not (running or waiting):
            return head
        typical = median(durations)
        # A job may take longer than most, as its own epochs tell.
        rest = [
            max(typical - self._elapsed(job), duration - self._elapsed(job), 0.0)
            for job, duration in zip(running, by_epochs, strict=True)
        ]
        seconds = max(max(rest, default=0.0), (sum(rest) + waiting * typical) / n_jobs)
        return f"{head}, about {_duration(seconds)} left" if seconds >= 1 else f"{head}, almost done"

    def _by_epochs(self, job: Job) -> float:
        """Seconds that a job takes if its other epochs are like those after its first one; 0 if there is none."""
        ended = self.epoch_times.get(job.number, [])
        if len(ended) < 2:  # the first one takes longer
            return 0.0
        message = self.latest_epochs[job.number]
        rest = (message["epochs"] - message["epoch"]) * (ended[-1] - ended[0]) / (len(ended) - 1)
        return ended[-1] - self.start_times[job.number] + rest


def _shortened(label: str, room: int) -> str:
    """A label that fits one line: with the last part of each key, or by its end, which differs most."""
    if len(label) > room:
        label = re.sub(r"[^\s=]+\.(?=\w+=)", "", label)
    return label if len(label) <= room else f"…{label[-max(1, room - 1) :]}"


def _best(jobs: Sequence[Job]) -> Job | None:
    """The finished job with the best value of the objective."""
    found = [job for job in jobs if job.state == State.FINISHED and job.objective is not None]
    mode = next((job.plan.mode for job in found if job.plan), "max")
    return (max if mode == "max" else min)(found, key=lambda job: job.objective or 0.0, default=None)


def _outcome(job: Job) -> str:
    why = f": {job.reason}" if job.reason else ""
    value = f", {job.configuration.cfg.objective} {job.objective:.4f}" if job.objective is not None else ""
    return f"{job.state}{why}{value}"


_STYLES = {State.FINISHED: "green", State.PRUNED: "green", State.RUNNING: "cyan", State.DIVERGED: "yellow"}


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def epoch_line(message: Mapping[str, float]) -> str:
    """One line on an epoch."""
    metric = next(name for name in message if name.startswith("val_"))
    return f"epoch {message['epoch']:.0f}/{message['epochs']:.0f}, {metric} {message[metric]:.4f}"


def epoch_reporter(configuration: Configuration, console: TextIO) -> Callable[[int, Mapping[str, float]], None]:
    """The function that reports each epoch of a job to the launching process, or prints it if that does not listen.

    Args:
        configuration: of the job.
        console: standard output as it was before the job's own output went to a file.
    """
    cfg = configuration.cfg
    metric = cfg.objective
    name = cache(lambda: names(configuration, cfg.tracking.job.swept).run)  # most jobs never need it

    def report_epoch(epoch: int, metrics: Mapping[str, float]) -> None:
        message = {"epoch": epoch, "epochs": cfg.epochs, metric: metrics[metric]}
        if not worker.report(message):
            print(f"[{cfg.tracking.job.number}] {name()}: {epoch_line(message)}", file=console, flush=True)

    return report_epoch
