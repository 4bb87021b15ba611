"""A store that fails: no training stops for it, no number is lost, and none is there twice."""

import json
import re
import shutil
import socket
import sqlite3
import subprocess
import time

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from commands import EXPERIMENTS, Command, Server, experiments, forked, runs, wait_for
from experiments import train
from experiments.config.compose import compose
from experiments.tracking.store import jobs_folder, run_folder

pytestmark = pytest.mark.slow

METRICS = ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "epoch_seconds")
#: Epochs of about half a second.
SLOW = ["data.limit=2000", "batch_size=32", "tracking.store_timeout=60"]


def finished(process):
    process.join(240)
    assert process.exitcode == 0, process.output.read_text()
    return process.output.read_text()


def told(said):
    """How many lines a run has printed that are none of its usual ones."""
    usual = (
        "conv2 ",
        "Epoch ",
        "Test accuracy ",
        "The model predicts ",
        "Recorded as ",
        "View it with",
        "This processor",
    )
    return len([line for line in said.splitlines() if line and not line.startswith(usual)])


def steps(store, run):
    return {name: [point.step for point in store.get_metric_history(run.info.run_id, name)] for name in METRICS}


def every_step(epochs):
    return {name: list(range(1, epochs + 1)) for name in METRICS}


def store_of(server):
    return mlflow.MlflowClient(f"sqlite:///{server.folder}/mlflow.db")


def model_of(store, run):
    (output,) = run.outputs.model_outputs
    return store.get_logged_model(output.model_id)


def test_a_server_that_dies_and_comes_back_gets_every_point_once(server, tmp_path):
    process = forked(tmp_path)(*SLOW, "epochs=8")
    wait_for(2, process, tmp_path / "home")
    server.kill()
    wait_for(5, process, tmp_path / "home")
    server.start()
    said = finished(process)
    assert said.count(f"The tracking store {server.uri} cannot be reached") == 1
    assert said.count("The tracking store answers again and has everything.") == 1
    assert told(said) == 2
    store = store_of(server)
    (run,) = runs(store)
    assert run.info.status == "FINISHED"
    assert steps(store, run) == every_step(8)
    assert len(store.get_metric_history(run.info.run_id, "test/accuracy")) == 1
    assert model_of(store, run).status == "READY"
    assert list((tmp_path / "home" / "mlruns" / "jobs").iterdir()) == []


def test_a_server_that_never_comes_back_leaves_the_run_to_sync(server, tmp_path, monkeypatch):
    process = forked(tmp_path)(*SLOW, "epochs=4", "tracking.store_timeout=1")
    wait_for(2, process, tmp_path / "home")
    server.kill()
    said = finished(process)
    (folder,) = (tmp_path / "home" / "mlruns" / "jobs").iterdir()
    assert f"Everything not yet sent is kept in {folder}." in said
    last = f"conv2 limit=2000 epochs=4 seed=0 ({folder.name}) is not fully recorded yet."
    assert said.splitlines()[-1] == f"{last} Send the rest with: experiments sync"
    assert "Recorded as" not in said
    other = Server(server.folder)  # at another address, with the same database
    other.start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", other.uri)
        sync = [EXPERIMENTS, "sync"]
        sent = subprocess.run(sync, capture_output=True, text=True, check=True).stdout
        store = store_of(server)
        (run,) = runs(store)
        assert sent == f"Sent {run.info.run_name} ({run.info.run_id}): FINISHED\n"
        assert run.info.status == "FINISHED"
        assert steps(store, run) == every_step(4)
        assert {"weights.sha256", "predictions.sha256", "mlflow.note.content"} <= set(run.data.tags)
        assert "test/accuracy" in run.data.metrics
        assert [used.dataset.name for used in run.inputs.dataset_inputs] == ["mnist_5k"]
        reader = mlflow.MlflowClient(other.uri)
        files = {file.path for place in ("", "figures") for file in reader.list_artifacts(run.info.run_id, place)}
        assert {"config.yaml", "figures/curves.png", "test_predictions.npz", "job.log"} <= files
        model = model_of(store, run)
        assert model.status == "READY"
        assert {metric.key for metric in model.metrics} >= {"val_accuracy", "test/accuracy"}
        mlflow.set_tracking_uri(other.uri)  # which runs of other tests in this process have set
        loaded = mlflow.keras.load_model(f"models:/{model.model_id}")
        assert loaded.output_shape == (None, 10)
        assert subprocess.run(sync, capture_output=True, text=True, check=True).stdout == (
            "Nothing to send: the store has everything.\n"
        )
        assert not folder.exists()
    finally:
        other.kill()


