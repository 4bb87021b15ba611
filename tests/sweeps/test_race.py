"""Races: seeds for the variants in question, whatever happens in between, and the gate for scripts."""

import csv
import json
import subprocess
import time
from pathlib import Path

import pytest

from commands import EXPERIMENTS, Command, finished, runs
from experiments.sweeps.gate import status
from experiments.sweeps.race import Result

TINY = ["data.limit=300", "tracking.model=false", "model.filters=[8,8]", "model.dense_units=[32]", "epochs=4"]
RATES = "optimizer.learning_rate=0.003,1e-8"
FOUR = [*TINY, "model.batch_norm=true,false", RATES, "max_seeds=5", "hydra.launcher.n_jobs=2"]


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here builds a net in this process."""


@pytest.fixture
def race(tmp_path):
    """Runs a race to its end; returns exit status, result and everything else that it has printed."""

    def run(*words):
        files = {"stdout": tmp_path / "result.json", "stderr": tmp_path / "log.txt"}
        status = Command("race", "--json", *words, **files).wait()
        result = files["stdout"].read_text()
        return status, json.loads(result) if result else None, files["stderr"].read_text()

    return run


def told(result):
    """What a race has decided, without the ids of its runs."""
    return [{key: value for key, value in entry.items() if key != "run_ids"} for entry in result["variants"]]


@pytest.mark.slow
def test_a_killed_race_takes_the_decisions_of_an_uninterrupted_one(store, race, tmp_path, monkeypatch):
    status, whole, log = race(*FOUR)
    assert status == 0, log
    standings = [entry["standing"] for entry in whole["variants"]]
    assert standings[0] == "best" and standings.count("worse") >= 2
    seeds = {entry["variant"]: entry["seeds"] for entry in whole["variants"]}
    assert all(len(entry["run_ids"]) == entry["seeds"] for entry in whole["variants"])
    first, *others = whole["variants"]
    assert first["from"] is None and all(entry["from"] in seeds for entry in others)
    assert 12 <= sum(seeds.values()) < 20
    assert f"Decided with {sum(seeds.values())} of 20 jobs\n" in log
    in_first = runs(store)
    (first_parent,) = [run for run in in_first if "sweep.name" in run.data.tags]
    table = Path(store.download_artifacts(first_parent.info.run_id, "leaderboard.csv"))
    rows = list(csv.DictReader(table.read_text().splitlines()))
    values = [float(row["best/val_accuracy"]) for row in rows]
    means = [entry["mean"] for entry in whole["variants"]]
    assert values[0] == pytest.approx(means[0])
    assert sorted(values) == pytest.approx(sorted(means))
    assert [row["verdict"].split()[0] for row in rows].count("worse") == standings.count("worse")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/second.db")
    second = type(store)(f"sqlite:///{tmp_path}/second.db")
    killed = Command("race", *FOUR, stdout=tmp_path / "killed.txt")
    deadline = time.monotonic() + 240
    while not (tmp_path / "second.db").exists() or sum(r.info.status == "FINISHED" for r in runs(second)) < 7:
        assert killed.poll() is None and time.monotonic() < deadline, (tmp_path / "killed.txt").read_text()
        time.sleep(0.2)
    killed.kill_group()
    status, again, log = race(*FOUR)
    assert status == 0, log
    assert told(again) == told(whole)
    children = [run for run in runs(second) if "sweep.name" not in run.data.tags]
    assert len([run for run in children if run.info.status == "FINISHED"]) == sum(seeds.values())
    assert len(in_first) == sum(seeds.values()) + 1  # and the parent
    (parent,) = [run for run in runs(second) if "sweep.name" in run.data.tags]
    assert (parent.data.tags["race.max_seeds"], parent.info.status) == ("5", "FINISHED")


def gate(*words):
    """As `race`, but the console script itself: a forked process would share what it has opened of the store."""
    done = subprocess.run([EXPERIMENTS, "race", "--json", *words], capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


@pytest.mark.slow
def test_a_change_is_raced_against_a_run(store):
    trained = finished("train", *TINY, "optimizer.learning_rate=0.003", "seed=4")
    assert trained.returncode == 0, trained.stdout
    (good,) = runs(store)
    words = ["--against", good.info.run_id, "max_seeds=4"]
    status, result, log = gate(*words, "optimizer.learning_rate=1e-8")
    assert status == 1, log
    assert [entry["standing"] for entry in result["variants"]] == ["best", "worse"]
    assert good.info.run_id in result["variants"][0]["run_ids"]  # it is not trained again
    bad = result["variants"][1]["run_ids"][0]
    status, result, log = gate("--against", bad, "max_seeds=4", "optimizer.learning_rate=0.003")
    assert status == 0, log
    assert [entry["number"] for entry in result["variants"]] == [1, 0]
    status, result, log = gate(*words, "optimizer.learning_rate=0.00301")
    assert status == 3, log
    refused, result, log = gate(*words, "data.limit=200")
    assert (refused, result) == (2, None)
    assert log.startswith("experiments: data.limit changes the data, so nothing could be compared with ")


REFUSED = {
    "max_seeds=3 model=conv2,conv3": "hydra.sweeper.max_seeds=3 is refused: it must be a whole number of at least 4.",
    "model=conv2": "A race needs at least two variants. Sweep a key, as in model=conv2,conv3.",
    "model=conv2,conv3 seed=0,1": "A race chooses the seeds itself. Give the first one, as in seed=0, or none.",
    "model.dropout=interval(0,0.5)": "model.dropout=interval(0,0.5): a grid needs single values. "
    "Write them out, as in 0.1,0.2, or search with hydra/sweeper=optuna.",
    "model=conv2,conv3 --equal-within 0": "hydra.sweeper.equal_within=0.0 is refused: it must be a number above 0 "
    "or null.",
    "model.dropout=0,0.0": "model.dropout=0 and model.dropout=0.0 are the same variant. Leave one of them out.",
    "--against none-such model=conv3": "none-such: there is no such run in this store.",
    "data.limit=100,200": "data.limit differs, but a race compares variants on the same images.",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("words", REFUSED)
def test_a_race_that_cannot_be_is_refused(store, race, words):
    status, result, log = race(*words.split())
    assert (status, result) == (2, None)
    assert log.splitlines()[-1].startswith(f"experiments: {REFUSED[words]}")
    assert runs(store) == []


@pytest.mark.parametrize(
    ("before", "changed", "expected"),
    [("worse", "best", 0), ("best", "worse", 1), ("best", "equal", 1), ("equal", "best", 1), ("best", "failed", 1),
     ("best", "undecided", 3), ("limited by the images", "best", 3), ("failed", "best", 3)],
)  # fmt: skip
def test_the_exit_status_of_a_gate(before, changed, expected):
    variants = ({"number": 1, "standing": changed}, {"number": 0, "standing": before})
    assert status(Result("mine", "best/val_accuracy", variants)) == expected
