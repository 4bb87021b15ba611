"""What nobody needs any more is found and deleted, and nothing else."""

import os
import subprocess
import time

import pytest
from click.testing import CliRunner
from mlflow.entities import ViewType

from commands import EXPERIMENTS
from experiments import cli, load
from experiments.compare import cleaning
from experiments.errors import ExperimentError
from experiments.tracking.locks import lock
from experiments.tracking.registry import register
from experiments.tracking.runs import get_run
from experiments.tracking.store import jobs_folder, open_store
from records import add_model, record

SCORE = {"best/val_accuracy": 0.9, "test/accuracy": 0.9}
GOES = {
    "failed", "killed", "superseded", "finished later", "deleted", "failed job", "sweep without any run", "only job",
    "failed ensemble",
}  # fmt: skip
STAYS = {
    "started by", "best of a sweep", "model of the best seed", "model of a weaker seed", "diverged", "pruned",
    "running", "registered", "reproduced", "reproduction", "origin", "resumable", "of a running sweep", "running sweep",
    "locked", "sweep with a finished run", "its finished run", "of another program", "deleted by another program",
    "waiting", "killed elsewhere", "member", "ensemble",
}  # fmt: skip


def finished(store, **more):
    """A finished run with a model."""
    run_id = record(store, metrics={**SCORE, **more.pop("metrics", {})}, files={"config.yaml": b"x" * 100}, **more)
    return run_id, add_model(store, run_id, b"m" * 1000)


def fill(store, home):
    """One run of every kind; kind -> id."""
    ids = {}

    def broken(kind, status="FAILED", fingerprint=None, **tags):
        tags = {"fingerprint": fingerprint or kind, **tags}
        ids[kind] = record(store, name=kind, status=status, tags=tags, files={"traceback.txt": b"x" * 10})
        return ids[kind]

    def folder(kind, file):
        path = home / "mlruns" / "jobs" / ids[kind]
        path.mkdir(parents=True)
        (path / file).write_bytes(b"x" * 5)

    broken("failed", reason="error")
    folder("failed", "checkpoint-000001.npz")  # what has failed would fail again
    broken("killed", "KILLED", host=os.uname().nodename)
    broken("superseded", "KILLED", superseded="other", host="elsewhere")
    broken("finished later", "KILLED", "f", host="elsewhere")
    broken("diverged", diverged="true")
    broken("resumable", "KILLED", host=os.uname().nodename)
    folder("resumable", "checkpoint-000001.npz")
    broken("killed elsewhere", "KILLED", host="elsewhere")
    broken("locked")
    broken("waiting")
    folder("waiting", "history.jsonl")
    store.delete_run(broken("deleted", "FINISHED"))
    ids["pruned"] = record(store, tags={"pruned": "true"})
    ids["running"] = record(store, status="RUNNING")
    parent = ids["sweep with a finished run"] = record(store, status="FAILED", tags={"sweep.name": "a-123456"})
    inside = {"sweep": "a-123456", "mlflow.parentRunId": parent}
    broken("failed job", **inside)
    ids["its finished run"], _ = finished(store, tags={**inside, "variant": "b"}, params={"model.dropout": "0.3"})
    parent = ids["sweep without any run"] = record(store, status="KILLED", tags={"sweep.name": "b-123456"})
    broken("only job", **{"sweep": "b-123456", "mlflow.parentRunId": parent})
    parent = ids["running sweep"] = record(store, status="RUNNING", tags={"sweep.name": "c-123456"})
    broken("of a running sweep", **{"sweep": "c-123456", "mlflow.parentRunId": parent})
    ids["model of the best seed"], _ = finished(store, metrics={"best/val_accuracy": 0.95})
    ids["model of a weaker seed"], _ = finished(store, params={"seed": "1"})
    ids["best of a sweep"], _ = finished(store, params={"seed": "2"})
    store.set_tag(ids["sweep with a finished run"], "best_run_id", ids["best of a sweep"])
    ids["registered"], _ = finished(store, params={"seed": "3"})
    register("digits", get_run(ids["registered"]), {}, "")
    ids["reproduced"] = broken("reproduced", "KILLED")
    ids["reproduction"] = record(store, tags={"reproduces": ids["reproduced"]})
    ids["origin"], _ = finished(store, params={"seed": "4"})
    ids["started by"] = record(store, params={"init_from": f"runs:/{ids['origin']}@sha256:abc", "seed": "5"})
    ids["member"], _ = finished(store, params={"seed": "6"})
    ids["ensemble"], _ = finished(
        store, tags={"fingerprint": None, "members": f"{ids['member']} other", "variant": "ensemble of 2"}
    )
    ids["failed ensemble"] = record(
        store, status="FAILED", tags={"fingerprint": None, "members": "other"}, files={"x": b"x" * 10}
    )
    strange = store.create_experiment("strange", artifact_location=(home / "strange").as_uri())
    ids["of another program"] = store.create_run(strange).info.run_id
    store.set_terminated(ids["of another program"], "FAILED")
    ids["deleted by another program"] = store.create_run(strange).info.run_id
    store.delete_run(ids["deleted by another program"])
    return ids


