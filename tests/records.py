"""Runs as a training records them, made with MLflow's client in a moment."""

import tempfile
from pathlib import Path

from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric, Param

DATA = {"data.sha256": "d" * 64, "data.validation_sha256": "v" * 64, "data.test_sha256": "t" * 64}
PARAMS = {"model": "conv2", "model.dropout": "0.0", "optimizer": "adam", "optimizer.learning_rate": "0.001",
          "seed": "0", "objective": "val_accuracy", "data": "mnist_5k", "data.limit": "null"}  # fmt: skip


def experiment(store, name="digits"):
    """The id of an experiment, which is created if necessary, with artifacts beside the store."""
    found = store.get_experiment_by_name(name)
    return found.experiment_id if found else store.create_experiment(name)


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
    place = more.pop("experiment_id", None) or experiment(store)
    own = {"variant": "a", "fingerprint": "f", "code.sha256": "c", "host": "here", **DATA, **(tags or {})}
    own = {key: value for key, value in own.items() if value is not None}
    run_id = store.create_run(place, tags=own, run_name=name, **more).info.run_id
    values = {**PARAMS, **(params or {})}
    store.log_batch(
        run_id,
        params=[Param(key, value) for key, value in values.items() if value is not None],
        metrics=[Metric(key, value, 1, 0) for key, value in (metrics or {}).items()],
    )
    with tempfile.TemporaryDirectory() as folder:
        for file, content in (files or {}).items():
            place = Path(folder, file)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
            store.log_artifact(run_id, str(place), str(Path(file).parent) if "/" in file else None)
    if status != "RUNNING":
        store.set_terminated(run_id, status)
    return run_id


def add_model(store, run_id, content=b"weights"):
    """Logs a model of a run, a file of such content, and returns its id."""
    place = store.get_run(run_id).info.experiment_id
    model = store.create_logged_model(place, name="model", source_run_id=run_id)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.keras").write_bytes(content)
        store.log_model_artifacts(model.model_id, folder)
    store.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    store.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=1)])
    return model.model_id
