"""The store: where it is, what is refused, how it is shown."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import mlflow
import mlflow.data
import numpy as np
import pytest
from mlflow.exceptions import BAD_REQUEST, MlflowException
from mlflow.types import Schema, TensorSpec

from commands import free_port, runs
from experiments import ExperimentError, run, train
from experiments.config.compose import CHECKOUT, compose
from experiments.tracking import store as store_module
from experiments.tracking.store import check_store, home, nothing_recorded, shown_uri, store_uri
from experiments.tracking.ui import serve_ui

COMMAND = str(Path(sys.executable).parent / "experiments")
QUICK = ["data.limit=20", "epochs=1", "tracking.model=false"]


def test_the_store_is_the_checkouts_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EXPERIMENTS_HOME", raising=False)
    assert store_uri() == f"sqlite:///{CHECKOUT}/mlruns/mlflow.db"


def test_an_installed_package_records_where_it_is_told_or_in_this_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(store_module, "CHECKOUT", None)
    monkeypatch.chdir(tmp_path)
    assert store_uri() == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    monkeypatch.setenv("EXPERIMENTS_HOME", str(tmp_path / "home"))
    assert store_uri() == f"sqlite:///{tmp_path}/home/mlruns/mlflow.db"


def test_a_relative_store_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    monkeypatch.chdir(tmp_path)
    assert store_uri() == f"sqlite:///{tmp_path}/runs.db"


def test_a_store_with_options_of_sqlite_is_made_and_found(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db?timeout=30")
    monkeypatch.chdir(tmp_path)
    assert store_uri() == f"sqlite:///{tmp_path}/runs.db?timeout=30"
    assert nothing_recorded()
    store_module.open_store().search_experiments()
    assert not nothing_recorded()
    assert [made.name for made in tmp_path.iterdir()] == ["runs.db"]


@pytest.mark.slow
def test_a_store_is_made_by_the_first_run_with_its_artifacts_beside_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new/mlflow.db")
    monkeypatch.chdir(tmp_path)
    result = run(QUICK)
    assert Path(result.artifacts).is_relative_to(tmp_path / "new" / "artifacts" / "mnist_5k")
    assert {file.name for file in tmp_path.iterdir()} == {"new"}


def tables(file):
    with closing(sqlite3.connect(file)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_another_program_sees_a_new_store_with_all_its_tables_or_no_file(tmp_path, new_store, monkeypatch):
    file = tmp_path / "mlruns" / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    file.parent.mkdir()
    file.with_name("mlflow.db.new").write_text("of a process that was killed")
    seen = []

    def watch():
        while not file.exists():
            time.sleep(0.0005)
        seen.append(tables(file))

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    assert store_module.open_store().search_runs(["0"]) == []
    watching.join()
    assert seen == [tables(new_store)]
    assert [made.name for made in file.parent.iterdir()] == ["mlflow.db"]


def test_an_experiment_of_ones_own_name(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)  # left over from another program: of no interest
    result = run([*QUICK, "tracking.experiment=ideas/first"])
    experiment = store.get_experiment(store.get_run(result.run_id).info.experiment_id)
    assert experiment.name == "ideas/first"
    assert store.search_runs(["0"]) == []


def test_a_deleted_experiment_is_refused(store):
    experiment = store.create_experiment("gone")
    store.delete_experiment(experiment)
    with pytest.raises(ExperimentError) as error:
        run([*QUICK, "tracking.experiment=gone"])
    assert str(error.value) == (
        "The MLflow experiment gone was deleted. Choose another one with tracking.experiment=…, or: "
        f"mlflow experiments restore -x {experiment}"
    )


def test_system_metrics_are_those_of_mlflow(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    measured, plain = (run([*QUICK, *words]).run_id for words in (["tracking.system_metrics=true"], ["force=true"]))
    found = store.get_metric_history(measured, "system/cpu_utilization_percentage")
    assert [point.step for point in found] == list(range(len(found))) and 0 <= found[0].value <= 100
    assert not any(name.startswith("system/") for name in store.get_run(plain).data.metrics)


def test_a_long_parameter_is_cut_and_says_so(store, tmp_path):
    (tmp_path / "model").mkdir()
    layer = f"  - {{_target_: keras.layers.Activation, activation: relu, name: %s{'_' * 400}}}\n"
    text = "_target_: experiments.models.sequential\nclassifier: true\nlayers:\n  - {_target_: keras.layers.Flatten}\n"
    (tmp_path / "model" / "deep.yaml").write_text(text + "".join(layer % letter for letter in "abcdefghijklmno"))
    result = run([*QUICK, "model=deep"], config_dir=str(tmp_path))
    layers = store.get_run(result.run_id).data.params["model.layers"]
    assert len(layers) == 6000 and layers.endswith(" … see config.yaml")


def test_an_unreachable_server_is_refused_within_20_seconds(tmp_path, monkeypatch):
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://someone:secret@127.0.0.1:{port}")
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    with pytest.raises(ExperimentError) as error:
        run(QUICK)
    assert time.monotonic() - started < 20
    message = str(error.value)
    assert message.startswith(f"The tracking store http://someone:***@127.0.0.1:{port} cannot be reached: ")
    assert message.endswith("Start its server, or unset MLFLOW_TRACKING_URI to record in a local file.")
    assert "secret" not in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_server_that_never_answers_is_refused_within_20_seconds(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(ExperimentError, match="cannot be reached"):
            check_store()
    assert time.monotonic() - started < 20


def test_a_store_of_another_version_is_refused_with_the_command_that_mends_it(store, tmp_path):
    file = tmp_path / "store" / "mlflow.db"
    with sqlite3.connect(file) as database:
        database.execute("UPDATE alembic_version SET version_num = 'bd07f7e963c5'")
    database.close()
    os.utime(file, (0, 0))  # a file just written may be one that another program is making
    before = file.read_bytes()
    # A store that this process has opened already is not looked at again.
    done = subprocess.run([COMMAND, "train", *QUICK], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        f"experiments: The tracking store sqlite:///{file} was made by another version of MLflow than this one "
        f"({mlflow.__version__}). Copy the file first, then: mlflow db upgrade sqlite:///{file}\n"
    )
    assert file.read_bytes() == before


def test_a_file_that_is_no_store_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "mlflow.db"
    file.write_text("no database")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    with pytest.raises(ExperimentError, match=f"^The tracking store sqlite:///{file} cannot be used: .*not a database"):
        check_store()


def test_a_store_that_cannot_be_made_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(ExperimentError) as error:
        check_store()
    assert str(error.value) == (
        f"The tracking store sqlite:///{tmp_path}/file/mlflow.db cannot be created: {tmp_path}/file is not writable."
    )


def test_a_run_and_its_model_are_linked_to_the_data(store):
    result = run(["data.limit=20", "epochs=1"])
    (used,) = store.get_run(result.run_id).inputs.dataset_inputs
    assert {tag.key: tag.value for tag in used.tags} == {
        "mlflow.data.context": "training",
        "training_images": "20",
        "validation_images": "20",
        "test_images": "20",
    }
    sha256 = store.get_run(result.run_id).data.tags["data.sha256"]
    assert (used.dataset.name, used.dataset.digest) == ("mnist_5k", sha256[:36])
    assert json.loads(used.dataset.profile) == {"images": 5000, "image_shape": "28 x 28 x 1", "classes": 10}
    schema = Schema.from_json(json.dumps(json.loads(used.dataset.schema)["mlflow_colspec"]))
    assert schema == Schema(
        [TensorSpec(np.dtype("uint8"), (-1, 28, 28, 1), "image"), TensorSpec(np.dtype("int64"), (-1,), "label")]
    )
    source = mlflow.data.get_source(used)
    assert source.to_dict() == {"tags": {"mlflow.source.name": "experiments.data.mnist_5k"}}
    (output,) = store.get_run(result.run_id).outputs.model_outputs
    points = store.get_logged_model(output.model_id).metrics
    assert {"val_accuracy", "test/accuracy", "cost/macs"} <= {point.key for point in points}
    assert {(point.dataset_name, point.dataset_digest) for point in points} == {("mnist_5k", sha256[:36])}


def test_runs_on_the_same_data_share_them_and_one_that_goes_on_has_them_once(store):
    def interrupt(epoch, _):
        raise KeyboardInterrupt

    overrides = ["data.limit=20", "epochs=2", "tracking.model=false"]
    with pytest.raises(KeyboardInterrupt):
        train.run(compose(overrides), should_stop=interrupt)
    first, other = run(overrides), run([*overrides, "seed=1", "data.limit=30"])
    (interrupted_or_not,) = {found.info.run_id for found in runs(store)} - {other.run_id}
    assert interrupted_or_not == first.run_id  # it has gone on
    (a,), (b,) = (store.get_run(result.run_id).inputs.dataset_inputs for result in (first, other))
    assert a.dataset == b.dataset
    assert [[tag.value for tag in used.tags if tag.key == "test_images"] for used in (a, b)] == [["20"], ["30"]]


def test_runs_that_bring_the_same_data_at_once_are_both_linked(store, monkeypatch, caplog):
    """As the jobs of a sweep do; MLflow refuses the second one."""
    log_inputs = mlflow.MlflowClient.log_inputs
    other = store.create_run("0").info.run_id
    calls = []

    def overtaken(client, run_id, datasets):
        calls.append(run_id)
        if len(calls) == 1:
            log_inputs(store, other, datasets)
            raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed", error_code=BAD_REQUEST)
        log_inputs(client, run_id, datasets)

    monkeypatch.setattr(mlflow.MlflowClient, "log_inputs", overtaken)
    result = run([*QUICK, "tracking.experiment=Default"])
    assert calls == [result.run_id] * 2
    assert len(store.get_run(result.run_id).inputs.dataset_inputs) == 1
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def test_nothing_of_a_finished_run_is_left_outside_the_store(store):
    before = set((home() / "mlruns" / "jobs").glob("*"))
    result = run(QUICK)
    assert set((home() / "mlruns" / "jobs").glob("*")) == before
    assert result.run_id not in {path.name for path in before}


def test_the_ui_without_runs_says_how_to_start(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(
        ExperimentError, match=r"Nothing is recorded in .*none\.db yet\. Start with: experiments train$"
    ):
        serve_ui("127.0.0.1", free_port())


def test_the_ui_on_a_taken_port_names_the_next_one(store):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ExperimentError, match=rf"^Port {port} of 127\.0\.0\.1 is taken\. Try: --port {port + 1}$"):
            serve_ui("127.0.0.1", port)


@pytest.mark.slow
def test_a_plain_installation_brings_its_options_and_records_in_this_folder(tmp_path, cache):
    """Away from the checkout, from its wheel."""
    target = tmp_path / "site"
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    source = tmp_path / "source"
    tracked = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, source / name)
    subprocess.run([*words, "--target", str(target), str(source)], check=True, capture_output=True)
    shutil.rmtree(source)
    home = tmp_path / "home"
    home.mkdir()
    (home / "mine" / "model").mkdir(parents=True)
    (home / "mine" / "model" / "tiny.yaml").write_text(
        "# conv2, smaller.\ndefaults: [conv2, _self_]\nfilters: [2, 4]\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", "train", "--config-dir", "mine", "model=tiny", *QUICK],
        env=environment | {"PYTHONPATH": str(target)},
        cwd=home,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Recording in sqlite:///{home}/mlruns/mlflow.db\n")
    assert "Test accuracy" in done.stdout
    assert {path.name for path in home.iterdir()} == {"mine", "mlruns"}


def test_the_password_of_a_store_is_never_shown(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@example.org/mlflow")
    assert shown_uri() == "http://someone:***@example.org/mlflow"


@pytest.mark.slow
def test_first_runs_at_once_on_a_store_that_does_not_exist_yet(tmp_path):
    """Making its tables is not safe from two processes at once; the one that loses tries again."""
    file = tmp_path / "new" / "mlflow.db"
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{file}"}
    words = [COMMAND, "train", *QUICK]
    started = [
        subprocess.Popen([*words, f"seed={seed}"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for seed in range(3)
    ]
    errors = [process.communicate()[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], errors
    client = mlflow.MlflowClient(f"sqlite:///{file}")
    runs = client.search_runs([client.get_experiment_by_name("mnist_5k").experiment_id])
    assert [found.info.status for found in runs] == ["FINISHED"] * 3
