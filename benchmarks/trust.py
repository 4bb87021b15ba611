"""What trust costs: checkpoints, determinism and tracking, each against runs without it, in alternating pairs.

    .venv/bin/python benchmarks/trust.py [--data mnist.npz] [--pairs 5] [--epochs 3] [--limit N] [--only NAME ...]

Prints the tables of benchmarks/README.md. With --data FILE (an .npz of MNIST) nothing is downloaded.
"""

import argparse
import functools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

NAMES = ("checkpoints", "determinism", "tracking")
USUAL = "nothing"  # is left out
MOST_SHARE = 0.01  # of the time of a training that its checkpoints may take


@dataclass(frozen=True)
class Inside:
    """What a run has measured of itself; seconds, of wall time where nothing else is said."""

    epochs: int  # trained
    train_cpu: float  # user and system, children included, from the start to the end of the epochs
    train_wall: float  # cost/train_seconds
    fit: float  # model.fit alone
    checkpoints: float  # of it, collecting the arrays and writing them
    checkpoint_size: float  # MB
    end: float  # from the end of model.fit to the return of train.run
    evaluation: float  # of it, predicting the validation and the test set


@dataclass(frozen=True)
class Cost:
    """What a process took, its children included."""

    cpu: float  # seconds, user and system
    wall: float  # seconds
    inside: Inside


@dataclass
class Spent:
    """What all calls of a function have taken."""

    cpu: float = 0.0  # seconds, user and system
    wall: float = 0.0  # seconds
    ended: float = 0.0  # when the last one returned, by the performance counter


# In a process of its own


def train_one(left_out: str, overrides: Sequence[str]) -> Inside:
    """Trains and records one run in this process, without what is `left_out`."""
    from experiments import quiet_import, run

    with quiet_import():
        import keras

        from experiments import train
        from experiments.tracking.run import Run
        from experiments.training import checkpoints
        from experiments.training.callbacks import CheckpointCallback
    sizes = [0.0]
    if left_out == "checkpoints":
        checkpoints.write = lambda folder, checkpoint: None
    else:
        checkpoints.write = _noting_size(checkpoints.write, sizes)
    if left_out == "tracking":
        Run.log_metrics = lambda record, metrics, step=0: None
    fit = _timed(keras.Model, "fit")
    writing = _timed(CheckpointCallback, "write_checkpoint")
    evaluation = _timed(train, "evaluate")
    result = run([*overrides, f"deterministic={str(left_out != 'determinism').lower()}"])
    returned = time.perf_counter()
    if result.status != "FINISHED":
        raise SystemExit(f"the run has ended as {result.status}")
    return Inside(
        epochs=len(result.history["loss"]),
        train_cpu=fit.cpu,
        train_wall=result.metrics["cost/train_seconds"],
        fit=fit.wall,
        checkpoints=writing.wall,
        checkpoint_size=sizes[-1],
        end=returned - fit.ended,
        evaluation=evaluation.wall,
    )


def _timed(owner: Any, name: str) -> Spent:
    """Adds up from now on what calls of a function take."""
    function = getattr(owner, name)
    spent = Spent()

    @functools.wraps(function)
    def timed(*arguments: Any, **keywords: Any) -> Any:
        cpu, wall = _cpu(), time.perf_counter()
        try:
            return function(*arguments, **keywords)
        finally:
            spent.ended = time.perf_counter()
            spent.wall += spent.ended - wall
            spent.cpu += _cpu() - cpu

    setattr(owner, name, timed)
    return spent


def _noting_size(write: Callable[..., None], sizes: list[float]) -> Callable[..., None]:
    def noting(folder: Path, checkpoint: Any) -> None:
        write(folder, checkpoint)
        sizes.append(max(file.stat().st_size for file in folder.glob("checkpoint-*.npz")) / 1e6)

    return noting


def _cpu() -> float:
    both = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


# In the process that compares


