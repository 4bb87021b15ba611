"""Lists of runs and sweeps."""

import json
import re
import time
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner

from experiments import cli
from experiments.compare import listing
from experiments.compare.names import find_all_runs, find_run, find_sweeps
from experiments.errors import ExperimentError
from records import add_model, record, record_sweep

NOW = int(time.time() * 1000)


def output(*words):
    """What a command prints, and nothing else."""
    done = CliRunner().invoke(cli.command_line, words, catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


@pytest.fixture
def depth(store):
    """The ids of a sweep over dropout, of its two runs, and of a failed run before it."""
    failed = record(
        store, name="conv3 seed=0", status="FAILED", params={"model": "conv3"}, start_time=NOW - 4 * 86_400_000,
        tags={"reason": "error", "data.sha256": None}, files={"traceback.txt": b"x" * 10},
    )  # fmt: skip
    parent = record(store, name="depth-abc123", tags={"sweep.name": "depth-abc123"}, start_time=NOW - 18_100_000)
    ids = []
    for job, (dropout, accuracy) in enumerate((("0.0", 0.9), ("0.3", 0.95))):
        metrics = {"best/val_accuracy": accuracy, "test/accuracy": accuracy - 0.01}
        tags = {"sweep": "depth-abc123", "mlflow.parentRunId": parent, "job": str(job), "variant": dropout}
        ids.append(
            record(
                store, name=f"conv2 model.dropout={dropout} seed=0", params={"model.dropout": dropout}, tags=tags,
                metrics=metrics, files={"config.yaml": b"x" * 100}, start_time=NOW - 18_000_000 + job,
            )
        )  # fmt: skip
    add_model(store, ids[1], b"x" * 1000)
    store.set_tag(parent, "best_run_id", ids[1])
    jobs = [
        {"job": job, "overrides": [f"model.dropout={dropout}", "epochs=2"], "fingerprint": "f", "run_id": run_id}
        for job, (dropout, run_id) in enumerate(zip(("0.0", "0.3"), ids, strict=True))
    ]
    store.log_text(parent, json.dumps(jobs), "jobs.json")
    return parent, *ids, failed


def test_runs_are_listed_with_what_differs_the_newest_first(store, depth):
    _, first, second, failed = depth
    entries, more = listing.list_runs()
    assert [entry.run.run_id for entry in entries] == [second, first, failed] and not more
    assert [dict(entry.differs) for entry in entries] == [
        {"model": "conv2", "model.dropout": "0.3"},
        {"model": "conv2", "model.dropout": "0.0"},
        {"model": "conv3"},
    ]
    assert [entry.bytes for entry in entries] == [1100, 100, 10]
    assert [entry.status for entry in entries] == ["finished", "finished", "failed (error)"]
    entries, more = listing.list_runs(last=2)
    assert [entry.run.run_id for entry in entries] == [second, first] and more


def test_the_table_leaves_out_what_most_runs_have(store, depth):
    head, *lines, count = output("runs").splitlines()
    assert re.split(r"  +", head) == [
        "id", "run", "what differs", "objective", "test", "seconds", "status", "size", "age"
    ]  # fmt: skip
    assert [re.split(r"  +", line)[:3] for line in lines] == [
        [depth[2][:8], "conv2 model.dropout=0.3 seed=0", "model.dropout=0.3"],
        [depth[1][:8], "conv2 model.dropout=0.0 seed=0", "model.dropout=0.0"],
        [depth[3][:8], "conv3 seed=0", "model=conv3"],
    ]
    assert re.fullmatch(r".*  0\.9500  0\.9400  +\d+\.\d  finished +1\.1 kB +5 h", lines[0])
    assert re.fullmatch(r".*  failed \(error\) +10 bytes +4 d", lines[2])
    assert count == "3 runs."
    assert output("runs", "--last", "1").splitlines()[-1] == "The newest 1 runs; --last N shows more."


def test_the_json_of_runs(store, depth):
    shown = json.loads(output("runs", "--json", "--sweep", "depth", "--filter", "model.dropout > 0.1"))
    assert len(shown) == 1
    seconds, started = shown[0].pop("seconds"), shown[0].pop("started")
    assert seconds > 0 and started.endswith("+00:00")
    assert shown[0] == {
        "run_id": depth[2],
        "name": "conv2 model.dropout=0.3 seed=0",
        "differs": {},
        "objective": "val_accuracy",
        "value": 0.95,
        "test_accuracy": 0.94,
        "status": "finished",
        "bytes": 1100,
        "seed": 0,
        "sweep": "depth-abc123",
    }


def test_the_json_of_sweeps(store, depth):
    (shown,) = json.loads(output("sweeps", "--json"))
    assert shown.pop("bytes") == 1200 + Path(store.download_artifacts(depth[0], "jobs.json")).stat().st_size
    assert shown.pop("seconds") > 0 and shown.pop("started")
    assert shown == {
        "run_id": depth[0],
        "name": "depth-abc123",
        "differs": ["model.dropout"],
        "objective": "val_accuracy",
        "value": 0.95,
        "test_accuracy": 0.94,
        "status": "finished",
        "jobs": 2,
        "best_run_id": depth[2],
    }


def test_nothing_recorded_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    for lists in (listing.list_runs, listing.list_sweeps):
        with pytest.raises(ExperimentError, match=r"^Nothing is recorded in .*/none.db yet\. Start with: "):
            lists()


def test_the_best_run_of_a_sweep_has_a_name(store, depth):
    for name in ("best:depth-abc123", "best:depth", "best:last", f"best:{depth[0][:31]}"):
        assert find_run(name).run_id == depth[2]
    with pytest.raises(ExperimentError, match=r"^dept: there is no such sweep in this store\. Allowed: depth-abc123\."):
        find_run("best:dept")


def test_a_prefix_of_several_sweeps_is_refused_with_their_ids(store):
    by_digit = {}
    while True:  # at the most 17 times
        run_id = record(store, tags={"sweep.name": f"mine-{len(by_digit):06}"})
        if run_id[0] in by_digit:
            break
        by_digit[run_id[0]] = run_id
    ids = ", ".join(sorted([by_digit[run_id[0]], run_id]))
    with pytest.raises(ExperimentError) as refused:
        find_sweeps([run_id[0]])
    assert str(refused.value) == (
        f"{run_id[0]}: the ids of 2 runs begin with this. Allowed: {ids}. Type more characters."
    )


def test_sweeps_and_runs_are_named_together_and_found_once(store):
    sweep = record_sweep(store, "depth-111111", [{"model": "conv2"}, {"model": "conv3"}], lambda number, seed: 0.9)
    jobs = [run.info.run_id for run in store.search_runs([sweep.experiment_id], f"tags.sweep = '{sweep.name}'")]
    assert len(jobs) == 2
    alone, deleted = record(store), record(store)
    store.delete_run(deleted)
    for names in (["depth", alone, jobs[0], deleted], [deleted, jobs[1], sweep.run_id, alone[:31], alone]):
        assert {run.run_id for run in find_all_runs(names)} == {alone, deleted, *jobs}
        assert len(find_all_runs(names)) == 4
    with pytest.raises(ExperimentError, match=f"{'0' * 32}: there is no such run in this store"):
        find_all_runs([alone, "0" * 32])


def test_many_ids_are_one_query(store, monkeypatch):
    ids = [record(store) for _ in range(20)]
    queries, search = [], mlflow.MlflowClient.search_runs
    monkeypatch.setattr(
        mlflow.MlflowClient, "search_runs", lambda *args, **kwargs: queries.append(args) or search(*args, **kwargs)
    )
    assert [run.run_id for run in find_all_runs(ids)] == ids
    assert len(queries) == 1
