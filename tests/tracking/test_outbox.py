"""What one failing journal entry does to those behind it, to the status of the run and to `sync`."""

import errno
import json
import logging
import os
import subprocess
from pathlib import Path
from time import monotonic

import mlflow
import pytest
from mlflow.exceptions import ErrorCode, MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path

from commands import EXPERIMENTS, free_port
from experiments import train
from experiments.tracking.outbox import Outbox, full_disk_is_a_warning
from experiments.tracking.store import experiment_id, run_folder


@pytest.fixture
def opened(store):
    """A run that is open in the store: its id, its folder and its outbox."""
    return open_again(
        store, store.create_run(experiment_id(store, "outbox"), run_name="mine").info.run_id, unsure=False
    )


def open_again(store, run_id, *, unsure=True):
    folder = run_folder(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    return run_id, folder, Outbox(store, run_id, folder, unsure=unsure)


def record_all(outbox):
    outbox.put("params", params={"first": "1", "second": "2"})
    outbox.put("metrics", step=1, metrics={"loss": 0.5, "accuracy": 0.75}, of_model=False)
    outbox.put_file("notes.txt", "text")
    outbox.put("tags", tags={"idea": "x", "other": "y"})


def stored(store, run_id):
    """All that the store has of `record_all`, and how the run has ended."""
    run = store.get_run(run_id)
    tags = {name: run.data.tags[name] for name in ("idea", "other") if name in run.data.tags}
    files = [file.path for file in store.list_artifacts(run_id)]
    return run.data.params, run.data.metrics, files, tags, run.info.status


EVERYTHING = (
    {"first": "1", "second": "2"},
    {"loss": 0.5, "accuracy": 0.75},
    ["notes.txt"],
    {"idea": "x", "other": "y"},
    "FINISHED",
)
WITHOUT_THE_FILE = (*EVERYTHING[:2], [], *EVERYTHING[3:])


def local(uri):
    """The path of a `file:` URI."""
    return Path(local_file_uri_to_path(uri))


def waiting(folder):
    return [json.loads(line)["kind"] for line in (folder / "history.jsonl").read_text().splitlines()]


def sync():
    done = subprocess.run([EXPERIMENTS, "sync"], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_what_is_refused_for_good_is_left_out_and_named_on_the_run(store, opened, caplog):
    run_id, folder, outbox = opened
    outbox.put("params", params={"before": "1", "shift+rotate": "2", "after": "3"})
    outbox.put("metrics", step=1, metrics={"f1+": 0.5, "loss": 0.25}, of_model=False)
    outbox.put("tags", tags={"idea": "x"})
    began = monotonic()
    assert outbox.close("FINISHED", patience=100)
    assert monotonic() - began < 50
    run = store.get_run(run_id)
    assert run.data.params == {"before": "1", "after": "3"}
    assert run.data.metrics == {"loss": 0.25}
    assert run.data.tags["idea"] == "x"
    assert run.info.status == "FINISHED"
    first, second = run.data.tags["not_recorded"].splitlines()
    assert first.startswith("params shift+rotate: Invalid value") and second.startswith("metrics f1+: Invalid value")
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert [text.partition(": ")[0] for text in warnings] == [
        "The tracking store refuses params shift+rotate", "The tracking store refuses metrics f1+"
    ]  # fmt: skip
    assert not (folder / "history.jsonl").exists()


@pytest.mark.slow
def test_a_run_that_was_deleted_keeps_its_journal_until_it_is_restored(store, opened):
    run_id, folder, outbox = opened
    store.delete_run(run_id)
    record_all(outbox)
    assert not outbox.close("FINISHED", patience=100)
    assert waiting(folder) == ["params", "metrics", "file", "tags", "status"]
    (folder / "run.json").write_text(json.dumps({"store": os.environ["MLFLOW_TRACKING_URI"], "host": "", "pid": None}))
    status, said = sync()
    assert status == 1
    assert said.startswith(f"mine cannot be sent from {folder}: The tracking store ")
    store.restore_run(run_id)
    assert sync() == (0, f"Sent mine ({run_id}): FINISHED\n")
    assert stored(store, run_id) == EVERYTHING


@pytest.mark.slow
def test_a_file_that_is_refused_now_waits_alone_for_sync(store, opened):
    run_id, folder, outbox = opened
    artifacts = local(store.get_run(run_id).info.artifact_uri)
    artifacts.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_text("in the way of a folder")
    record_all(outbox)
    began = monotonic()
    assert not outbox.close("FINISHED", patience=100)
    assert monotonic() - began < 50  # waiting would not help
    assert stored(store, run_id) == WITHOUT_THE_FILE
    status, said = sync()
    assert (status, len(said.splitlines())) == (1, 1)
    assert said.startswith(f"mine cannot be sent from {folder}: The tracking store ")
    assert said.endswith(
        "Correct that and run experiments sync again, or delete the folder if nobody needs what is in it.\n"
    )
    artifacts.unlink()
    assert sync() == (0, f"Sent mine ({run_id}): FINISHED\n")
    assert stored(store, run_id) == EVERYTHING
    assert sync() == (0, "Nothing to send: the store has everything.\n")


def test_what_an_attempt_could_not_send_is_sent_by_the_next_one(store, opened):
    run_id, folder, outbox = opened
    artifacts = local(store.get_run(run_id).info.artifact_uri)
    artifacts.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_text("in the way of a folder")
    record_all(outbox)
    assert not outbox.close("FAILED", patience=100)
    artifacts.unlink()
    _, _, again = open_again(store, run_id)
    assert again.close("FINISHED", patience=100)
    assert stored(store, run_id) == EVERYTHING
    assert not (folder / "history.jsonl").exists()


def test_while_the_store_does_not_answer_everything_waits_in_its_order(store, opened, monkeypatch):
    run_id, folder, outbox = opened
    with monkeypatch.context() as outage:

        def lost(*_, **__):
            raise MlflowException("no answer")

        outage.setattr(mlflow.MlflowClient, "log_batch", lost)
        record_all(outbox)
        assert not outbox.close("FINISHED", patience=0)
        assert stored(store, run_id) == ({}, {}, [], {}, "RUNNING")
        assert waiting(folder) == ["params", "metrics", "file", "tags", "status"]
    _, _, again = open_again(store, run_id)
    assert again.close("FINISHED", patience=100)
    assert stored(store, run_id) == EVERYTHING


def test_when_all_is_forbidden_everything_is_kept(store, opened, monkeypatch):
    run_id, folder, outbox = opened

    def forbidden(*_, **__):
        raise MlflowException("log in first", error_code=ErrorCode.Value("PERMISSION_DENIED"))

    with monkeypatch.context() as outage:
        for name in ("log_batch", "set_tag", "log_artifact", "set_terminated"):
            outage.setattr(mlflow.MlflowClient, name, forbidden)
        record_all(outbox)
        assert not outbox.close("FINISHED", patience=100)
    assert waiting(folder) == ["params", "metrics", "file", "tags", "status"]
    _, _, again = open_again(store, run_id)
    assert again.close("FINISHED", patience=100)
    assert stored(store, run_id) == EVERYTHING


def test_a_folder_whose_name_is_too_long_costs_no_waiting(store):
    """An experiment that was made without a limit on its folder's name."""
    folder = Path(os.environ["EXPERIMENTS_HOME"]) / ("a" * 256)
    experiment = store.create_experiment("long", artifact_location=folder.as_uri())
    run_id, folder, outbox = open_again(store, store.create_run(experiment).info.run_id, unsure=False)
    record_all(outbox)
    began = monotonic()
    assert not outbox.close("FINISHED", patience=100)
    assert monotonic() - began < 50
    run = store.get_run(run_id)
    assert (run.info.status, run.data.params) == ("FINISHED", {"first": "1", "second": "2"})
    assert (folder / "notes.txt").read_text() == "text"


def test_a_full_disk_of_artifacts_holds_up_only_the_file(store, opened, monkeypatch):
    run_id, _, outbox = opened

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as outage:
        outage.setattr(mlflow.MlflowClient, "log_artifact", full)
        record_all(outbox)
        assert not outbox.close("FINISHED", patience=0)
    assert stored(store, run_id) == WITHOUT_THE_FILE
    _, _, again = open_again(store, run_id)
    assert again.close("FINISHED", patience=100)
    assert stored(store, run_id) == EVERYTHING


@pytest.mark.slow
def test_sync_with_an_unreachable_store_exits_with_1(monkeypatch, tmp_path):
    monkeypatch.setenv("EXPERIMENTS_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    status, said = sync()
    assert status == 1
    assert said.startswith("experiments: The tracking store http://127.0.0.1:") and "cannot be reached" in said


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_or_read_only_disk_is_a_warning(number, tmp_path, caplog):
    with full_disk_is_a_warning(tmp_path / "curves.png"):
        (tmp_path / "curves.png").write_text("a part")
        raise OSError(number, os.strerror(number))
    assert caplog.messages == [f"curves.png cannot be written: [Errno {number}] {os.strerror(number)}"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ENAMETOOLONG, errno.ENOENT])
def test_another_trouble_with_a_file_is_an_error(number, tmp_path):
    with pytest.raises(OSError, match=rf"Errno {number}\b"), full_disk_is_a_warning(tmp_path / "curves.png"):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize(("number", "status"), [(errno.EACCES, "FAILED"), (errno.ENOSPC, "FINISHED")])
def test_a_model_that_cannot_be_saved(number, status, store, compose, monkeypatch, caplog):
    import mlflow.keras

    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(mlflow.keras, "save_model", fails)
    caplog.set_level(logging.WARNING)
    configuration = compose("data.limit=50", "epochs=1")
    if status == "FAILED":
        with pytest.raises(PermissionError):
            train.run(configuration)
    else:
        assert train.run(configuration).status == status
    experiment = store.get_experiment_by_name("mnist_5k").experiment_id
    (run,) = store.search_runs([experiment])
    assert run.info.status == status
    assert ("failure" in run.data.tags) == (status == "FAILED")
    assert ("model cannot be written" in caplog.text) == (status == "FINISHED")
    assert {"loss", "val_accuracy"} <= set(run.data.metrics)
