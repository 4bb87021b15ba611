"""What a sweep asks of the store: earlier runs of its jobs, its parent, and how each job has ended."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import mlflow
from mlflow.entities import Run as StoredRun
from mlflow.entities import RunStatus
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from experiments.tracking.run import provenance, remember, send_files
from experiments.tracking.store import experiment_id, jobs_folder, open_store

_A_PAGE = 1000
_MOST_IN_A_LINK = 50


@dataclass(frozen=True)
class Recorded:
    """A run as the store has it."""

    run_id: str
    name: str
    status: str
    artifact_uri: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]  # the latest value of each
    seconds: float | None  # from its start to its end; None while it runs

    @property
    def finished(self) -> bool:
        """Whether it holds the result of its configuration: trained to the end, for its own sake."""
        return self.status == "FINISHED" and not {"pruned", "reproduces"} & set(self.tags)

    @property
    def parent(self) -> str | None:
        """The run of the sweep that it was trained for."""
        return self.tags.get(MLFLOW_PARENT_RUN_ID)

    @property
    def diverged(self) -> bool:
        """Whether its training diverged, which it would do again."""
        return "diverged" in self.tags


def _recorded(run: StoredRun) -> Recorded:
    info = run.info
    seconds = (info.end_time - info.start_time) / 1000 if info.end_time else None
    return Recorded(
        run_id=info.run_id,
        name=info.run_name,
        status=info.status,
        artifact_uri=info.artifact_uri,
        tags=run.data.tags,
        metrics=run.data.metrics,
        seconds=seconds,
    )


def _found(client: mlflow.MlflowClient, query: str, experiments: list[str] | None = None) -> Iterator[Recorded]:
    """The runs that `query` finds, the newest first, by default in all active experiments."""
    if experiments is None:
        experiments = [found.experiment_id for found in client.search_experiments()]
    token = None
    while experiments:
        page = client.search_runs(
            experiments, query, max_results=_A_PAGE, order_by=["attributes.start_time DESC"], page_token=token
        )
        yield from map(_recorded, page)
        token = page.token
        if not token:
            return


def earlier_runs(variant: str, seed: int) -> list[Recorded]:
    """Every run of a configuration, the newest first, whatever its data and code were."""
    return list(_found(open_store(), f"tags.variant = '{variant}' and params.seed = '{seed}'"))


def parents(name: str) -> list[Recorded]:
    """The parents of that name in all experiments, the newest first."""
    return list(_found(open_store(), f"tags.`sweep.name` = '{name}'"))


def recorded(run_id: str) -> Recorded:
    """A run by its id."""
    return _recorded(open_store().get_run(run_id))


def end_run(run_id: str, status: str, tags: Mapping[str, object]) -> None:
    """Closes a run that its own process could not close, and sends what lies in its folder."""
    client = open_store()
    for name, value in tags.items():
        client.set_tag(run_id, name, value)
    folder = jobs_folder() / run_id
    if folder.is_dir():
        send_files(client, run_id, folder)
    client.set_terminated(run_id, status)


@dataclass(frozen=True)
class Parent:
    """The parent of a sweep's runs, open in the store."""

    client: mlflow.MlflowClient
    run_id: str
    experiment_id: str
    name: str
    folder: Path

    def link(self, metric: str, mode: str, run_ids: Sequence[str] = ()) -> str:
        """Its runs, or those of `run_ids`, as a sorted table with charts in the MLflow UI, without host and port.

        Args:
            metric: what the best is chosen by.
            mode: `max` or `min`.
            run_ids: when some are not its own; more than 50 would be too long a link.
        """
        query = f"tags.sweep = '{self.name}' and tags.superseded IS NULL"
        if 0 < len(run_ids) <= _MOST_IN_A_LINK:
            query = f"attributes.run_id IN ({', '.join(repr(run_id) for run_id in run_ids)})"
        return (
            f"#/experiments/{self.experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART"
            f"&searchFilter={quote(query, safe='')}"
            f"&orderByKey=metrics.%60best%2F{metric}%60&orderByAsc={str(mode == 'min').lower()}"
        )

    def runs(self, job: int | None = None) -> list[Recorded]:
        """The runs of its jobs, or of one of them, the newest first."""
        query = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.run_id}'" + (
            f" and tags.job = '{job}'" if job is not None else ""
        )
        return list(_found(self.client, query, [self.experiment_id]))

    def others(self) -> list[Recorded]:
        """The other parents in the same experiment, the newest first."""
        found = _found(self.client, "tags.`sweep.name` LIKE '%'", [self.experiment_id])
        return [parent for parent in found if parent.run_id != self.run_id]

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Sets tags of the parent."""
        for name, value in tags.items():
            self.client.set_tag(self.run_id, name, value)

    def write_jobs(self, jobs: Iterable[Mapping[str, Any]]) -> None:
        """Keeps the list of jobs: number, overrides, fingerprint and run id of each."""
        self.client.log_text(self.run_id, json.dumps(list(jobs), indent=1), "jobs.json")

    def close(self, status: str) -> None:
        """Sends the files in its folder and ends the parent."""
        send_files(self.client, self.run_id, self.folder)
        self.client.set_terminated(self.run_id, status)
        shutil.rmtree(self.folder)


def open_parent(experiment: str, name: str, tags: Mapping[str, object]) -> Parent:
    """The parent `name`, made or opened again; its experiment is made if need be.

    Args:
        experiment: name of the MLflow experiment.
        name: of the sweep, unique to its jobs.
        tags: of the parent.

    Raises:
        ExperimentError: the store is gone, or the experiment was deleted.
    """
    client = open_store()
    place = experiment_id(client, experiment)
    own = provenance() | dict(tags)
    older = next(_found(client, f"tags.`sweep.name` = '{name}'", [place]), None)
    if older is None:
        run_id = client.create_run(place, tags=own | {"sweep.name": name}, run_name=name).info.run_id
    else:
        run_id = older.run_id
    folder = jobs_folder() / run_id
    folder.mkdir(parents=True, exist_ok=True)
    remember(folder)
    if older:
        for key, value in own.items():
            client.set_tag(run_id, key, value)
        for key in {"reason", "failure"} & set(older.tags):
            client.delete_tag(run_id, key)
        # Last, or the start of another command would close it as one of a dead process.
        client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
    return Parent(client, run_id, place, name, folder)
