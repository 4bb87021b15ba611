"""What comparing costs: `experiments compare` in a store of 10,000 runs: 50 sweeps of 40 variants with 5 seeds each.

    .venv/bin/python benchmarks/compare.py [--repeats 3]

Prints the table of benchmarks/README.md. One job for each of two models is trained and recorded as users have it. The
other runs are copies of these records, written with MLflow's own models of its tables; they differ in what they say of
the variant, the seed, the sweep and the results, and have scores on 6,000 validation images.
"""

import argparse
import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mlflow.store.tracking.dbmodels import models
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy import insert, select

from experiments.tracking.parent import Parent, open_parent
from experiments.tracking.runs import experiment_name, runs_of, sweeps

COMMAND = str(Path(sys.executable).parent / "experiments")
MODELS = ("conv2", "conv3")
DROPOUTS = (0.0, 0.1, 0.2, 0.3, 0.4)
RATES = (0.01, 0.003, 0.001, 0.0003)
SEEDS = 5
#: In these two the sweeps differ.
BATCH_SIZES = (16, 32, 64, 128, 256)
SMOOTHINGS = tuple(step / 100 for step in range(10))
IMAGES = 6000  # of validation
SWEEPS = len(BATCH_SIZES) * len(SMOOTHINGS)
VARIANTS = len(MODELS) * len(DROPOUTS) * len(RATES)  # of a sweep
OF_A_RUN = (models.SqlRun, models.SqlParam, models.SqlTag, models.SqlMetric, models.SqlLatestMetric)

Rows = list[dict[str, Any]]


class Cost(NamedTuple):
    """What a process took, its children included."""

    wall: float  # seconds
    cpu: float  # seconds, user and system
    memory: float  # peak, MB


