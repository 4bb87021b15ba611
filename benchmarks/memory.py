"""Peak memory of validation and test: a recorded run against a bare Keras script of the same model and images.

Prints the table of benchmarks/README.md. Peaks are the resident set of a process and what only its children have,
sampled (Linux): other programs that have loaded the same libraries make no difference.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

COMMAND = str(Path(sys.executable).parent / "experiments")
#: Side of an image -> images to train on and to test on, so that validation and test hold most of the data.
IMAGES = {28: (2000, 20000), 256: (120, 600), 320: (120, 400)}
BARE = """
import sys
import keras
import numpy as np
file, batch_size = sys.argv[1], int(sys.argv[2])
keras.utils.set_random_seed(0)
with np.load(file) as arrays:
    x_train, y_train, x_test, y_test = (arrays[name] for name in ("x_train", "y_train", "x_test", "y_test"))
layers = [keras.Input(x_train.shape[1:]), keras.layers.Rescaling(1 / 255)]
for filters in (32, 64):
    layers += [keras.layers.Conv2D(filters, 3, activation="relu"), keras.layers.MaxPooling2D(2)]
model = keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(2, activation="softmax")])
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(x_train, y_train, batch_size=batch_size, validation_split=0.1, verbose=0)
model.evaluate(x_test, y_test, batch_size=batch_size, verbose=0)
model.predict(x_test, batch_size=batch_size, verbose=0)
"""


def peak(words: Sequence[str], home: str) -> float:
    """Runs a command to its end, quietly, and returns the peak memory of it and its children in MB."""
    environment = os.environ | {"EXPERIMENTS_HOME": home}
    environment.pop("MLFLOW_TRACKING_URI", None)
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    watched, highest = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            # A process that has just been forked has the command and the memory of its parent, which counts once.
            others = (child for child in watched.children(recursive=True) if child.cmdline() != watched.cmdline())
            own = sum(child.memory_full_info().uss for child in others)
            resident = watched.memory_info().rss + own
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        highest = max(highest, resident)
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"exit status {process.returncode}: {' '.join(words)}")
    return highest / 2**20


def main() -> None:
    """Measures every combination of side and batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=list(IMAGES))
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 128])
    arguments = parser.parse_args()
    print("| side, pixels | batch_size | experiments, MB | bare Keras, MB | ratio | wanted |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        created = peak([COMMAND, "train", "data.limit=100", "epochs=1"], folder)
        again = peak([COMMAND, "train", "data.limit=100", "epochs=1", "seed=1"], folder)
        for side in arguments.sides:
            train, test = IMAGES[side]
            random = np.random.default_rng(0)
            file = Path(folder, f"{side}.npz")
            pixels = random.integers(0, 256, (train + test, side, side, 3), dtype=np.uint8)
            labels = np.arange(train + test) % 2
            np.savez(file, x_train=pixels[:train], y_train=labels[:train], x_test=pixels[train:], y_test=labels[train:])
            del pixels
            for batch_size in arguments.batch_sizes:
                words = ["data=npz", f"data.path={file}", f"batch_size={batch_size}", "epochs=1"]
                ours = peak([COMMAND, "train", *words, "model.dense_units=[]"], folder)
                bare = peak([sys.executable, "-c", BARE, str(file), str(batch_size)], folder)
                print(f"| {side} | {batch_size} | {ours:.0f} | {bare:.0f} | {ours / bare:.2f} | 1.10 |", flush=True)
            file.unlink()
    print(f"\nA run that also creates the tables of the store: {created:.0f} MB; the next one: {again:.0f} MB.")


if __name__ == "__main__":
    main()