def is_there(store, run_id):
    found = store.search_experiments(view_type=ViewType.ALL)
    runs = store.search_runs([each.experiment_id for each in found], f"attributes.run_id = '{run_id}'", ViewType.ALL)
    return bool(runs)


def num_bytes(*folders):
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())


def places(tmp_path):
    """The folders of artifacts, and those that runs have left in their home."""
    return tmp_path / "store" / "artifacts", *jobs_folder().glob("*/")


def clean(*words):
    done = CliRunner().invoke(cli.command_line, ["clean", *words], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_exactly_what_nobody_needs_goes(store, tmp_path):
    ids = fill(store, tmp_path / "home")
    assert set(ids) == GOES | STAYS
    before = num_bytes(*places(tmp_path))
    with lock("locked"):
        plan = cleaning.find()
        names = {run_id: kind for kind, run_id in ids.items()}
        assert {names[item.run.run_id] for item in plan.items} == GOES
        assert plan.resumable == 5
        assert plan.bytes == 8 * 10 + 5
        said = clean()
        assert "This would delete 9 runs and 0 models, 85 bytes (85 bytes). To delete them, add --yes." in said
        assert num_bytes(*places(tmp_path)) == before
        assert "Deleted 9 runs and 0 models, 85 bytes (85 bytes)." in clean("--yes")
        assert {kind for kind, run_id in ids.items() if not is_there(store, run_id)} == GOES
        assert before - num_bytes(*places(tmp_path)) == plan.bytes
        assert "There is nothing to delete." in clean("--yes")


def test_only_the_models_of_the_best_seeds_are_kept(store, tmp_path):
    ids = fill(store, tmp_path / "home")
    plan = cleaning.find(keep_models=1)
    names = {run_id: kind for kind, run_id in ids.items()}
    weaker = [item for item in plan.items if item.models_only]
    assert [names[item.run.run_id] for item in weaker] == ["model of a weaker seed"]
    assert weaker[0].room.bytes == 1000
    assert [item for item in cleaning.find(keep_models=6).items if item.models_only] == []
    clean("--keep-models", "1", "--yes")
    with pytest.raises(ExperimentError, match="has no model: it was deleted"):
        load(ids["model of a weaker seed"])
    with pytest.raises(ExperimentError, match="cannot be loaded"):  # it is no model, but it is there
        load(ids["model of the best seed"])
    assert [item for item in cleaning.find(keep_models=1).items] == []


def test_without_a_store_there_is_nothing_to_clean(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(
        ExperimentError, match=r"^There is no store to clean: nothing is recorded in sqlite:.*/none\.db\.$"
    ):
        cleaning.find()
    assert not list(tmp_path.glob("none*"))


def test_a_run_that_is_trained_again_meanwhile_stays(store, tmp_path):
    run_id = record(store, status="FAILED", tags={"reason": "error"})
    plan = cleaning.find()
    store.update_run(run_id, status="RUNNING")
    assert list(cleaning.delete(plan)) == []
    assert is_there(store, run_id)


def table(tmp_path):
    """What `compare` says of all runs, as CSV."""
    file = tmp_path / "table.csv"
    words = ["compare", "--filter", "params.model = 'conv2'", "--csv", str(file)]
    assert CliRunner().invoke(cli.command_line, words, catch_exceptions=False).exit_code == 0
    return file.read_text()


@pytest.mark.slow
def test_of_300_runs_exactly_the_named_ones_go_also_if_killed_in_the_middle(store, tmp_path):
    for number in range(100):
        record(
            store, status=("FAILED", "KILLED")[number % 2],
            files={"job.log": b"x" * 1000, "figures/x.png": b"x" * 50_000},
            tags={"host": os.uname().nodename, "fingerprint": str(number)},
        )  # fmt: skip
    finished_runs, models = set(), {}
    for number in range(200):
        dropout, seed = f"0.{number // 10:02}", number % 10
        run_id = record(
            store, params={"model.dropout": dropout, "seed": str(seed)}, tags={"variant": dropout},
            metrics={"best/val_accuracy": 0.9 - 0.01 * (number // 10) + 0.001 * (seed * 7 % 10)},
        )  # fmt: skip
        finished_runs.add(run_id)
        if number < 100:
            models[add_model(store, run_id, b"m" * 1000)] = seed * 7 % 10
    plan, before, said = cleaning.find(keep_models=3), num_bytes(*places(tmp_path)), table(tmp_path)
    assert (len(plan.items), plan.resumable, plan.bytes) == (100 + 10 * 7, 0, 100 * 51_000 + 10 * 7 * 1000)
    words = ["clean", "--keep-models", "3", "--yes"]
    process = subprocess.Popen([EXPERIMENTS, *words], stdout=subprocess.DEVNULL)
    while len(list(tmp_path.glob("store/artifacts/digits/*/artifacts/job.log"))) > 60:
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert 200 < len(store.search_runs([store.get_experiment_by_name("digits").experiment_id])) < 300
    clean(*words[1:])
    left = store.search_runs([store.get_experiment_by_name("digits").experiment_id], run_view_type=ViewType.ALL)
    assert {run.info.run_id for run in left} == finished_runs
    assert before - num_bytes(*places(tmp_path)) == plan.bytes
    kept = store.search_logged_models([store.get_experiment_by_name("digits").experiment_id])
    assert {model.model_id for model in kept} == {model for model, rank in models.items() if rank >= 7}
    assert table(tmp_path) == said
    assert cleaning.find(keep_models=3).items == ()


@pytest.mark.slow
def test_a_server_is_cleaned_with_its_artifacts(server, tmp_path):
    store = open_store()
    failed = record(store, status="FAILED", files={"traceback.txt": b"x" * 10, "figures/curves.png": b"x" * 20})
    broken = record(store, status="FAILED", files={"traceback.txt": b"x" * 10})
    add_model(store, broken, b"m" * 500)
    good, weaker = (finished(store, params={"seed": str(seed)})[0] for seed in (0, 1))
    before = num_bytes(server.folder / "artifacts")
    plan = cleaning.find(keep_models=1)
    assert {item.run.run_id: item.room.bytes for item in plan.items} in (
        {failed: 30, broken: 510, weaker: 1000}, {failed: 30, broken: 510, good: 1000}
    )  # fmt: skip
    said = clean("--keep-models", "1", "--yes")
    assert said.endswith(
        "Deleted 2 runs and 2 models, 1.5 kB (1,540 bytes).\n"
        "Their parameters and metrics stay in the server's database until mlflow gc is run there.\n"
    )
    assert before - num_bytes(server.folder / "artifacts") == 1540
    assert {run_id: store.get_run(run_id).info.lifecycle_stage for run_id in (failed, broken, good, weaker)} == {
        failed: "deleted", broken: "deleted", good: "active", weaker: "active"
    }  # fmt: skip
    assert "There is nothing to delete." in clean("--keep-models", "1", "--yes")
