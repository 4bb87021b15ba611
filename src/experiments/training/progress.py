"""A progress bar for the terminal: a table of the epochs, whose last row is the epoch under way."""

import time
from collections.abc import Mapping

import keras
from rich.live import Live
from rich.text import Text

_INTERVAL = 0.1  # seconds from one update to the next
_NUMBER = len("0.0000 ")  # characters
_LONGEST_NAME = len("val_accuracy")  # characters of a shortened name
_BAR = range(8, 31)  # characters


class ProgressBar(keras.callbacks.Callback):
    """Shows each epoch as a row of a table: its number, steps, metrics and time.

    A row never wraps. Where the terminal is too narrow for it, long names are shortened, and then metrics are left out.

    Args:
        live: the display, which must be started; what others print while it is shown stands above it.
        objective: the metric that is left out last.
    """

    async_safe = True  # so that Keras continues training meanwhile

    def __init__(self, live: Live, objective: str) -> None:
        super().__init__()
        self.live = live
        self.objective = objective
        self.metrics: dict[str, None] = {}  # their names, in order
        self.header = ""

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Starts the row of the epoch."""
        self.epoch = epoch + 1
        self.started = time.monotonic()
        self.next_update = 0.0

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Updates the row, at most ten times a second."""
        step, steps = batch + 1, self.params["steps"]
        now = time.monotonic()
        if now < self.next_update and step < steps:
            return
        self.next_update = now + _INTERVAL
        for name in sorted(_shown(logs), key=lambda name: (name != "loss", name)):
            self.metrics |= {name: None, f"val_{name}": None}
        row = self._row(step, logs or {})
        room = min(self.live.console.width - len(row) - 2, _BAR[-1])
        if room >= _BAR[0]:
            done = room * step // steps
            row.append("  ").append("━" * done, "green").append("━" * (room - done), "bright_black")
        self.live.update(row, refresh=True)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Prints the finished row, which stays."""
        self.metrics |= dict.fromkeys(_shown(logs))
        row = self._row(self.params["steps"], logs or {})
        self.live.update("", refresh=True)
        self.live.console.print(row)

    def _row(self, step: int, logs: Mapping[str, float]) -> Text:
        """A row that fits the terminal; prints the header if it has changed."""
        epochs, steps = self.params["epochs"], self.params["steps"]
        cells = {"epoch": f"{self.epoch}/{epochs}", "steps": f"{step}/{steps}"}
        cells |= {name: _number(logs[name]) if name in logs else "" for name in self.metrics}
        cells["time"] = _seconds(time.monotonic() - self.started)
        counts = {"epoch": len(f"{epochs}/{epochs}"), "steps": len(f"{steps}/{steps}")}
        gap, columns = self._columns([*cells], counts)
        header = gap.join(f"{title:>{width}}" for title, width in columns.values())
        if header != self.header:
            self.header = header
            self.live.console.print(Text(header, "bold", no_wrap=True, overflow="crop"))
        row = gap.join(f"{cells[name]:>{width}}" for name, (_, width) in columns.items())
        return Text(row, no_wrap=True, overflow="crop")

    def _columns(self, names: list[str], counts: Mapping[str, int]) -> tuple[str, dict[str, tuple[str, int]]]:
        """The gap between columns, and the title and width of each column that fits the terminal."""
        dispensable = sorted(self.metrics, key=self._rank)
        while True:
            for shorten, gap in ((str, "  "), (str, " "), (_shortened, " ")):
                titles = {name: shorten(name) for name in names}
                columns = {name: (title, max(len(title), counts.get(name, _NUMBER))) for name, title in titles.items()}
                width = sum(width for _, width in columns.values()) + len(gap) * (len(columns) - 1)
                if width <= self.live.console.width:
                    return gap, columns
            if not dispensable:
                return gap, columns
            names.remove(dispensable.pop())

    def _rank(self, name: str) -> int:
        """How dispensable a metric is: the highest rank is left out first."""
        # The learning rate and the like, metrics of the training images, those of the validation images, the losses,
        # and at last the objective.
        if name in (self.objective, "loss", "val_loss"):
            return int(name != self.objective)
        return 2 if name.startswith("val_") else 3 if f"val_{name}" in self.metrics else 4


def _shown(logs: Mapping[str, float] | None) -> list[str]:
    """The metrics that are not of one class only, of which there may be many."""
    return [name for name in logs or {} if "/" not in name]


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _number(value: float) -> str:
    """A number in at most seven characters."""
    text = f"{value:.4f}"
    if len(text) <= _NUMBER and (value == 0 or abs(value) >= 0.001):
        return text
    return f"{value:.{int(value > 0)}e}"


def _seconds(seconds: float) -> str:
    """A duration in at most seven characters."""
    return f"{seconds:.1f} s" if seconds < 999 else f"{seconds:.0f} s"
