"""What is seen of a sweep while it runs: one live table on a terminal, plain prefixed lines elsewhere."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from statistics import median
from typing import TextIO, TypeVar

from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import track
from rich.table import Table
from rich.text import Text

from experiments.config.configuration import Configuration
from experiments.sweeps import worker
from experiments.sweeps.jobs import DIVERGED, FINISHED, PRUNED, RUNNING, Job

_MOST_SHOWN = 8  # jobs that have ended, beside the running ones
_WORTH_A_LINE = 20  # checked jobs
T = TypeVar("T")


class Console(RichConsole):
    """A console whose reader may go away, as `head` does, without ending the sweep."""

    def on_broken_pipe(self) -> None:
        """Says no more."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Display:
    """Shows jobs as they start, speak and end."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        # Where nobody looks at it, a table may be as wide as its content.
        self.console = Console(file=sys.stdout, highlight=False, markup=False, width=None if terminal else 200)
        self.begun: dict[int, float] = {}
        self.said: dict[int, Mapping[str, float]] = {}
        self.lasted: list[float] = []
        self.order: list[Job] = []  # as they started

    def say(self, text: str) -> None:
        """Prints a line."""
        self.console.print(Text(text), soft_wrap=True)

    def show(self, table: Table) -> None:
        """Prints a table between empty lines."""
        self.console.print()
        self.console.print(table)
        self.console.print()

    def progress(self, what: str, of: Iterable[T], total: int) -> Iterator[T]:
        """Goes through `of` and shows how far it is."""
        if self.console.is_terminal:
            return iter(track(of, description=what, total=total, console=self.console, transient=True))
        if total > _WORTH_A_LINE:
            self.say(f"{what}: {total:,} jobs")
        return iter(of)

    def busy(self, what: str) -> AbstractContextManager[object]:
        """Says what takes its time, on a terminal."""
        return self.console.status(what) if self.console.is_terminal else nullcontext()

    def live(self, total: int, n_jobs: int, metric: str) -> AbstractContextManager[object]:
        """Shows how far the jobs are as long as it is open, on a terminal.

        Args:
            total: jobs to run.
            n_jobs: at once.
            metric: of an epoch, to show.
        """
        if not self.console.is_terminal:
            return nullcontext()
        picture = partial(self._picture, total, n_jobs, metric)
        return Live(get_renderable=picture, console=self.console, refresh_per_second=2)

    def started(self, job: Job) -> None:
        """A job has begun."""
        self.begun[job.number] = time.monotonic()
        self.order.append(job)
        self._line(job, "started")

    def spoke(self, job: Job, message: Mapping[str, float]) -> None:
        """A job has reached the end of an epoch."""
        self.said[job.number] = message
        self._line(job, epoch_line(message))

    def ended(self, job: Job) -> None:
        """A job is over."""
        self.lasted.append(time.monotonic() - self.begun[job.number])
        self._line(job, f"{_outcome(job)}, {self.lasted[-1]:.1f} s")

    def known(self, job: Job) -> None:
        """A job need not run, as its result is there."""
        self.say(f"[{job.number}] {job.label}: an equal run is there: {_outcome(job)}")

    def _line(self, job: Job, text: str) -> None:
        if not self.console.is_terminal:
            self.say(f"[{job.number}] {job.label}: {text}")

    def _picture(self, total: int, n_jobs: int, metric: str) -> RenderableType:
        table = Table("job", "variant", "epoch", metric, "time", "state", box=None, pad_edge=False)
        running = [job for job in self.order if job.state == RUNNING]
        ended = [job for job in self.order if job.state != RUNNING][-_MOST_SHOWN:]
        for job in [*ended, *running]:
            said = self.said.get(job.number)
            seconds = job.run.seconds if job.run and job.run.seconds else time.monotonic() - self.begun[job.number]
            table.add_row(
                str(job.number),
                job.label,
                f"{said['epoch']:.0f}/{said['epochs']:.0f}" if said else "",
                f"{said[metric]:.4f}" if said else "",
                f"{seconds:.0f} s",
                Text(job.state, style=_STYLES.get(job.state, "red")),
            )
        return Group(table, Text(self._left(total, n_jobs), style="bold"))

    def _left(self, total: int, n_jobs: int) -> str:
        waiting = max(0, total - len(self.order))
        running = [job for job in self.order if job.state == RUNNING]
        head = f"{len(self.order) - len(running)} of {len(self.order) + waiting} jobs done, {len(running)} running"
        if not self.lasted:
            return head
        typical = median(self.lasted)
        now = time.monotonic()
        rest = [max(0.0, typical - (now - self.begun[job.number])) for job in running]
        seconds = max(max(rest, default=0.0), (sum(rest) + waiting * typical) / n_jobs)
        return f"{head}, about {_duration(seconds)} left"


def _outcome(job: Job) -> str:
    why = f": {job.reason}" if job.reason else ""
    value = f", {job.configuration.cfg.objective} {job.objective:.4f}" if job.objective is not None else ""
    return f"{job.state}{why}{value}"


_STYLES = {FINISHED: "green", PRUNED: "green", RUNNING: "cyan", DIVERGED: "yellow"}


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def epoch_line(message: Mapping[str, float]) -> str:
    """An epoch in words."""
    metric = next(name for name in message if name.startswith("val_"))
    return f"epoch {message['epoch']:.0f}/{message['epochs']:.0f}, {metric} {message[metric]:.4f}"


def teller(configuration: Configuration, console: TextIO) -> Callable[[int, Mapping[str, float]], bool]:
    """In a job: tells the launching process of every epoch, or where that does not listen prints a line.

    Args:
        configuration: of the job.
        console: standard output as it was before the job's own output went to a file.
    """
    cfg = configuration.cfg
    metric = cfg.objective

    def tell(epoch: int, metrics: Mapping[str, float]) -> bool:
        message = {"epoch": epoch, "epochs": cfg.epochs, metric: metrics[metric]}
        if not worker.say(message):
            print(f"[{cfg.tracking.job}] {configuration.title}: {epoch_line(message)}", file=console, flush=True)
        return False

    return tell
