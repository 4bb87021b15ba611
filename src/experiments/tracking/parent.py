"""A sweep in the store: its parent run, and closing the runs of jobs whose process has died."""

import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import RunStatus
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from experiments.tracking import views
from experiments.tracking.delivery import send_before_reopening, send_missing
from experiments.tracking.outbox import Outbox
from experiments.tracking.provenance import PROVENANCE, as_file, provenance, source
from experiments.tracking.run import release_owner, write_owner
from experiments.tracking.runs import StoredRun, search
from experiments.tracking.secrets import without_secrets
from experiments.tracking.store import call_store, experiment_id, open_store, run_folder, set_store_timeout

_log = logging.getLogger(__name__)

SPACE = "space."  # in the names of a search's parameters, before a searched key
_LONGEST_PARAM = 500  # characters


def end_run(run_id: str, status: str, tags: Mapping[str, object]) -> None:
    """Closes a run whose process has died, after sending what is left in its folder.

    Args:
        run_id: of the run.
        status: and `tags` say how it has ended, unless its process could write that down itself.
        tags: of the run.

    Raises:
        StoreLost: the store does not answer.
    """
    client = open_store()
    call_store(send_missing, client, run_id, run_folder(run_id), (status, tags))


@dataclass(frozen=True)
class Parent:
    """The parent of a sweep's runs, open in the store."""

    client: mlflow.MlflowClient
    run_id: str
    experiment_id: str
    name: str
    folder: Path
    outbox: Outbox

    @property
    def link(self) -> str:
        """A link to its runs in the MLflow UI, as `show` has arranged them; without host and port."""
        return views.link(self.run_id, self.experiment_id)

    def show(self, view: views.View) -> None:
        """Sets what the MLflow UI shows of its runs."""
        tag = {"name": views.tag_name(self.run_id), "value": without_secrets(view.tag_value())}
        self.outbox.put("view", experiment_id=self.experiment_id, **tag)

    def log_params(self, params: Mapping[str, str]) -> None:
        """Records parameters of the parent, which never change."""
        self.outbox.put(
            "params", params={key: without_secrets(value)[:_LONGEST_PARAM] for key, value in params.items()}
        )

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Records metrics of the parent."""
        self.outbox.put("metrics", step=step, metrics=dict(metrics), of_model=False)

    def runs(self, job: int | None = None) -> list[StoredRun]:
        """The runs of its jobs, or of one of them, the newest first."""
        query = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.run_id}'" + (
            f" and tags.job = '{job}'" if job is not None else ""
        )
        return list(search(self.client, query, [self.experiment_id]))

    def others(self) -> list[StoredRun]:
        """The other parents in the same experiment, the newest first."""
        found = search(self.client, "tags.`sweep.name` LIKE '%'", [self.experiment_id])
        return [parent for parent in found if parent.run_id != self.run_id]

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Sets tags of the parent."""
        texts = {name: without_secrets(str(value)) for name, value in tags.items()}
        self.outbox.put("tags", tags=texts)

    def write_jobs(self, jobs: Iterable[Mapping[str, Any]]) -> None:
        """Records the list of jobs: number, overrides, fingerprint and run id of each."""
        self.outbox.put_file("jobs.json", json.dumps(list(jobs), indent=1))

    def close(self, status: str, patience: float) -> None:
        """Sends the files in its folder and ends the parent; waits up to `patience` seconds for the store."""
        if self.outbox.close(status, patience):
            shutil.rmtree(self.folder)
        else:
            release_owner(self.folder)
            _log.warning("%s is not fully recorded yet. Send the rest with: experiments sync", self.name)


def open_parent(experiment: str, name: str, tags: Mapping[str, object], patience: float) -> Parent:
    """Creates or reopens the parent of a sweep, and its experiment if necessary.

    Args:
        experiment: name of the MLflow experiment.
        name: of the sweep, unique to its jobs.
        tags: of the parent.
        patience: seconds that the sweep waits from now on for a store that does not answer.

    Raises:
        ExperimentError: the store does not answer, or the experiment was deleted.
    """
    client = open_store()
    place = experiment_id(client, experiment)
    machine = provenance()
    own = {key: without_secrets(str(value)) for key, value in (machine | source(tags) | dict(tags)).items()}
    older = next(search(client, f"tags.`sweep.name` = '{name}'", [place]), None)
    if older is None:
        run_id = call_store(client.create_run, place, tags=own | {"sweep.name": name}, run_name=name).info.run_id
    else:
        run_id = older.run_id
    folder = run_folder(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    if older:
        call_store(send_before_reopening, client, run_id, folder)
    write_owner(folder, sweep=name)
    if older:
        for key in {"reason", "failure"} & set(older.tags):
            call_store(client.delete_tag, run_id, key)
        # Last, or the start of another command would close it as one of a dead process.
        call_store(client.update_run, run_id, status=RunStatus.to_string(RunStatus.RUNNING))
    set_store_timeout(patience)
    outbox = Outbox(client, run_id, folder, unsure=older is not None)
    outbox.put_file(PROVENANCE, as_file(machine))
    parent = Parent(client, run_id, place, name, folder, outbox)
    if older:
        parent.set_tags(own)
    return parent
