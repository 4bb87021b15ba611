"""The progress bar on a real pseudo-terminal: which rows it shows, and that none wraps."""

import contextlib
import fcntl
import io
import logging
import os
import pty
import re
import struct
import sys
import termios
import threading

import keras
import numpy as np
import pytest
from rich.console import Console
from rich.live import Live

from experiments.tracking.output import console_log
from experiments.training.batches import training_batches
from experiments.training.fit import Recipe, fit
from experiments.training.progress import ProgressBar

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), dtype=np.uint8)
LABELS = np.arange(50) % 3


@pytest.fixture
def terminal(monkeypatch):
    """Opens a pseudo-terminal of so many columns as standard output; gives a list that gets what was written."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)

    @contextlib.contextmanager
    def opened(columns):
        outer, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        before, shown = [os.dup(0), os.dup(1)], []
        reader = threading.Thread(target=read, args=(outer, shown))
        reader.start()
        os.dup2(inner, 0)  # Rich asks it for the width first
        os.dup2(inner, 1)
        with monkeypatch.context() as patch, open(inner, "w", encoding="utf-8") as stdout:
            patch.setattr(sys, "stdout", stdout)
            try:
                yield shown
            finally:
                for number, descriptor in enumerate(before):
                    os.dup2(descriptor, number)
                    os.close(descriptor)
        reader.join()
        os.close(outer)

    return opened


def read(outer, shown):
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while piece := os.read(outer, 65536):
            shown.append(piece)


def rows(shown):
    """What stood in one row of the terminal at some time."""
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", b"".join(shown).decode())
    return [row.rstrip() for row in re.split(r"[\r\n]+", text) if row.strip()]


def train(folder, *callbacks, epochs=2):
    """Trains a tiny model of 3 classes in 4 steps an epoch."""
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(3, "softmax")]
    recipe = Recipe(
        epochs=epochs,
        batch_size=16,
        optimizer=keras.optimizers.SGD(0.001),
        schedule=0.001,
        loss=keras.losses.CategoricalCrossentropy(),
        metrics=(),
        callbacks=callbacks,
        metric="val_accuracy",
        mode="max",
        keep="best",
    )
    return fit(
        keras.Sequential([keras.Input((8, 8, 1)), *layers]),
        training_batches(IMAGES, LABELS, 3, batch_size=16, epochs=epochs, seed=0),
        (IMAGES, LABELS),
        recipe,
        num_images=len(IMAGES),
        on_epoch=lambda epoch, metrics: False,
        progress_bar=True,
        folder=folder,
    )


class LeaveInLogs(keras.callbacks.Callback):
    """Leaves metrics in the logs of an epoch, as ReduceLROnPlateau does."""

    def __init__(self, *names):
        super().__init__()
        self.names = names

    def on_epoch_end(self, epoch, logs=None):
        logs |= dict.fromkeys(self.names, 0.00025)


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_every_epoch_is_one_row_that_does_not_wrap(terminal, tmp_path, columns):
    with terminal(columns) as shown:
        history = train(tmp_path).history
    lines = rows(shown)
    assert max(map(len, lines)) <= columns
    assert lines[0].split() == ["epoch", "steps", "loss", "val_loss", "accuracy", "val_accuracy", "time"]
    names = ("loss", "val_loss", "accuracy", "val_accuracy")
    for epoch in (1, 2):
        values = [f"{history[name][epoch - 1]:.4f}" for name in names]
        finished = [line.split()[:-2] for line in lines].count([f"{epoch}/2", "4/4", *values])
        assert finished == 1, lines
    assert any("━" in line for line in lines) == (columns > 60)


@pytest.mark.parametrize(
    ("columns", "extra"), [(60, []), (80, ["learning_rate"]), (140, ["learning_rate", "cosine_similarity"])]
)
def test_metrics_are_those_of_the_logs_as_far_as_they_fit(terminal, tmp_path, columns, extra):
    with terminal(columns) as shown:
        train(tmp_path, LeaveInLogs("learning_rate", "cosine_similarity"))
    lines = rows(shown)
    assert max(map(len, lines)) <= columns
    names = ["epoch", "steps", "loss", "val_loss", "accuracy", "val_accuracy"]
    header = next(line for line in reversed(lines) if line.split()[0] == "epoch")
    assert header.split()[:6] == names
    assert [name for name in header.split()[6:] if name != "time"] == extra
    assert lines[-1].count("2.5e-04") == len(extra)


def test_what_is_logged_meanwhile_stands_in_a_row_of_its_own(terminal, tmp_path):
    class Warn(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            logging.getLogger("experiments").warning("The store is lost.")

    with terminal(80) as shown, console_log(of_a_job=False):
        train(tmp_path, Warn(), epochs=1)
    lines = rows(shown)
    assert lines.count("The store is lost.") == 4
    assert [line for line in lines if "lost" in line and line != "The store is lost."] == []


def test_an_interrupted_training_leaves_the_terminal_usable(terminal, tmp_path):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    with terminal(80) as shown, pytest.raises(KeyboardInterrupt):
        train(tmp_path, Interrupt())
    written = b"".join(shown)
    assert written.rindex(b"\x1b[?25h") > written.rindex(b"\x1b[?25l")  # the cursor is shown again


MANY = ("accuracy", "auc", "balanced_accuracy", "loss", "macro_f1", "top_3_accuracy")


def printed(columns, *, epochs, steps, metrics=MANY, objective="val_accuracy", value=0.5):
    """The header and the row of an epoch on a terminal of so many columns."""
    file = io.StringIO()
    console = Console(file=file, width=columns, force_terminal=True, color_system=None)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        progress = ProgressBar(live, objective)
        progress.set_params({"epochs": epochs, "steps": steps})
        progress.on_epoch_begin(epochs - 1)
        progress.on_train_batch_end(steps - 1, dict.fromkeys(metrics, value))
        both = [*metrics, *(f"val_{name}" for name in metrics)]
        progress.on_epoch_end(epochs - 1, {**dict.fromkeys(both, value), "learning_rate": 0.001})
    lines = rows([file.getvalue().encode()])
    assert max(map(len, lines)) <= columns
    return [line.split() for line in lines if line.split()[0] == "epoch"][-1], lines[-1].split()


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (45, ["val_accuracy"]),
        (60, ["loss", "val_accuracy"]),
        (61, ["loss", "val_loss", "val_accuracy"]),
        (80, ["loss", "val_loss", "val_accuracy", "val_auc"]),
        (100, ["loss", "val_loss", "val_accuracy", "val_auc", "val_balance…", "val_macro_f1"]),
        (107, ["loss", "val_loss", "val_accuracy", "val_auc", "val_balanced_accuracy", "val_macro_f1"]),
        (114, ["loss", "val_loss", "val_accuracy", "val_auc", "val_balance…", "val_macro_f1", "val_top_3_a…"]),
    ],
)  # fmt: skip
def test_of_many_metrics_those_of_validation_images_are_left_out_last(columns, shown):
    header, row = printed(columns, epochs=10_000, steps=23_438)
    assert header == ["epoch", "steps", *shown, "time"]
    assert row == ["10000/10000", "23438/23438", *["0.5000"] * len(shown), "0.0", "s"]


def test_the_objective_is_left_out_last():
    header, _ = printed(50, epochs=10_000, steps=23_438, objective="val_top_3_accuracy")
    assert header == ["epoch", "steps", "val_top_3_accuracy", "time"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0000"), (99.99999, "1.0e+02"), (-12.3456, "-1e+01"), (-0.00012, "-1e-04"), (float("nan"), "nan"),
     (12345.6, "1.2e+04"), (0.00025, "2.5e-04"), (-1.25, "-1.2500")],
)  # fmt: skip
def test_numbers_fit_their_columns(value, text):
    header, row = printed(80, epochs=100_000, steps=9, metrics=("loss",), value=value, objective="val_loss")
    assert header == ["epoch", "steps", "loss", "val_loss", "learning_rate", "time"]
    assert row[2:5] == [text, text, "0.0010"]
