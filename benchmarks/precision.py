"""What precision=mixed_bfloat16 gains and costs: pairs of runs that differ in the precision, alternating.

Prints the tables of benchmarks/README.md: images a second of each pair, and a comparison of the accuracies. Processors
that do not multiply bfloat16 natively are slower with it than without.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PRECISIONS = ("float32", "mixed_bfloat16")
RECIPE = ["experiment=one_cycle", "model=conv3", "epochs=2", "tracking.model=false"]


def main() -> None:
    """Trains the pairs in one process, which trains each precision once before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--data", help="a file such as mnist.npz, instead of Keras's download")
    given = parser.parse_args()
    data = [f"data.path={Path(given.data).resolve()}"] if given.data else []
    with tempfile.TemporaryDirectory() as home:
        os.environ["EXPERIMENTS_HOME"] = home
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        from experiments import run

        for precision in PRECISIONS:  # what a process does once
            run([*RECIPE, *data, f"precision={precision}", "epochs=1", "data.limit=2000"])
        pairs = []
        for seed in range(given.seeds):
            order = PRECISIONS if seed % 2 else PRECISIONS[::-1]
            speeds = {
                precision: run([*RECIPE, *data, f"precision={precision}", f"seed={seed}"]).metrics[
                    "cost/images_per_second"
                ]
                for precision in order
            }
            pairs.append((speeds["float32"], speeds["mixed_bfloat16"]))
        print("| pairs | float32, images/s | mixed_bfloat16, images/s | ratio (lowest and highest pair) |")
        print("|---|---|---|---|")
        ratios = sorted(fast / slow for slow, fast in pairs)
        slow, fast = (statistics.median(column) for column in zip(*pairs, strict=True))
        span = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| {len(pairs)} | {slow:,.0f} | {fast:,.0f} | {span} |", flush=True)
        compare = [str(Path(sys.executable).parent / "experiments"), "compare", "--equal-within", "0.001"]
        subprocess.run([*compare, "--filter", "params.epochs = '2'"], check=True)


if __name__ == "__main__":
    main()
