"""A progress bar for the terminal: a table of the epochs, whose last row is the epoch under way."""

import time
from collections.abc import Mapping

import keras
from rich.live import Live
from rich.text import Text

_INTERVAL = 0.1  # seconds from one update to the next
_NUMBER = len("0.0000 ")  # characters
_BAR = range(8, 31)  # characters


class ProgressBar(keras.callbacks.Callback):
    """Shows each epoch as a row of a table: its number, steps, metrics and time.

    A row never wraps. Where the terminal is too narrow for all metrics, the last ones are left out.

    Args:
        live: the display, which must be started; what others print while it is shown stands above it.
    """

    async_safe = True  # so that Keras continues training meanwhile

    def __init__(self, live: Live) -> None:
        super().__init__()
        self.live = live
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
        cells["time"] = f"{time.monotonic() - self.started:.1f} s"
        widths = {name: max(len(name), _NUMBER) for name in cells}
        widths |= {"epoch": max(5, len(f"{epochs}/{epochs}")), "steps": max(5, len(f"{steps}/{steps}"))}
        gap = "  " if sum(widths.values()) + 2 * len(widths) <= self.live.console.width else " "
        header = row = ""
        for name, cell in cells.items():
            if len(row) + len(gap) + widths[name] > self.live.console.width:
                break
            header += f"{gap if header else ''}{name:>{widths[name]}}"
            row += f"{gap if row else ''}{cell:>{widths[name]}}"
        if header != self.header:
            self.header = header
            self.live.console.print(Text(header, "bold"))
        return Text(row, no_wrap=True)


def _shown(logs: Mapping[str, float] | None) -> list[str]:
    """The metrics that are not of one class only, of which there may be many."""
    return [name for name in logs or {} if "/" not in name]


def _number(value: float) -> str:
    """A number in at most seven characters."""
    return f"{value:.4f}" if value == 0 or 0.001 <= abs(value) < 100 else f"{value:.1e}"
