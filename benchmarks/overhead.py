"""What tracking costs: a whole recorded run against a bare Keras script of the same model, in alternating pairs.

Prints the tables of benchmarks/README.md. With --data FILE (an .npz of MNIST) nothing is downloaded.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
COMMAND = str(Path(sys.executable).parent / "experiments")
# In a process of its own: log_model of a run as users have it, the first of its process.
TIME_LOG_MODEL = """
import sys, time
from experiments import quiet_import, run
with quiet_import():
    from experiments.tracking.run import Run
log_model = Run.log_model
def timed(*arguments, **keywords):
    started = time.perf_counter()
    log_model(*arguments, **keywords)
    print("log_model", time.perf_counter() - started)
Run.log_model = timed
run(["data.limit=200", "epochs=1"])
"""


class Cost(NamedTuple):
    """What a process took, its children included."""

    wall: float  # seconds
    cpu: float  # seconds, user and system
    memory: float  # peak, MB


def measure(words: Sequence[str], store: str) -> Cost:
    """Runs a command to its end, quietly."""
    started = time.perf_counter()
    environment = os.environ | {"MLFLOW_TRACKING_URI": store}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exit status {process.returncode}: {' '.join(words)}")
    return Cost(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def whole_runs(pairs: int, epochs: int, data: str | None, store: str) -> None:
    """Compares whole processes: import, data, training, evaluation, and for ours the record."""
    path = [f"data.path={data}"] if data else []
    ours = [COMMAND, "train", "experiment=three_conv_callbacks", f"epochs={epochs}", *path]
    bare = [sys.executable, str(HERE / "bare_keras.py"), "--epochs", str(epochs), *(["--data", data] if data else [])]
    costs: list[tuple[Cost, Cost]] = []
    for pair in range(pairs):
        # Each goes first as often as the other.
        first, second = (ours, bare) if pair % 2 == 0 else (bare, ours)
        both = measure(first, store), measure(second, store)
        costs.append(both if pair % 2 == 0 else both[::-1])
        print(f"pair {pair + 1}: ours {costs[-1][0]}, bare {costs[-1][1]}", file=sys.stderr, flush=True)
    print(f"{pairs} alternating pairs, {epochs} epochs, medians:\n")
    print("| | experiments | bare Keras | ratio (median of the pairs) | wanted |")
    print("|---|---|---|---|---|")
    rows = {"cpu": ("CPU time, s", 1.05), "wall": ("wall time, s", 1.10), "memory": ("peak memory, MB", 0.90)}
    for name, (title, wanted) in rows.items():
        mine, theirs = ([getattr(cost[side], name) for cost in costs] for side in (0, 1))
        medians = f"{statistics.median(mine):.1f} | {statistics.median(theirs):.1f}"
        ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
        print(f"| {title} | {medians} | {ratio:.3f} | {wanted:.2f} |")


def small_commands(store: str) -> None:
    """Times what a person waits for at the prompt."""
    print("\n| | median of 7, s | wanted |\n|---|---|---|")
    for words, wanted in (("--help", 0.5), ("train --cfg job", 1.0), ("list", 1.0)):
        walls = [measure([COMMAND, *words.split()], store).wall for _ in range(7)]
        print(f"| `experiments {words}` | {statistics.median(walls):.2f} | {wanted} |")
    seconds = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", TIME_LOG_MODEL],
            env=os.environ | {"MLFLOW_TRACKING_URI": store},
            capture_output=True,
            text=True,
            check=True,
        )
        seconds += [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("log_model ")]
    print(f"| logging the model (median of 3) | {statistics.median(seconds):.2f} | 1.0 |")


def main() -> None:
    """Prints everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help=".npz of MNIST; without it Keras's own loader")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    data = str(Path(arguments.data).resolve()) if arguments.data else None
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/mlflow.db"
        # A store is made once, and compiled bytecode too: not what a run costs.
        measure([COMMAND, "train", "data.limit=20", "epochs=1"], store)
        small_commands(store)
        print()
        whole_runs(arguments.pairs, arguments.epochs, data, store)


if __name__ == "__main__":
    main()
