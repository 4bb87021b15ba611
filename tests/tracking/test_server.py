"""What many machines share: an MLflow server on PostgreSQL, that keeps its artifacts on disk or on S3."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import boto3
import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from commands import Command, Server, finished, runs
from experiments.tracking.sizes import num_bytes
from records import record
from servers import S3, PostgreSQL, postgresql_programs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(postgresql_programs() is None, reason="PostgreSQL is not installed: apt-get install postgresql"),
]

#: Small nets, quickly trained: no number of them matters here.
WORDS = ["data.limit=200", "epochs=2", "model.filters=[4,4]", "model.dense_units=[8]"]
WORDS += ["tracking.store_timeout=600"]
METRICS = ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "epoch_seconds")
PATIENCE = 600  # seconds


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory):
    with tempfile.TemporaryDirectory() as folder:  # nobody else may enter pytest's own
        postgresql = PostgreSQL(Path(folder), tmp_path_factory.mktemp("passwords") / "pgpass")
        yield postgresql
        postgresql.kill()


@pytest.fixture
def start_server(postgresql, tmp_path, monkeypatch):
    """Starts a server on PostgreSQL whose store every run of the test goes to."""
    servers = []

    def start(name, **options):
        uri = postgresql.new_database(name)
        server = Server(tmp_path, database=uri, PGPASSFILE=str(postgresql.passwords), **options)
        servers.append(server)
        server.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        monkeypatch.setenv("EXPERIMENTS_HOME", str(tmp_path / "home"))
        return server

    yield start
    for server in servers:
        server.kill()


def wait_for(condition, *processes):
    """Waits until something is so, while all the processes run."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.02)
    return found


def killed_job(home, dropout):
    """Kills a job with such a dropout in the middle of its training and returns its run's id; None if there is none."""
    for journal in home.glob("mlruns/jobs/*/history.jsonl"):
        with contextlib.suppress(FileNotFoundError):  # it has ended just now
            written, owner = journal.read_text(), json.loads((journal.parent / "run.json").read_text())
            begun, ended = '"kind": "metrics"' in written, '"kind": "status"' in written
            if f'"model.dropout": "{dropout}"' in written and begun and not ended:
                os.kill(owner["pid"], signal.SIGKILL)
                return journal.parent.name
    return None


@contextlib.contextmanager
def sweeps(commands):
    """Commands under way, from their files of output; none outlives its test."""
    started = [Command(*words, stdout=file) for file, words in commands.items()]
    try:
        yield started
    finally:
        for command in started:
            command.kill_group()


def finished_jobs(store):
    return [run for run in runs(store) if "job" in run.data.tags and run.info.status == "FINISHED"]


def points(store, run):
    return {name: [point.step for point in store.get_metric_history(run.info.run_id, name)] for name in METRICS}


def models(store):
    """The run of each model that the store has."""
    places = [experiment.experiment_id for experiment in store.search_experiments()]
    return [model.source_run_id for model in store.search_logged_models(places)]


def ran(*words):
    """What a command has printed, which has done what it was to do."""
    done = finished(*words)
    assert done.returncode == 0, done.stdout
    return done.stdout


def picture(digits, folder):
    """A picture of a test image."""
    file = folder / "digit.png"
    Image.fromarray(np.load(digits)["x_test"][0]).save(file)
    return str(file)


def deleted(said):
    """How many runs, models and bytes `clean` has deleted, by what it has printed."""
    found = re.search(r"^Deleted (\d+) runs? and (\d+) models?, .* \(([\d,]+) bytes\)\.$", said, re.MULTILINE)
    return tuple(int(number.replace(",", "")) for number in found.groups())


