"""What a sweep costs: 12 short recorded jobs by our launchers, by a shell loop over plain Keras, and by two tuners.

Prints the tables of benchmarks/README.md. The tuners are installed into an environment of the benchmark's own.
"""

import argparse
import contextlib
import os
import platform
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from peers import prepare

PEERS = Path(prepare.__file__).parent
COMMAND = str(Path(sys.executable).parent / "experiments")
MAKE_STORE = "import sys, mlflow; mlflow.MlflowClient(sys.argv[1]).search_experiments()"
LOOP = 'for seed in $(seq 0 $(($1 - 1))); do "$2" "$3" --data "$4" --seed $seed || exit 1; done'
TUNERS = ("KerasTuner", "Ray Tune")
NAMES = ("process-1", "process-2", "basic", "joblib", "shell loop", *TUNERS)
#: What a contestant's wall time is divided by; Ray Tune is the peer that gives every job a process of its own.
REFERENCES = ("shell loop", "basic", "Ray Tune")
WANTED = {
    "process-1": {"shell loop": 0.75, "basic": 1.3},
    "process-2": {"shell loop": 0.50, "basic": 0.9, "Ray Tune": 1.0},
}
FINISHED_WANTED = 0.35  # seconds a job


class Failed(Exception):
    """A contestant did not do what it was asked."""


class Cost(NamedTuple):
    """What a tree of processes took."""

    wall: float  # seconds
    cpu: float  # seconds, user and system
    memory: float  # peak of the whole tree, MB; a page that processes share counts once for each


