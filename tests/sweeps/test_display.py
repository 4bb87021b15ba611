"""The live table of a sweep: what it shows on screens of several sizes, and how long it says the rest takes."""

import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from experiments.config.compose import compose
from experiments.config.configuration import Plan
from experiments.sweeps import display
from experiments.sweeps.jobs import Job, State
from experiments.tracking.runs import StoredRun

PLAN = Plan("variant", "fingerprint", "data", "code", 100, {}, "max")


@pytest.fixture(scope="module")
def configuration():
    return compose([])


@pytest.fixture
def clock(monkeypatch):
    """The time, in seconds."""
    found = SimpleNamespace(now=0.0)
    monkeypatch.setattr(display, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


class Screen:
    """The live table of jobs on a terminal of some size."""

    def __init__(self, configuration, jobs, *, width=80, height=24, n_jobs=2, to_run=None, mode="max"):
        words = ("model.dropout=0.25 optimizer.learning_rate=0.001 seed=" + str(number) for number in range(jobs))
        self.jobs = [
            Job(
                number,
                (),
                {},
                configuration,
                dict(word.split("=") for word in label.split(" ")),
                replace(PLAN, mode=mode),
            )
            for number, label in enumerate(words)
        ]
        self.console = Console(
            file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None, record=True
        )
        self.display = display.Display()
        self.display.console = self.console
        self.live = self.display.live(self.jobs, jobs if to_run is None else to_run, n_jobs, "val_accuracy")

    def start(self, *numbers):
        for number in numbers:
            self.jobs[number].state = State.RUNNING
            self.display.started(self.jobs[number])

    def epoch(self, number, epoch, epochs=10, value=0.5):
        self.display.epoch_ended(self.jobs[number], {"epoch": epoch, "epochs": epochs, "val_accuracy": value})

    def end(self, number, value, seconds=10.0, state=State.FINISHED):
        metrics = {"best/val_accuracy": value}
        self.jobs[number].run = StoredRun("id", "name", "FINISHED", "", "1", {}, {}, metrics, seconds)
        self.jobs[number].state = state
        if number in self.display.start_times:
            self.display.ended(self.jobs[number])

    def lines(self):
        self.console.print(self.live.get_renderable())
        return [line.rstrip() for line in self.console.export_text().splitlines()]


@pytest.mark.parametrize(("mode", "best"), [("max", 1), ("min", 0)])
def test_the_best_job_so_far_is_marked(clock, configuration, mode, best):
    screen = Screen(configuration, 4, mode=mode)
    for number, value in enumerate((0.90, 0.95, 0.92)):
        screen.start(number)
        screen.epoch(number, 10, value=value - 0.01)  # the last epoch need not be the best one
        screen.end(number, value)
    screen.start(3)
    screen.epoch(3, 2, value=0.99)
    states = ["best so far" if number == best else "finished" for number in range(3)]
    assert screen.lines() == [
        "job  variant                              epoch  val_accuracy  time  state",
        f"0    …ut=0.25 learning_rate=0.001 seed=0  10/10  0.9000        10 s  {states[0]}",
        f"1    …ut=0.25 learning_rate=0.001 seed=1  10/10  0.9500        10 s  {states[1]}",
        f"2    …ut=0.25 learning_rate=0.001 seed=2  10/10  0.9200        10 s  {states[2]}",
        "3    …ut=0.25 learning_rate=0.001 seed=3  2/10   0.9900        0 s   running",
        "3 of 4 jobs done, 1 running, almost done",
    ]


@pytest.mark.parametrize(
    ("width", "label"),
    [(64, "…ning_rate=0.001 seed=0"), (80, "dropout=0.25 learning_rate=0.001 seed=0"),
     (120, "model.dropout=0.25 optimizer.learning_rate=0.001 seed=0")],
)  # fmt: skip
def test_a_label_takes_one_line(clock, configuration, width, label):
    screen = Screen(configuration, 1, width=width)
    screen.start(0)
    _, row, summary = screen.lines()
    assert row.split("  ")[2].strip() == label and row.endswith("0 s   running")
    assert summary == "0 of 1 jobs done, 1 running"


def test_the_best_job_of_an_earlier_call_is_shown(clock, configuration):
    screen = Screen(configuration, 3, to_run=2)
    screen.end(0, 0.97)
    screen.start(1, 2)
    lines = screen.lines()
    assert [line.split()[0] for line in lines] == ["job", "0", "1", "2", "0"]
    assert lines[1].endswith("0.9700        10 s  best so far")
    assert lines[-1] == "0 of 2 jobs done, 2 running"


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 24), (80, 50), (80, 12)])
def test_it_fills_the_screen_and_counts_what_does_not_fit(clock, configuration, width, height):
    screen = Screen(configuration, 60, width=width, height=height)
    screen.display.standings = [f"variant {number} is out" for number in range(40)]
    for number in range(50):
        screen.start(number)
        clock.now += 10
        screen.end(number, 0.9 - 0.001 * number, state=State.FINISHED if number % 10 else State.FAILED)
    screen.start(50, 51)
    lines = screen.lines()
    assert len(lines) == height - 1 and max(map(len, lines)) <= width
    assert lines[1].split()[0] == "1" and lines[1].endswith("best so far")
    rows = [int(line.split()[0]) for line in lines[1:] if line[0].isdigit()][:-1]  # the last one is the summary
    assert rows == [1, *range(52 - len(rows) + 1, 52)]
    standings = [line for line in lines if line.startswith("variant")]
    assert standings == screen.display.standings[-len(standings) :] and len(standings) == height // 4
    failed, hidden = len([number for number in range(0, 50, 10) if number not in rows]), 52 - len(rows)
    assert lines[-2:] == [
        f"Not shown: {hidden} jobs: {hidden - failed} finished, {failed} failed",
        "50 of 60 jobs done, 2 running, about 50 s left",
    ]


def test_more_running_jobs_than_lines(clock, configuration):
    screen = Screen(configuration, 40, height=12, n_jobs=40)
    screen.start(*range(40))
    lines = screen.lines()
    assert len(lines) == 11
    assert lines[-2:] == ["Not shown: 32 jobs: 32 running", "0 of 40 jobs done, 40 running"]


def test_how_long_the_rest_takes(clock, configuration):
    screen = Screen(configuration, 5)
    left = []

    def look(now):
        clock.now = now
        left.append(screen.lines()[-1].partition(" running")[2])

    screen.start(0, 1)
    look(2)
    screen.epoch(0, 1)
    look(2)  # the first one says little
    clock.now = 4
    screen.epoch(0, 2)  # of ten, which end after 20 s: 16 more for each of these, and 20 for each of three that wait
    look(4)
    clock.now = 8
    screen.end(0, 0.9, seconds=8)
    screen.start(2)
    look(8)  # 8 for this one, two more wait
    clock.now = 16
    screen.end(2, 0.9, seconds=8)
    screen.start(3)
    look(16)
    clock.now = 24
    screen.end(3, 0.9, seconds=8)
    screen.start(4)
    look(31.5)
    look(60)  # nobody knows why the two take so long
    clock.now = 50
    screen.epoch(1, 1)
    clock.now = 60
    screen.epoch(1, 2)  # but one needs eight times 10 s
    look(60)
    look(100)
    look(500)
    screen.end(1, 0.9)
    screen.end(4, 0.9)
    look(501)
    assert left == [
        "", "", ", about 46 s left", ", about 12 s left", ", about 8 s left",
        ", almost done", ", almost done", ", about 80 s left", ", about 40 s left", ", almost done", "",
    ]  # fmt: skip