def measure(left_out: str, overrides: Sequence[str], folder: str) -> Cost:
    """Trains and records one run in a new process, with a store in `folder`."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "EXPERIMENTS_HOME": folder}
    words = [sys.executable, __file__, "--child", left_out, *overrides]
    with Path(folder, "errors.txt").open("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        with process.stdout:
            output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            print(output, errors.read(), sep="\n", file=sys.stderr)
            raise SystemExit(f"exit status {process.returncode}: {' '.join(words)}")
    return Cost(usage.ru_utime + usage.ru_stime, wall, Inside(**json.loads(output.splitlines()[-1])))


def measure_pairs(left_out: str, pairs: int, overrides: Sequence[str], folder: str) -> list[tuple[Cost, Cost]]:
    """The costs of runs as usual and of runs without what is `left_out`, each first as often as the other."""
    costs: list[tuple[Cost, Cost]] = []
    for pair in range(pairs):
        order = (USUAL, left_out) if pair % 2 == 0 else (left_out, USUAL)
        both = {name: measure(name, overrides, folder) for name in order}
        usual, without = both[USUAL], both[left_out]
        print(f"{left_out}, pair {pair + 1}: with {usual}, without {without}", file=sys.stderr, flush=True)
        if usual.inside.epochs != without.inside.epochs:
            raise SystemExit("Early stopping has ended one of them sooner: compare fewer epochs.")
        costs.append((usual, without))
    return costs


def print_ratios(costs: dict[str, list[tuple[Cost, Cost]]]) -> None:
    """One row for whole processes and one for what lies between the start and the end of the epochs."""
    print("| | CPU with, s | without, s | ratio (lowest to highest pair) | wall with, s | without, s | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name, pairs in costs.items():
        if name != "tracking":  # both sides record all the rest, so the whole would say little of it
            print(f"| {name}, whole run | {_compared(pairs, _whole_cpu)} | {_compared(pairs, _whole_wall)} |")
        print(f"| {name}, training alone | {_compared(pairs, _train_cpu)} | {_compared(pairs, _train_wall)} |")


def _compared(pairs: Sequence[tuple[Cost, Cost]], seconds: Callable[[Cost], float]) -> str:
    usual, without = ([seconds(cost) for cost in side] for side in zip(*pairs, strict=True))
    ratios = [a / b for a, b in zip(usual, without, strict=True)]
    ratio = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    return f"{statistics.median(usual):.2f} | {statistics.median(without):.2f} | {ratio}"


def _whole_cpu(cost: Cost) -> float:
    return cost.cpu


def _whole_wall(cost: Cost) -> float:
    return cost.wall


def _train_cpu(cost: Cost) -> float:
    return cost.inside.train_cpu


def _train_wall(cost: Cost) -> float:
    return cost.inside.train_wall


def print_shares(usual: Sequence[Inside]) -> None:
    """What runs as usual have measured of themselves, where no second run brings its noise in."""
    share = statistics.median(run.checkpoints / run.fit for run in usual)
    one = statistics.median(run.checkpoints / run.epochs for run in usual)
    size, end, evaluation = (
        statistics.median(getattr(run, name) for run in usual) for name in ("checkpoint_size", "end", "evaluation")
    )
    print(f"| | median of {len(usual)} runs as usual | wanted |\n|---|---|---|")
    print(f"| checkpoints, share of the seconds of `model.fit` | {share:.2%} | < {MOST_SHARE:.0%} |")
    print(f"| one checkpoint | {1000 * one:.1f} ms, {size:.2f} MB | |")
    print(f"| the end of the run, from the end of `model.fit` to the return of `train.run`, s | {end:.2f} | |")
    print(f"| of it, predicting the validation and the test set, s | {evaluation:.2f} | |")


def words_of_run(data: str | None, epochs: int, limit: int | None) -> list[str]:
    """The overrides that all runs have in common."""
    words = ["experiment=three_conv_callbacks", f"epochs={epochs}"]
    words += [f"data.path={Path(data).resolve()}"] if data else []
    return [*words, *([f"data.limit={limit}"] if limit else [])]


def main() -> None:
    """Prints everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help=".npz of MNIST; without it Keras's own loader")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--limit", type=int, help="images in each of the three sets; without it all of MNIST")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", default=NAMES, help=", ".join(NAMES))
    arguments = parser.parse_args()
    overrides = words_of_run(arguments.data, arguments.epochs, arguments.limit)
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    with tempfile.TemporaryDirectory() as folder:
        # A store is made once, and compiled bytecode too: not what a run costs.
        measure(USUAL, words_of_run(arguments.data, epochs=1, limit=20), folder)
        costs = {name: measure_pairs(name, arguments.pairs, overrides, folder) for name in arguments.only}
    images = f"{arguments.limit} images" if arguments.limit else "all images"
    print(f"{arguments.pairs} alternating pairs, {images}, {arguments.epochs} epochs, medians, with against without:\n")
    print_ratios(costs)
    print()
    print_shares([usual.inside for pairs in costs.values() for usual, _ in pairs])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(asdict(train_one(sys.argv[2], sys.argv[3:]))))
    else:
        main()