class Bench:
    """A folder to run in and a way to measure, the same for all contestants."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.empty_store = folder / "empty.db"  # a store is made once: not what a sweep costs
        subprocess.run([sys.executable, "-c", MAKE_STORE, f"sqlite:///{self.empty_store}"], cwd=folder, check=True)

    def place(self) -> Path:
        """A new folder to run in, with a store without runs."""
        place = Path(tempfile.mkdtemp(dir=self.folder))
        shutil.copy(self.empty_store, place / "mlflow.db")
        return place

    def measure(self, words: Sequence[str], place: Path, timeout: float = 900) -> Cost:
        """Runs a command to its end in `place`; whatever it leaves running is killed."""
        environment = os.environ | {
            "EXPERIMENTS_HOME": str(place),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db",
            "RAY_USAGE_STATS_ENABLED": "0",
            "TMPDIR": str(self.folder),
        }
        waited, seen, memory = _cpu_of_children(), {}, 0.0
        started = time.perf_counter()
        with (place / "log.txt").open("w") as log:
            main = psutil.Popen(words, env=environment, cwd=place, stdout=log, stderr=subprocess.STDOUT)
        try:
            while main.poll() is None and time.perf_counter() - started < timeout:
                memory = max(memory, _sample(main, seen))
                with contextlib.suppress(psutil.TimeoutExpired):
                    main.wait(0.5)
            wall = time.perf_counter() - started
        finally:
            status = main.poll()  # None: too slow, or we are interrupted
            _sample(main, seen)
            for process in (main, *seen):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            main.wait()
        if status != 0:
            how = f"takes more than {timeout:.0f} s" if status is None else f"exit status {status}"
            raise Failed(f"{how}: {' '.join(words)}\n{_end_of_log(place)}")
        # Exact for processes that were waited for; Ray waits for none, so theirs are what was seen last.
        return Cost(wall, max(_cpu_of_children() - waited, sum(seen.values())), memory)


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _sample(main: psutil.Process, seen: dict[psutil.Process, float]) -> float:
    """Notes the CPU seconds of every process of a tree; the memory that they have now, MB."""
    memory = 0
    with contextlib.suppress(psutil.Error):  # the tree has just ended
        for process in (main, *main.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # or a part of it
                times, memory = process.cpu_times(), memory + process.memory_info().rss
                seen[process] = times.user + times.system
    return memory / 2**20


def _end_of_log(place: Path) -> str:
    return "\n".join((place / "log.txt").read_text().splitlines()[-15:])


def check(place: Path, wanted: int) -> None:
    """Makes sure that all jobs are recorded as finished; runs that only hold others together do not count."""
    parents = "SELECT value FROM tags WHERE key = 'mlflow.parentRunId'"
    query = f"SELECT run_uuid FROM runs WHERE status = 'FINISHED' AND run_uuid NOT IN ({parents})"  # noqa: S608 - our own words
    with contextlib.closing(sqlite3.connect(place / "mlflow.db")) as store:
        count = len(store.execute(query).fetchall())
    if count != wanted:
        raise Failed(f"{count} finished runs instead of {wanted}\n{_end_of_log(place)}")


def rounds(bench: Bench, commands: dict[str, list[str]], count: int, jobs: int) -> dict[str, list[Cost]]:
    """The costs of every contestant that did all its jobs in every round."""
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for turn in range(count):
        names, first = list(costs), turn % max(len(costs), 1)
        for name in names[first:] + names[:first]:
            place = bench.place()
            try:
                cost = bench.measure(commands[name], place)
                if name != "shell loop":
                    check(place, jobs)
            except Failed as failure:
                del costs[name]  # the others go on
                print(f"round {turn + 1}, {name} FAILED: {failure}", file=sys.stderr, flush=True)
                continue
            costs[name].append(cost)
            print(f"round {turn + 1}, {name}: {cost}", file=sys.stderr, flush=True)
    return costs


def print_table(costs: dict[str, list[Cost]]) -> None:
    """The medians of every contestant, and the medians of its ratios in each round."""
    print(f"| | wall, s | {' | '.join(f'/ {name}' for name in REFERENCES)} | CPU, s | peak memory, MB | wanted |")
    print("|---|" + "---|" * (len(REFERENCES) + 4))
    for name, mine in costs.items():
        wall, cpu, memory = (statistics.median(column) for column in zip(*mine, strict=True))
        ratios = []
        for theirs in (costs.get(reference) for reference in REFERENCES):
            quotients = [a.wall / b.wall for a, b in zip(mine, theirs, strict=True)] if theirs else []
            ratios.append(f"{statistics.median(quotients):.2f}" if quotients else "")
        wanted = ", ".join(f"≤ {most:.2f} {reference}" for reference, most in WANTED.get(name, {}).items())
        print(f"| {name} | {wall:.1f} | {' | '.join(ratios)} | {cpu:.1f} | {memory:.0f} | {wanted} |")


def finished(bench: Bench, jobs: int) -> None:
    """Times a sweep that has nothing left to do."""
    place = bench.place()
    words = [COMMAND, "train", "-m", f"seed=range({jobs})", "data.limit=64", "epochs=1", "tracking.model=false"]
    bench.measure(words, place, timeout=3600)
    check(place, jobs)
    seconds = [bench.measure(words, place).wall / jobs for _ in range(3)]
    check(place, jobs)  # more runs than before would mean that it trained again
    print("\n| | median of 3, s a job | wanted |\n|---|---|---|")
    print(
        f"| a sweep of {jobs} jobs that are finished already | {statistics.median(seconds):.3f} | {FINISHED_WANTED} |"
    )


def main() -> None:
    """Prints everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", default=NAMES, help=", ".join(NAMES))
    parser.add_argument("--peers-venv", type=Path, help="folder of the tuners' environment, made if need be and kept")
    parser.add_argument("--finished-jobs", type=int, default=200)
    parser.add_argument("--skip-finished", action="store_true")
    options = parser.parse_args()
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        bench, images = Bench(Path(folder)), f"{folder}/mnist_5k.npz"
        prepare.write_images(images)
        venv = (options.peers_venv or bench.folder / "peers").absolute()
        python = prepare.install_tuners(venv) if set(options.only) & set(TUNERS) else ""
        ours = [COMMAND, "train", "-m", f"seed=range({options.jobs})", "data=mnist_5k", "epochs=1"]
        bare = [sys.executable, str(PEERS / "bare_keras_5k.py")]
        tuner = ["--data", images, "--jobs", str(options.jobs)]
        commands = {
            "process-1": [*ours, "hydra.launcher.n_jobs=1"],
            "process-2": [*ours, "hydra.launcher.n_jobs=2"],
            "basic": [*ours, "hydra/launcher=basic"],
            "joblib": [*ours, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
            "shell loop": ["sh", "-c", LOOP, "sh", str(options.jobs), *bare, images],
            "KerasTuner": [python, str(PEERS / "tuner_keras.py"), *tuner],
            "Ray Tune": [python, str(PEERS / "tuner_ray.py"), *tuner],
        }
        # Compiled bytecode and the cached data set are made once, too.
        bench.measure([*bare, "--data", images], bench.place())
        bench.measure([COMMAND, "train", "data.limit=20", "epochs=1"], bench.place())
        costs = rounds(bench, {name: commands[name] for name in options.only}, options.rounds, options.jobs)
        print(f"\n{options.rounds} rounds of {options.jobs} jobs, medians, ratios of wall times:\n")
        print_table(costs)
        if not options.skip_finished:
            finished(bench, options.finished_jobs)
        if missing := [name for name in options.only if name not in costs]:
            raise SystemExit(f"failed: {', '.join(missing)}")


if __name__ == "__main__":
    main()