def test_a_locked_database_holds_no_training_up(store, tmp_path):
    file = tmp_path / "store" / "mlflow.db"
    process = forked(tmp_path)(*SLOW, "epochs=6")
    wait_for(1, process, tmp_path / "home")
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    wait_for(6, process, tmp_path / "home")
    wait_until(lambda: "cannot be used" in process.output.read_text())
    other.execute("ROLLBACK")
    other.close()
    said = finished(process)
    assert said.count("cannot be used") == 1
    assert told(said) == 2
    (run,) = runs(store)
    assert run.info.status == "FINISHED"
    assert steps(store, run) == every_step(6)


def test_artifacts_that_cannot_be_written_are_sent_later(store, tmp_path):
    artifacts = tmp_path / "store" / "artifacts"
    artifacts.write_text("in the way of a folder")
    said = finished(forked(tmp_path)(*SLOW, "epochs=2", "tracking.store_timeout=0"))
    assert "Send the rest with: experiments sync" in said
    (run,) = runs(store)
    assert run.info.status == "FINISHED"  # only what could not be written waits
    assert steps(store, run) == every_step(2)
    assert {"test/accuracy", "cost/parameters"} <= set(run.data.metrics)
    assert "weights.sha256" in run.data.tags
    artifacts.unlink()
    sent = subprocess.run([EXPERIMENTS, "sync"], capture_output=True, text=True, check=True).stdout
    assert sent == f"Sent {run.info.run_name} ({run.info.run_id}): FINISHED\n"
    (run,) = runs(store)
    assert "figures/curves.png" in {file.path for file in store.list_artifacts(run.info.run_id, "figures")}
    assert model_of(store, run).status == "READY"


def test_a_job_that_starts_during_an_outage_waits_and_fails(server, tmp_path):
    command = ["-m", "data.limit=100", "epochs=1", "tracking.store_timeout=60", "tracking.model=false"]
    jobs = "[{seed: 0}, {seed: 1, tracking.store_timeout: 2}, {seed: 2}]"  # the second one does not wait long
    command += ["hydra.launcher.n_jobs=1", f"hydra.sweeper.include={jobs}"]
    output = tmp_path / "output.txt"
    sweep = Command("train", *command, stdout=output)
    wait_until(lambda: re.search(r"^\[0\] .*: finished", output.read_text(), re.MULTILINE))
    server.kill()  # while the next job is on its way
    wait_for_text(tmp_path / "home", "*-1.log", "Waiting up to", "StoreLost")
    server.start()
    assert sweep.wait(240) == 1
    failed = f": failed: The tracking store {server.uri} cannot be reached"
    assert re.search(rf"^\[1\] .*{re.escape(failed)}", output.read_text(), re.MULTILINE), output.read_text()
    store = store_of(server)
    jobs = {run.data.params["seed"]: run for run in runs(store) if "sweep" in run.data.tags}
    assert [jobs[seed].info.status for seed in "012"] == ["FINISHED", "FAILED", "FINISHED"]
    assert jobs["1"].data.tags["reason"] == "store"
    again = experiments(*command)
    assert again.returncode == 0, again.stdout
    assert "3 jobs: 2 finished, 1 to run" in again.stdout


def wait_for_text(home, pattern, *texts):
    """Waits until a job has printed all of the texts."""
    wait_until(
        lambda: any(all(text in file.read_text() for text in texts) for file in home.glob(f"mlruns/jobs/{pattern}"))
    )


def wait_until(condition):
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_sweep_whose_store_is_lost_for_good_ends_and_goes_on_later(server, tmp_path):
    command = ["-m", "seed=0,1", "data.limit=100", "epochs=2", "tracking.store_timeout=1", "tracking.model=false"]
    command += ["hydra.launcher.n_jobs=1"]
    output = tmp_path / "output.txt"
    sweep = Command("train", *command, stdout=output)
    wait_until(lambda: list((tmp_path / "home").glob("mlruns/jobs/*/checkpoint-000001.npz")))
    server.kill()
    assert sweep.wait(240) == 1
    assert "[0] seed=0: started" in output.read_text()
    assert "2 jobs: 2 not recorded" in output.read_text()
    server.start()
    again = experiments(*command)
    assert again.returncode == 0, again.stdout
    assert "2 jobs: 1 finished, 1 to run" in again.stdout  # the first had trained to its end, and was sent
    store = store_of(server)
    for run in (run for run in runs(store) if "sweep" in run.data.tags):
        assert run.info.status == "FINISHED"
        assert steps(store, run) == every_step(2)


def test_eight_runs_at_once_in_one_file_keep_every_point(store, tmp_path):
    start = forked(tmp_path)
    quick = ["data.limit=100", "epochs=12", "model.filters=[4,4]", "tracking.model=false", "threads=1"]
    for process in [start(*quick, f"seed={seed}") for seed in range(8)]:
        finished(process)
    found = runs(store)
    assert sorted(run.data.params["seed"] for run in found) == list("01234567")
    for run in found:
        assert run.info.status == "FINISHED"
        assert steps(store, run) == every_step(12)