def measure(words: Sequence[str]) -> Cost:
    """Runs a command to its end, quietly."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"exit status {process.returncode}: {' '.join(words)[:300]}\n{output.read()[-3000:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


# Making the runs


def fill(store: SqlAlchemyStore, artifacts: Path) -> list[str]:
    """Writes all sweeps, and the scores of their runs under `artifacts`; returns the names of the sweeps."""
    jobs = runs_of(sweeps()[0])
    with store.ManagedSessionMaker() as session:
        records = {job.params["model"]: dict(_record(session, job.run_id)) for job in jobs}
    experiment = experiment_name(jobs[0])
    names, chance = [], np.random.default_rng(0)
    difficulty = chance.normal(size=IMAGES)
    for number, (batch_size, smoothing) in enumerate(itertools.product(BATCH_SIZES, SMOOTHINGS)):
        common = {"batch_size": batch_size, "label_smoothing": smoothing}
        command = "experiments train -m " + " ".join(f"{key}={value}" for key, value in common.items())
        parent = open_parent(experiment, f"mine-{number:06x}", {"command": command}, patience=0)
        written = []
        with store.ManagedSessionMaker(read_only=False) as session:
            for job, choices in enumerate(_choices(common)):
                changes = choices | _results(choices, chance) | _tags(parent, job, choices)
                changes |= _scores(changes, artifacts, difficulty + chance.normal(size=IMAGES))
                for model, rows in _copies(records[choices["model"]], changes):
                    session.execute(insert(model.__table__), rows)
                overrides = [f"{key}={value}" for key, value in choices.items()]
                written.append(
                    {
                        "job": job,
                        "overrides": overrides,
                        "fingerprint": changes["fingerprint"],
                        "run_id": changes["run_uuid"],
                    }
                )
        parent.write_jobs(written)
        parent.close("FINISHED", patience=0)
        names.append(parent.name)
    return names


def _record(session: Any, run_id: str) -> Iterator[tuple[Any, Rows]]:
    """Every table of MLflow with the rows that belong to a run."""
    for model in OF_A_RUN:
        yield model, _rows(session, model, model.run_uuid == run_id)
    inputs = models.SqlInput
    linked = _rows(session, inputs, (inputs.source_id == run_id) | (inputs.destination_id == run_id))
    yield inputs, linked
    ids = [row["input_uuid"] for row in linked]
    yield models.SqlInputTag, _rows(session, models.SqlInputTag, models.SqlInputTag.input_uuid.in_(ids))


def _rows(session: Any, model: Any, condition: Any) -> Rows:
    return [dict(row) for row in session.execute(select(model.__table__).where(condition)).mappings()]


def _choices(common: Mapping[str, object]) -> Iterator[dict[str, Any]]:
    for model, dropout, rate, seed in itertools.product(MODELS, DROPOUTS, RATES, range(SEEDS)):
        yield {**common, "model": model, "model.dropout": dropout, "optimizer.learning_rate": rate, "seed": seed}


def _results(choices: Mapping[str, Any], chance: np.random.Generator) -> dict[str, float]:
    """Accuracies that depend on the choices, and on the seed by chance."""
    effect = 0.01 * (choices["model"] == "conv3") - 0.02 * abs(choices["model.dropout"] - 0.2)
    effect -= 0.003 * abs(np.log10(choices["optimizer.learning_rate"] / 0.001)) + 0.02 * choices["label_smoothing"]
    validation, test = chance.normal(0.97 + effect, 0.002, size=2)
    return {"best/val_accuracy": validation, "test/accuracy": test, "cost/train_seconds": chance.normal(30)}


def _scores(changes: Mapping[str, Any], artifacts: Path, difficulty: np.ndarray) -> dict[str, Any]:
    """Writes scores of which the most difficult images are wrong, and returns the accuracy and where they are."""
    correct = difficulty < np.quantile(difficulty, changes["best/val_accuracy"])
    scores = np.empty(IMAGES, [("correct", bool), ("cross_entropy", np.float32)])
    scores["correct"], scores["cross_entropy"] = correct, np.where(correct, 0.01, 1.5)
    folder = artifacts / changes["run_uuid"]
    folder.mkdir(parents=True)
    np.save(folder / "validation_scores.npy", scores)
    return {"best/val_accuracy": float(correct.mean()), "artifact_uri": folder.as_uri()}


def _tags(parent: Parent, job: int, choices: Mapping[str, Any]) -> dict[str, object]:
    variant = {key: value for key, value in choices.items() if key != "seed"}
    return {
        "run_uuid": uuid.uuid4().hex,
        "variant": uuid.uuid5(uuid.NAMESPACE_OID, str(variant)).hex[:16],
        "fingerprint": uuid.uuid5(uuid.NAMESPACE_OID, str(choices)).hex[:16],
        "mlflow.parentRunId": parent.run_id,
        "mlflow.runName": " ".join(f"{key}={value}" for key, value in choices.items())[:80],
        "sweep": parent.name,
        "job": job,
    }


def _copies(record: Mapping[Any, Rows], changes: Mapping[str, Any]) -> Iterator[tuple[Any, Rows]]:
    """The rows of another run, which has the values of `changes` where it is not as the recorded one."""
    (recorded,) = record[models.SqlRun]
    ids = {recorded["run_uuid"]: changes["run_uuid"]}
    ids |= {row["input_uuid"]: uuid.uuid4().hex for row in record[models.SqlInput]}
    for model, rows in record.items():
        copied = [{name: ids.get(value, value) for name, value in row.items()} for row in rows]
        for row in copied:
            if row.get("key") in changes:
                value = changes[row["key"]]
                row["value"] = value if isinstance(row["value"], float) else str(value)
        if model is models.SqlRun:
            copied[0] |= {"name": changes["mlflow.runName"], "artifact_uri": changes["artifact_uri"]}
        yield model, copied


# Comparing them


def compare(words: Sequence[str], variants: int, repeats: int, table: Path) -> list[Cost]:
    """Times `experiments compare`, which must find so many variants."""
    costs = []
    for _ in range(repeats):
        costs.append(measure([COMMAND, "compare", *words, "--csv", str(table)]))
        print(f"{variants} variants: {costs[-1]}", file=sys.stderr, flush=True)
        found = len(table.read_text().splitlines()) - 1
        if found != variants:
            raise SystemExit(f"{variants} variants are in the store, {found} in the table")
    return costs


def main() -> None:
    """Prints everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        os.environ |= {"EXPERIMENTS_HOME": folder, "MLFLOW_TRACKING_URI": uri}
        measure([COMMAND, "train", "-m", f"model={','.join(MODELS)}", "data.limit=100", "epochs=3"])
        started = time.perf_counter()
        names = fill(SqlAlchemyStore(uri, Path(folder, "artifacts").as_uri()), Path(folder, "scores"))
        print(f"made in {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        table, runs = Path(folder, "table.csv"), SWEEPS * VARIANTS * SEEDS
        middle, everything = [names[SWEEPS // 2]], ["--filter", "tags.sweep LIKE 'mine-%'"]
        these = ["--on", "these-images"]
        cases = {
            f"one sweep of {VARIANTS * SEEDS:,}, `--on these-images`": ([*middle, *these], VARIANTS, ""),
            f"all {runs:,}, by `--filter`, `--on these-images`": ([*everything, *these], SWEEPS * VARIANTS, ""),
            f"one sweep of {VARIANTS * SEEDS:,}": (middle, VARIANTS, "< 5 s"),
            f"all {runs:,}, by the names of the sweeps": (names, SWEEPS * VARIANTS, "< 60 s, 1,500 MB"),
            f"all {runs:,}, by `--filter`": (everything, SWEEPS * VARIANTS, "< 60 s, 1,500 MB"),
        }
        print(f"| medians of {repeats} | variants | wall, s | CPU, s | peak memory, MB | wanted |")
        print("|---|---|---|---|---|---|")
        for title, (words, variants, wanted) in cases.items():
            costs = compare(words, variants, repeats, table)
            wall, cpu, memory = (statistics.median(column) for column in zip(*costs, strict=True))
            print(f"| {title} | {variants:,} | {wall:.1f} | {cpu:.1f} | {memory:.0f} | {wanted} |", flush=True)


if __name__ == "__main__":
    main()
