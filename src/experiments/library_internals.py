"""Private names of libraries that have no public counterpart.

All of them are here, each with a test, so that a new version of a library that has changed one is noticed at once.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import ArgumentParser

    from hydra.core.utils import JobReturn
    from mlflow import MlflowClient
    from sqlalchemy import Engine


def hydra_argument_parser() -> "ArgumentParser":
    """The parser of the command line of every Hydra application."""
    from hydra._internal.utils import get_args_parser

    return get_args_parser()


def job_error(result: "JobReturn") -> BaseException | None:
    """What a job of Hydra has raised, None if it has completed; the public `return_value` would print and raise it."""
    from hydra.core.utils import JobStatus

    return None if result.status is JobStatus.COMPLETED else result._return_value


def create_mlflow_tables(engine: "Engine", artifacts: str) -> None:
    """Creates the tables of an MLflow store in an empty database, and the experiment that MLflow expects in each.

    MLflow itself would write the folder of that experiment into an SQL command as it is, and fail on some characters.

    Args:
        engine: of the database.
        artifacts: URI of the folder of that experiment.
    """
    from mlflow.store.db import utils
    from mlflow.store.tracking.dbmodels.models import SqlExperiment
    from sqlalchemy.orm import Session

    utils._initialize_tables(engine)
    with Session(engine) as session:
        session.add(SqlExperiment(experiment_id=0, name="Default", artifact_location=artifacts))
        session.commit()


def delete_for_good(client: "MlflowClient", *, run_id: str = "", model_id: str = "") -> bool:
    """Deletes a run or a logged model from the database, as `mlflow gc` does.

    `mlflow gc` itself would also delete every experiment that somebody has marked as deleted.

    Args:
        client: of the store.
        run_id: of the run; its models must have been deleted before.
        model_id: of the model.

    Returns:
        Whether the store is a database; a server cannot be asked for it, and nothing is done.
    """
    store = client._tracking_client.store
    if not hasattr(store, "_hard_delete_run"):
        return False
    if run_id:
        store._hard_delete_run(run_id)
    if model_id:
        store._hard_delete_logged_model(model_id)
    return True


def metric_mode(metric: Any) -> str | None:
    """`max` if Keras says that a higher value of a metric is better, `min` for a lower one, None if it does not know.

    The classes of Keras set this for the mode "auto" of EarlyStopping and ReduceLROnPlateau.
    """
    return {"up": "max", "down": "min"}.get(getattr(metric, "_direction", ""))


def set_monitor_op(callback: Any) -> None:
    """Resolves `mode` of EarlyStopping or ReduceLROnPlateau, which Keras does at the end of the first epoch only.

    It changes the sign of `min_delta`, so it has to be done before a changed `min_delta` is restored.
    """
    callback._set_monitor_op()
