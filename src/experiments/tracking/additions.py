"""Adds to the record of a run what was measured after it had ended."""

from collections.abc import Mapping
from pathlib import Path

from mlflow.entities import Metric
from mlflow.utils.time import get_current_time_millis

from experiments.tracking.runs import StoredRun
from experiments.tracking.store import call_store, open_store


def add_results(run: StoredRun, metrics: Mapping[str, float], figure: Path) -> None:
    """Records metrics of a run that has ended, and a figure among its figures; what was there is replaced.

    Raises:
        StoreLost: the store does not answer.
        StoreRefused: it refuses them.
    """
    client, now = open_store(), get_current_time_millis()
    points = [Metric(name, value, now, 0) for name, value in metrics.items()]
    call_store(client.log_artifact, run.run_id, str(figure), "figures")
    call_store(client.log_batch, run.run_id, metrics=points)