def test_sync_leaves_runs_of_other_stores_and_open_ones_alone(store, tmp_path, capfd):
    foreign = tmp_path / "home" / "mlruns" / "jobs" / ("0" * 32)
    foreign.mkdir(parents=True)
    (foreign / "history.jsonl").write_text('{"kind": "status", "at": 1, "status": "FINISHED"}\n')
    (foreign / "run.json").write_text(json.dumps({"store": "http://elsewhere", "host": "elsewhere", "pid": 1}))
    process = forked(tmp_path)(*SLOW, "epochs=40")
    wait_for(1, process, tmp_path / "home")
    said = subprocess.run([EXPERIMENTS, "sync"], capture_output=True, text=True, check=True).stdout
    process.kill()
    process.join()
    assert said == (
        f"{'0' * 32} is not in this store; it was recorded in http://elsewhere.\n1 more are still running.\n"
    )
    assert foreign.exists()
    said = subprocess.run([EXPERIMENTS, "sync"], capture_output=True, text=True, check=True).stdout
    (run,) = runs(store)
    assert f"Sent {run.info.run_name} ({run.info.run_id}): KILLED\n" in said
    assert run.data.tags["reason"] == "stale"


def test_a_run_whose_folder_is_lost_keeps_its_numbers(store, caplog):
    """As when its disk is full or gone."""

    def lose(epoch, _):
        if epoch == 2:
            (folder,) = jobs_folder().glob("*/")
            shutil.rmtree(folder)
        return False

    result = train.run(compose(["data.limit=100", "epochs=4"]), should_stop=lose)
    assert result.status == "FINISHED"
    (run,) = runs(store)
    assert run.info.status == "FINISHED"
    assert steps(store, run) == every_step(4)
    assert "test/accuracy" in run.data.metrics
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len([text for text in warnings if text.startswith("No checkpoint can be written")]) == 1
    assert len([text for text in warnings if text.startswith("curves.png cannot be written")]) == 1


def test_an_error_without_a_word_ends_no_sending(store, monkeypatch):
    """A store may raise anything, `TimeoutError()` for example."""
    fails = iter([TimeoutError(), MemoryError()])
    log_batch = mlflow.MlflowClient.log_batch

    def failing(*arguments, **keywords):
        if (error := next(fails, None)) is not None:
            raise error
        return log_batch(*arguments, **keywords)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", failing)
    train.run(compose(["data.limit=50", "epochs=2", "tracking.model=false"]))
    (run,) = runs(store)
    assert run.info.status == "FINISHED"
    assert steps(store, run) == every_step(2)


def test_data_that_cannot_be_linked_hold_up_nothing_and_are_linked_later(store, monkeypatch, capfd):
    def lost(*_):
        raise MlflowException("the connection was refused")

    with monkeypatch.context() as outage:
        outage.setattr(mlflow.MlflowClient, "log_inputs", lost)
        result = train.run(compose(["data.limit=50", "epochs=2", "tracking.store_timeout=0"]))
    assert "Send the rest with: experiments sync" in capfd.readouterr().out
    (run,) = runs(store)
    assert run.info.status == "FINISHED" == result.status
    assert run.inputs.dataset_inputs == []
    assert steps(store, run) == every_step(2)
    assert "test/accuracy" in run.data.metrics
    assert model_of(store, run).status == "READY"
    for _ in range(2):
        subprocess.run([EXPERIMENTS, "sync"], capture_output=True, text=True, check=True)
        (run,) = runs(store)
        (used,) = run.inputs.dataset_inputs
        assert (used.dataset.name, used.dataset.digest) == ("mnist_5k", run.data.tags["data.sha256"][:36])
    assert steps(store, run) == every_step(2)


def test_one_run_that_cannot_be_sent_holds_up_no_other(store, tmp_path, capfd):
    """A run that was deleted meanwhile, one with a damaged model, and one of another program on this host."""
    start = forked(tmp_path)
    processes = [start("data.limit=200", "epochs=500", "tracking.model=false", f"seed={seed}") for seed in range(3)]
    wait_until(lambda: len([run for run in runs(store) if "loss" in run.data.metrics]) == 3)
    assert all(process.is_alive() for process in processes)
    for process in processes:
        process.kill()
        process.join()
    deleted, damaged, good = (run.info.run_id for run in runs(store))
    store.delete_run(deleted)
    folder = run_folder(damaged)
    (folder / "model").mkdir()
    (folder / "model" / "MLmodel").write_text("")
    with (folder / "history.jsonl").open("a") as journal:
        journal.write('{"kind": "model", "at": 1, "step": 1}\n')
    store.create_run("0", run_name="of another program", tags={"host": socket.gethostname()})
    result = train.run(compose(["data.limit=50", "epochs=1", "tracking.model=false"]))
    assert result.status == "FINISHED"
    assert store.get_run(good).info.status == "KILLED"
    done = subprocess.run([EXPERIMENTS, "sync"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f" cannot be sent from {folder}: " in done.stdout
    assert len(done.stdout.splitlines()) == 2
