"""Runs as a training records them, made with MLflow's client in a moment."""

import tempfile
from pathlib import Path

from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric, Param

from experiments.tracking.store import experiment_id, local_folder

DATA = {"data.sha256": "d" * 64, "data.validation_sha256": "v" * 64, "data.test_sha256": "t" * 64}
PARAMS = {"model": "conv2", "model.dropout": "0.0", "optimizer": "adam", "optimizer.learning_rate": "0.001",
          "seed": "0", "objective": "val_accuracy", "data": "mnist_5k", "data.limit": "null"}  # fmt: skip


def record(store, *, name="conv2 seed=0", status="FINISHED", params=None, tags=None, metrics=None, files=None, **more):
    """Records a run and returns its id.

    Args:
        store: an MLflow client.
        name: of the run.
        status: that it ends with; RUNNING for one that does not.
        params: beside PARAMS.
        tags: beside those of a run on DATA.
        metrics: of the run.
        files: artifacts, name -> bytes.
        more: `start_time` in milliseconds, or `experiment_id`.
    """
    place = more.pop("experiment_id", None) or experiment_id(store, "digits")
    own = {"variant": "a", "fingerprint": "f", "code.sha256": "c", "host": "here", **DATA, **(tags or {})}
    own = {key: value for key, value in own.items() if value is not None}
    run_id = store.create_run(place, tags=own, run_name=name, **more).info.run_id
    values = {**PARAMS, **(params or {})}
    store.log_batch(
        run_id,
        params=[Param(key, value) for key, value in values.items() if value is not None],
        metrics=[Metric(key, value, 1, 0) for key, value in (metrics or {}).items()],
    )
    _write(store.get_run(run_id).info.artifact_uri, files or {}, lambda folder: store.log_artifacts(run_id, folder))
    if status != "RUNNING":
        store.set_terminated(run_id, status)
    return run_id


def add_model(store, run_id, content=b"weights"):
    """Logs a model of a run, a file of such content, and returns its id."""
    place = store.get_run(run_id).info.experiment_id
    model = store.create_logged_model(place, name="model", source_run_id=run_id)
    send = lambda folder: store.log_model_artifacts(model.model_id, folder)  # noqa: E731
    _write(model.artifact_location, {"model.keras": content}, send)
    store.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    store.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=1)])
    return model.model_id


def _write(uri, files, send):
    """Writes files into a folder of artifacts, or lets the client send them to the server that has it."""
    place = local_folder(uri)
    with tempfile.TemporaryDirectory() as elsewhere:
        for name, content in files.items():
            file = Path(place or elsewhere, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        if files and place is None:
            send(elsewhere)