def test_two_sweeps_at_once_on_a_server_that_restarts(start_server, tmp_path, digits):
    server, home = start_server("disk"), tmp_path / "home"
    store = mlflow.MlflowClient(server.uri)

    def sweep(dropout):
        return ["train", "-m", *WORDS, f"model.dropout={dropout}", "seed=range(3)", "hydra.launcher.n_jobs=1"]

    # Three of the nine jobs belong to both, which begin with them.
    output = {dropout: tmp_path / dropout for dropout in ("0.1,0.0", "0.1,0.2")}
    with sweeps({file: sweep(dropout) for dropout, file in output.items()}) as (first, second):
        wait_for(lambda: sum(file.read_text().count(": finished") for file in output.values()) >= 2, first, second)
        server.kill()
        server.start()
        killed = wait_for(lambda: killed_job(home, "0.0"), first)
        assert first.wait(PATIENCE) == 1
        assert second.wait(PATIENCE) in (0, 1)  # 1 if the first was training a job of both just then
    assert ": killed: SIGKILL" in output["0.1,0.0"].read_text()
    assert len(finished_jobs(store)) == 8
    assert store.get_run(killed).info.status == "KILLED"

    said = ran(*sweep("0.0,0.1,0.2"), "sweep.name=shared")
    assert said.startswith("9 jobs: 8 finished, 1 to run\n")
    assert "\n9 jobs: 9 finished\n" in said
    found = finished_jobs(store)
    assert Counter((run.data.params["model.dropout"], run.data.params["seed"]) for run in found) == Counter(
        (dropout, seed) for dropout in ("0.0", "0.1", "0.2") for seed in "012"
    )
    for run in found:
        assert points(store, run) == {name: [1, 2] for name in METRICS}
        assert "test/accuracy" in run.data.metrics
    ids = sorted(run.info.run_id for run in found)
    assert killed in ids
    assert sorted(models(store)) == ids
    assert list((home / "mlruns" / "jobs").iterdir()) == []

    compare = ["compare", "shared", "--json"]
    table = ran(*compare)
    best, *others = json.loads(table)["rows"]
    assert sorted(run_id for variant in (best, *others) for run_id in variant["run_ids"]) == ids
    assert "\nEqual: every recorded number of " in ran("reproduce", "best:shared")
    predict = ["predict", "best:shared", picture(digits, tmp_path), "--json"]
    answer = ran(*predict)
    assert " is now version 1 of digits and its champion" in ran("register", "shared", "--name", "digits")
    champion = store.get_model_version_by_alias("digits", "champion").run_id
    assert champion in best["run_ids"]

    failed = record(store, status="FAILED", files={"traceback.txt": b"x" * 10})
    before, room = models(store), num_bytes(str(server.folder / "artifacts"))
    said = deleted(ran("clean", "--keep-models", "1", "--yes"))
    kept = models(store)
    assert said == (1, len(before) - len(kept), room - num_bytes(str(server.folder / "artifacts")))
    assert champion in kept
    assert all(set(kept).intersection(variant["run_ids"]) for variant in (best, *others))
    assert store.get_run(failed).info.lifecycle_stage == "deleted"
    assert ran(*compare) == table
    assert ran(*predict) == answer
    assert ran("clean", "--keep-models", "1") == "There is nothing to delete.\n"
    gc = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", server.database, "--tracking-uri", server.uri]
    subprocess.run(gc, env=os.environ | server.env, check=True)
    with pytest.raises(MlflowException, match="not found"):
        store.get_run(failed)
    assert ran(*compare) == table


@pytest.fixture
def bucket(tmp_path):
    """A bucket, and what a process needs to reach it."""
    s3, credentials = S3(), tmp_path / "credentials"
    credentials.write_text("[default]\naws_access_key_id = mlflow\naws_secret_access_key = of-the-server-alone\n")
    env = {"MLFLOW_S3_ENDPOINT_URL": s3.url, "AWS_SHARED_CREDENTIALS_FILE": str(credentials)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
        bucket = boto3.session.Session().resource("s3", endpoint_url=s3.url).create_bucket(Bucket="runs")
    yield bucket, env
    s3.kill()


def test_artifacts_on_s3_go_through_the_server(start_server, bucket, tmp_path, digits):
    bucket, env = bucket
    server = start_server("s3", artifacts="s3://runs/mlflow", **env)
    store = mlflow.MlflowClient(server.uri)
    two_by_two = ["model.dropout=0.0,0.1", "seed=0,1", "hydra.launcher.n_jobs=2"]
    assert "\n4 jobs: 4 finished\n" in ran("train", "-m", *WORDS, *two_by_two, "sweep.name=remote")
    stored = {file.key for file in bucket.objects.all()}
    for run in finished_jobs(store):
        place = f"mlflow/{run.info.experiment_id}"
        (output,) = run.outputs.model_outputs
        assert run.info.artifact_uri == f"mlflow-artifacts:/{run.info.experiment_id}/{run.info.run_id}/artifacts"
        assert f"{place}/{run.info.run_id}/artifacts/test_predictions.npz" in stored
        assert f"{place}/models/{output.model_id}/artifacts/data/model.keras" in stored

    table = ran("compare", "remote", "--json")
    digit = picture(digits, tmp_path)
    answer = ran("predict", "best:remote", digit, "--json")
    ran("register", "remote", "--name", "digits")
    ran("predict", "models:/digits@champion", digit)
    room = sum(file.size for file in bucket.objects.all())
    said = deleted(ran("clean", "--keep-models", "1", "--yes"))
    assert said == (0, 4 - len(models(store)), room - sum(file.size for file in bucket.objects.all()))
    assert said[1] > 0
    assert ran("compare", "remote", "--json") == table
    assert ran("predict", "best:remote", digit, "--json") == answer
