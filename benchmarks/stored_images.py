"""Images read from a file against the same images in memory: peak memory and images per second of `experiments train`.

    .venv/bin/python benchmarks/stored_images.py [--images 20000] [--timed 2000] [--pairs 3]

Prints the tables of benchmarks/README.md. The image files take 0.3 GB, the file of decoded images 3 GB.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
from mlflow import MlflowClient
from PIL import Image

COMMAND = str(Path(sys.executable).parent / "experiments")
SIDE = 224
LARGE = [f"data.image_size=[{SIDE},{SIDE}]", "model=conv3", "model.filters=[8,16,32]", "model.pool_sizes=[4,4,4]"]
SMALL = ["data.image_size=[28,28]"]  # with the default model
IN_FILE, IN_MEMORY = "data.memory_mb=0", "data.memory_mb=100000"


def make_files(folder: Path, number: int) -> None:
    """Writes JPEG files of random blocks in two classes."""
    random = np.random.default_rng(0)
    for index in range(number):
        file = folder / ("bright" if index % 2 else "dark") / f"{index:06}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        blocks = random.integers(0, 200, (14, 14, 3)) + index % 2 * 55
        Image.fromarray(blocks.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(file)


def train(folder: Path, home: Path, words: Sequence[str]) -> tuple[float, float]:
    """Trains once; the largest resident set of any of its processes in MB, and its seconds."""
    environment = os.environ | {"EXPERIMENTS_HOME": str(home), "KERAS_HOME": str(home)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [COMMAND, "train", "data=folder", f"data.path={folder}", "data.color_mode=rgb", *words]
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    watched, highest = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            highest = max([highest, *(each.memory_info().rss for each in [watched, *watched.children(recursive=True)])])
        except psutil.NoSuchProcess:
            continue
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"exit status {process.returncode}: {' '.join(command)}")
    return highest / 1e6, time.perf_counter() - started


def last_run(home: Path) -> tuple[float, str]:
    """Images per second after the first epoch, which also compiles, and the hash of the weights of the newest run."""
    client = MlflowClient(f"sqlite:///{home}/mlruns/mlflow.db")
    (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()], max_results=1)
    seconds = [point.value for point in client.get_metric_history(run.info.run_id, "epoch_seconds")]
    trained = float(run.data.metrics["cost/images_per_second"] * run.data.metrics["cost/train_seconds"] / len(seconds))
    return trained / statistics.mean(seconds[1:] or seconds), run.data.tags["weights.sha256"]


def main() -> None:
    """Measures the peak memory of one epoch on all files, then the speed on some of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--timed", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        make_files(home / "all", arguments.images)
        make_files(home / "some", arguments.timed)
        print(f"| {arguments.images:,} images of {SIDE} x {SIDE} x 3 | peak memory, MB | wall, s | weights |")
        print("|---|---|---|---|")
        one_epoch = [*LARGE, "epochs=1", "batch_size=32"]
        for name, where in (("decoding", IN_FILE), ("again", IN_FILE), ("in memory", IN_MEMORY)):
            memory, seconds = train(home / "all", home, [*one_epoch, where])
            print(f"| {name} | {memory:.0f} | {seconds:.0f} | {last_run(home)[1][:8]} |", flush=True)
        print("\n| images | from a file, images/s | in memory, images/s | ratio (median of the pairs) | wanted |")
        print("|---|---|---|---|---|")
        for size, words in ((f"{SIDE} x {SIDE} x 3", LARGE), ("28 x 28 x 3", SMALL)):
            pairs = []
            for pair in range(arguments.pairs):
                speeds = {}
                for where in (IN_FILE, IN_MEMORY) if pair % 2 else (IN_MEMORY, IN_FILE):
                    train(home / "some", home, [*words, "epochs=4", where])
                    speeds[where] = last_run(home)[0]
                pairs.append((speeds[IN_FILE], speeds[IN_MEMORY]))
            file, memory = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(one / other for one, other in pairs)
            print(f"| {size} | {file:.0f} | {memory:.0f} | {ratio:.2f} | 0.80 |", flush=True)


if __name__ == "__main__":
    main()
