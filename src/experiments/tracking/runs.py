"""Finds and reads runs in the store: parameters, tags, metrics, artifacts."""

import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow.artifacts import download_artifacts, list_artifacts
from mlflow.entities import Metric, ViewType
from mlflow.entities import Run as MlflowRun
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.uri import append_to_uri_path

from experiments.config.configuration import Configuration
from experiments.config.earlier import current_parameters, current_tags
from experiments.errors import ExperimentError
from experiments.tracking import filters
from experiments.tracking.store import (
    StoreRefused,
    call_store,
    local_folder,
    nothing_recorded,
    open_store,
    shown_uri,
    store_uri,
)

_A_PAGE = 1000
_MOST_IN_A_QUERY = 200  # ids of runs
_JOBS = "jobs.json"
IMPORTANCE = "importance.json"
CUT = " … see config.yaml"  # the end of a parameter that was too long to be recorded whole


@dataclass(frozen=True)
class StoredRun:
    """A run that was read from the store."""

    run_id: str
    name: str
    status: str
    artifact_uri: str
    experiment_id: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]  # the latest value of each
    seconds: float | None  # from its start to its end; None while it runs
    started: float = 0.0  # seconds since 1970
    models: tuple[str, ...] = ()  # ids of the models that it has logged

    @property
    def finished(self) -> bool:
        """Whether it was trained to the end, neither pruned nor as a reproduction of another run."""
        return self.status == "FINISHED" and not {"pruned", "reproduces"} & set(self.tags)

    @property
    def attempt(self) -> tuple[str, float | None]:
        """What changes when a run that had ended is resumed."""
        return self.status, self.seconds

    @property
    def parent(self) -> str | None:
        """The id of the parent of the sweep that it was trained for."""
        return self.tags.get(MLFLOW_PARENT_RUN_ID)

    @property
    def diverged(self) -> bool:
        """Whether its training diverged, as it would again."""
        return "diverged" in self.tags


def _stored_run(run: MlflowRun) -> StoredRun:
    info = run.info
    seconds = (info.end_time - info.start_time) / 1000 if info.end_time else None
    return StoredRun(
        run_id=info.run_id,
        name=info.run_name,
        status=info.status,
        artifact_uri=info.artifact_uri,
        experiment_id=info.experiment_id,
        params=current_parameters(run.data.params),
        tags=current_tags(run.data.tags),
        metrics=run.data.metrics,
        seconds=seconds,
        started=info.start_time / 1000,
        models=tuple(output.model_id for output in run.outputs.model_outputs) if run.outputs else (),
    )


def search(
    client: mlflow.MlflowClient,
    query: str,
    experiments: list[str] | None = None,
    page_size: int = _A_PAGE,
    *,
    deleted: bool = False,
) -> Iterator[StoredRun]:
    """The runs that `query` finds, the newest first, by default in all active experiments; or only deleted ones."""
    if experiments is None:
        view = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY
        experiments = [found.experiment_id for found in call_store(client.search_experiments, view_type=view)]
    token = None
    while experiments:
        page = call_store(
            client.search_runs,
            experiments,
            query,
            ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY,
            max_results=page_size,
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        yield from map(_stored_run, page)
        token = page.token
        if not token:
            return


def earlier_runs(configuration: Configuration) -> list[StoredRun]:
    """Every run of a configuration, the newest first, with whatever data and code."""
    client = open_store()
    parts = [f" and params.`{key}` = '{configuration.parameters[key]}'" for key in configuration.replicate]
    # The second tag is that of earlier versions; MLflow's filters have no "or".
    queries = [f"tags.`{tag}` = '{configuration.variant}'{''.join(parts)}" for tag in ("variant.id", "variant")]
    found = [run for query in queries for run in search(client, query)]
    return sorted(found, key=lambda run: run.started, reverse=True)


def parents(name: str) -> list[StoredRun]:
    """The parents of that name in all experiments, the newest first."""
    return list(search(open_store(), f"tags.`sweep.name` = '{name}'"))


def sweeps(most: int | None = None) -> list[StoredRun]:
    """The parents of all sweeps in all experiments, at most so many, the newest first."""
    found = search(open_store(), "tags.`sweep.name` LIKE '%'", page_size=min(most or _A_PAGE, _A_PAGE))
    return list(itertools.islice(found, most))


def own_runs(parent: StoredRun) -> list[StoredRun]:
    """The runs that were made for a sweep, without those that other sweeps have made, the newest first."""
    return list(search(open_store(), f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.run_id}'", [parent.experiment_id]))


def runs_of(parent: StoredRun, query: str = "") -> list[StoredRun]:
    """The runs of a sweep's jobs, wherever they were trained, in the order of the jobs.

    Args:
        parent: of the sweep.
        query: a filter that they must also match; empty for none.

    Raises:
        ExperimentError: the filter is refused.
    """
    selected = _selected(f"tags.sweep = '{parent.tags['sweep.name']}'", query, [parent.experiment_id])
    own = {run.run_id: run for run in selected}
    by_fingerprint = {run.tags.get("fingerprint"): run.run_id for run in reversed(own.values())}
    jobs = job_list(parent)
    # While a sweep is under way its list does not name the runs yet.
    ids = [job["run_id"] or by_fingerprint.get(job["fingerprint"]) for job in jobs] or list(own)
    elsewhere = sorted({run_id for run_id in ids if run_id} - set(own))
    own |= by_ids(elsewhere, query)
    return [own[run_id] for run_id in ids if run_id in own]


def by_ids(ids: Sequence[str], query: str = "") -> dict[str, StoredRun]:
    """Id -> run, of those that are in the store and match the filter, if one is given."""
    found: dict[str, StoredRun] = {}
    for start in range(0, len(ids), _MOST_IN_A_QUERY):
        names = ", ".join(f"'{run_id}'" for run_id in ids[start : start + _MOST_IN_A_QUERY])
        found |= {run.run_id: run for run in _selected(f"attributes.run_id IN ({names})", query)}
    return found


def _selected(condition: str, query: str, experiments: list[str] | None = None) -> Iterator[StoredRun]:
    """The runs for which the condition holds, and a user's filter if one is given."""
    client = open_store()
    if not query:
        return search(client, condition, experiments)
    return _matching(client, f"{condition} and {query}", experiments)


def importance(parent: StoredRun) -> dict[str, float]:
    """Searched key -> its share in what makes the best trials of a search good; empty if that was not recorded."""
    with tempfile.TemporaryDirectory() as folder:
        file = artifact(parent, IMPORTANCE, Path(folder))
        return json.loads(file.read_text(encoding="utf-8")) if file else {}


def job_list(parent: StoredRun) -> list[dict[str, Any]]:
    """The jobs of a sweep as its parent has recorded them: number, overrides, fingerprint and run id of each."""
    with tempfile.TemporaryDirectory() as folder:
        file = artifact(parent, _JOBS, Path(folder))
        return json.loads(file.read_text(encoding="utf-8")) if file else []


def full_parameters(run: StoredRun) -> dict[str, str]:
    """The parameters of a run; those that were too long to be recorded whole are read from its configuration."""
    cut = [key for key, value in run.params.items() if value.endswith(CUT)]
    if not cut:
        return dict(run.params)
    with tempfile.TemporaryDirectory() as folder:
        file = artifact(run, "config.yaml", Path(folder))
        values = yaml.safe_load(file.read_text(encoding="utf-8")) if file else {}
    found = {}
    for key in cut:
        value: Any = values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            found[key] = value if isinstance(value, str) else json.dumps(value)
    return {**run.params, **found}


def search_runs(query: str, most: int | None = None) -> list[StoredRun]:
    """The runs that a user's filter finds, at most so many, the newest first.

    Raises:
        ExperimentError: the filter is refused.
    """
    found = _matching(open_store(), query, page_size=min(most or _A_PAGE, _A_PAGE))
    return list(itertools.islice(found, most))


def _matching(
    client: mlflow.MlflowClient, query: str, experiments: list[str] | None = None, page_size: int = _A_PAGE
) -> Iterator[StoredRun]:
    """As `search`; the query is a user's filter, which may compare numeric parameters."""
    of_mlflow, conditions = filters.split(query)
    try:
        found = search(client, of_mlflow, experiments, _A_PAGE if conditions else page_size)
        yield from filters.matching(found, conditions)
    except StoreRefused as error:
        reason = str(error.__cause__).splitlines()[0]
        advice = "It takes MLflow's grammar, as in: params.model = 'conv3' and metrics.`test/accuracy` > 0.98"
        raise ExperimentError(f"MLflow refuses the filter: {reason}", advice=advice) from error


def get_run(run_id: str) -> StoredRun:
    """A run by its id."""
    return _stored_run(call_store(open_store().get_run, run_id))


def find_run(run: str) -> StoredRun:
    """Finds the run that a user names: by its id or a unique prefix of it, alone or as `runs:/…`, or as `last`.

    Raises:
        ExperimentError: there is no such run, or there are several.
    """
    if nothing_recorded():
        raise ExperimentError(f"Nothing is recorded in {shown_uri()} yet.", advice="Start with: experiments train")
    run_id = run.removeprefix("runs:/").partition("/")[0]
    client = open_store()
    if run == "last" and (newest := next((each for each in search(client, "") if "sweep.name" not in each.tags), None)):
        return newest
    try:
        return get_run(run_id)
    except StoreRefused as error:
        is_prefix = re.fullmatch("[0-9a-f]+", run_id)
        if is_prefix and (found := list(search(client, f"attributes.run_id LIKE '{run_id}%'"))):
            return only_one(run, found)
        experiments = [experiment.experiment_id for experiment in call_store(client.search_experiments)]
        latest = (
            call_store(client.search_runs, experiments, order_by=["attributes.start_time DESC"]) if experiments else []
        )
        ids = {found.info.run_name: found.info.run_id for found in reversed(latest)}
        ids |= {found.info.run_id: found.info.run_id for found in latest}
        near = [name for name in ids if name.startswith(run_id)] or get_close_matches(run_id, ids, n=1)
        said = [f"{ids[name]} ({name})" if name != ids[name] else name for name in near[:1]]
        question = f"Did you mean {said[0]}?" if said else ""
        raise ExperimentError(f"{run}: there is no such run in this store.", advice=question) from error


def only_one(prefix: str, found: Sequence[StoredRun]) -> StoredRun:
    """The only run whose id begins with `prefix`.

    Raises:
        ExperimentError: there are several.
    """
    if len(found) == 1:
        return found[0]
    ids = [run.run_id for run in found]
    raise ExperimentError(
        f"{prefix}: the ids of {len(ids)} runs begin with this.", allowed=ids, advice="Type more characters."
    )


def experiment_name(run: StoredRun) -> str:
    """The name of the MLflow experiment that a run is in."""
    client = open_store()
    return call_store(client.get_experiment, call_store(client.get_run, run.run_id).info.experiment_id).name


def history(run: StoredRun, *names: str) -> dict[str, list[float]]:
    """Metric -> one value per epoch, of every metric of the epochs, or of those in `names` that the run has."""
    client = open_store()
    wanted = [name for name in names or run.metrics if name in run.metrics and "/" not in name]
    series = {name: call_store(client.get_metric_history, run.run_id, name) for name in wanted}
    return {name: [point.value for point in sorted(points, key=_step)] for name, points in series.items()}


def _step(point: Metric) -> int:
    return point.step


def artifact(run: StoredRun, name: str, folder: Path) -> Path | None:
    """Copies an artifact of a run into `folder`; None if the run has no artifact of that name."""
    if here := local_folder(run.artifact_uri):  # MLflow would start a thread for each file
        file = here / name
        return Path(call_store(shutil.copy, file, folder)) if os.path.isfile(file) else None
    # By the run's id, MLflow would read all that the store has of it, three times.
    place, uri = run.artifact_uri, store_uri()
    if name not in {
        Path(found.path).name for found in call_store(list_artifacts, artifact_uri=place, tracking_uri=uri)
    }:
        return None
    remote = append_to_uri_path(place, name)
    return Path(call_store(download_artifacts, artifact_uri=remote, dst_path=str(folder), tracking_uri=uri))
