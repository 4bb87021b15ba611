"""Sends what runs and sweeps record from the journals in their folders to the store.

A folder's journal has one entry a line, in the order in which the store gets them. Entries are written down before
they are sent, and sending the same entry twice is harmless. While the store does not answer, entries wait in their
order. One that is refused never blocks those behind it: if its content is invalid it is left out and named in the
run's tag `not_recorded`; anything else that is refused waits in the journal for `experiments sync`.
"""

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from time import time
from typing import Any

import mlflow
import yaml
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
)
from mlflow.exceptions import MlflowException

from experiments.tracking.secrets import without_secrets
from experiments.tracking.store import is_refusal, store_error, store_uri

_log = logging.getLogger(__name__)

REMEMBERED = "run.json"
MODEL = "model"
NOT_RECORDED = "not_recorded"  # the tag that names what the store has refused for good
JOURNAL = "history.jsonl"
_OURS = (REMEMBERED, JOURNAL, "checkpoint-")  # what names of files in a folder begin with that are no artifacts
_FIGURES = "figures"  # the folder of the pictures among the artifacts
_PARAMS_A_BATCH = 100  # MLflow's limit
_LONGEST_TAG = 5000  # characters, MLflow's limit
_NAMED = ("metrics", "params", "tags")  # kinds of entries with a value for each name
_TEXTS = {".csv", ".diff", ".json", ".log", ".md", ".txt", ".yaml"}


class Delivery:
    """Sends entries in their order; one that is refused delays no other.

    Args:
        client: of the store.
        run_id: the run that they belong to.
        folder: of the run.
        unsure: whether the store may already have some of the entries.
    """

    def __init__(self, client: mlflow.MlflowClient, run_id: str, folder: Path, *, unsure: bool) -> None:
        self.client = client
        self.run_id = run_id
        self.folder = folder
        self.unsure = unsure
        self.waiting: list[dict[str, Any]] = []
        self.given_up = False
        self.tried: dict[str, Any] | None = None  # the last entry of the last try
        self._steps: dict[str, set[int]] = {}  # of metrics, that the store has
        self._model: LoggedModel | None = None
        self._dataset: Dataset | None = None  # of the run of that model
        self._files: dict[str, int] = {}  # sent -> when they were written

    def add(self, kind: str, **entry: Any) -> dict[str, Any]:
        """Appends an entry."""
        self.waiting.append({"kind": kind, "at": int(time() * 1000), **entry})
        return self.waiting[-1]

    def add_files(self) -> None:
        """Appends the files of the folder that are new or have changed."""
        waiting = {entry["name"] for entry in self.waiting if entry["kind"] == "file"}
        for file in sorted(self.folder.glob("*")):
            is_new = file.is_file() and self._files.get(file.name) != file.stat().st_mtime_ns
            if is_new and file.name not in waiting and not file.name.startswith(_OURS):
                self.add("file", name=file.name)

    def go(self) -> None:
        """Sends the waiting entries.

        Raises:
            Exception: whatever the store, or the disk of its artifacts, has raised.
        """
        failure: Exception | None = None
        entries = list(self.waiting)
        for entry in entries:
            if self.given_up:
                return
            error = self._try(entry)
            if error is None:
                self.waiting.remove(entry)
                continue
            if failure is None or is_refusal(failure):  # of several, one that is worth waiting for
                failure = error
            if not is_refusal(error) and entry["kind"] not in ("dataset", "file", "model"):
                break
        self.tried = entries[-1]
        if failure:
            raise failure

    def _try(self, entry: dict[str, Any]) -> Exception | None:
        """Sends an entry; returns the error that keeps it waiting, if any."""
        try:
            self._send(**entry)
        except Exception as error:
            self.unsure = True  # the store may have the entry although its answer was lost
            self._steps.clear()
            self._model = None
            invalid = isinstance(error, MlflowException) and error.error_code == "INVALID_PARAMETER_VALUE"
            return self._leave_out(entry, error) if invalid and entry["kind"] not in ("file", "model") else error
        return None

    def _leave_out(self, entry: dict[str, Any], error: Exception) -> Exception | None:
        """Drops what is invalid of an entry, names it on the run and sends the rest; returns as `_try`."""
        kind = entry["kind"]
        names = list(entry[kind]) if kind in _NAMED else []
        if len(names) > 1:
            parts = (entry | {kind: {name: entry[kind][name]}} for name in names)
            return next((failed for part in parts if (failed := self._try(part))), None)
        what = " ".join([kind, *names])
        reason = without_secrets(str(error)).partition("\n")[0][:300]
        try:
            before = self.client.get_run(self.run_id).data.tags.get(NOT_RECORDED, "")
            if f"{what}: " not in before:
                note = f"{before}\n{what}: {reason}".strip()
                self.client.set_tag(self.run_id, NOT_RECORDED, note[:_LONGEST_TAG])
        except Exception:  # then not the entry is refused but the run, which may have been deleted
            return error
        _log.warning("The tracking store refuses %s: %s The run continues without it.", what, reason)
        return None

    def _send(self, kind: str, at: int, **entry: Any) -> None:
        match kind:
            case "metrics":
                self._send_metrics(at, **entry)
            case "params":
                params = [Param(name, value) for name, value in entry["params"].items()]
                for start in range(0, len(params), _PARAMS_A_BATCH):
                    self.client.log_batch(self.run_id, params=params[start : start + _PARAMS_A_BATCH])
            case "tags":
                for name, value in entry["tags"].items():
                    self.client.set_tag(self.run_id, name, value)
            case "view":
                self.client.set_experiment_tag(entry["experiment_id"], entry["name"], entry["value"])
            case "superseded":
                try:
                    self.client.set_tag(entry["run_id"], kind, self.run_id)
                except MlflowException as error:
                    if not is_refusal(error):  # or the user has deleted the older run meanwhile
                        raise
            case "dataset":
                self._send_dataset(**entry)
            case "file":
                self._send_file(self.folder / entry["name"])
            case "model":
                self._send_model(entry["step"])
            case "status":
                self.client.set_terminated(self.run_id, entry["status"], end_time=at)

    def _send_metrics(self, at: int, step: int, metrics: Mapping[str, float], of_model: bool) -> None:
        missing = {name: value for name, value in metrics.items() if step not in self._steps_of(name)}
        model_id = self._logged_model().model_id if of_model else None
        points = [self._metric(name, value, at, step, model_id) for name, value in missing.items()]
        self.client.log_batch(self.run_id, metrics=points)
        for name in missing:
            self._steps[name].add(step)

    def _metric(self, name: str, value: float, at: int, step: int, model_id: str | None) -> Metric:
        """One point of a metric; that of a model names the data that it was measured on."""
        data = (self._dataset.name, self._dataset.digest) if self._dataset and model_id else (None, None)
        return Metric(name, value, at, step, model_id, *data, run_id=self.run_id)

    def _send_dataset(self, tags: Mapping[str, str], dataset: Mapping[str, str]) -> None:
        used = DatasetInput(Dataset(**dataset), [InputTag(name, value) for name, value in tags.items()])
        try:
            self.client.log_inputs(self.run_id, [used])
        except MlflowException as error:
            if error.error_code != "BAD_REQUEST":
                raise
            # Another run has brought the same data at the same time; now they are there.
            self.client.log_inputs(self.run_id, [used])

    def _steps_of(self, name: str) -> set[int]:
        if name not in self._steps:
            known = self.client.get_metric_history(self.run_id, name) if self.unsure else []
            self._steps[name] = {point.step for point in known}
        return self._steps[name]

    def _send_model(self, step: int) -> None:
        """Logs the model in the folder, tied to the metrics of `step`."""
        from mlflow.models import Model

        logged = self._logged_model()
        if logged.status == LoggedModelStatus.READY:
            return
        file = self.folder / MODEL / "MLmodel"
        # Model.load would take the path for a URI, in which %20 is a blank.
        saved = Model.from_dict(yaml.safe_load(file.read_text(encoding="utf-8")))
        saved.run_id, saved.artifact_path = self.run_id, logged.artifact_location
        saved.model_id = saved.model_uuid = logged.model_id
        saved.save(file)
        self.client.log_model_artifacts(logged.model_id, str(self.folder / MODEL))
        run = self.client.get_run(self.run_id)
        outputs = run.outputs
        if logged.model_id not in {output.model_id for output in (outputs.model_outputs if outputs else [])}:
            self.client.log_outputs(self.run_id, [LoggedModelOutput(logged.model_id, step)])
        # As they are in the store, or a step would have two points.
        names = [name for name in run.data.metrics if not name.startswith("system/")]  # their steps are no epochs
        points = [point for name in names for point in self.client.get_metric_history(self.run_id, name)]
        tied = [
            self._metric(point.key, point.value, point.timestamp, step, logged.model_id)
            for point in points
            if point.step == step
        ]
        self.client.log_batch(self.run_id, metrics=tied)
        self._model = self.client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)

    def _send_file(self, file: Path) -> None:
        """Sends a file as an artifact, without passwords if it is a text."""
        if not file.exists():  # an entry of a process that died; the folder may have been tidied up since
            return
        if file.suffix in _TEXTS:
            text = file.read_text(encoding="utf-8", errors="replace")
            if (clean := without_secrets(text)) != text:
                file.write_text(clean, encoding="utf-8")  # later lines are appended to it
        written = file.stat().st_mtime_ns
        self.client.log_artifact(self.run_id, str(file), _FIGURES if file.suffix == ".png" else None)
        self._files[file.name] = written

    def _logged_model(self) -> LoggedModel:
        """The logged model of this run in the store, created if necessary."""
        if self._model is None:
            run = self.client.get_run(self.run_id)
            used = run.inputs.dataset_inputs if run.inputs else []
            self._dataset = used[0].dataset if used else None
            place = run.info.experiment_id
            query = f"source_run_id = '{self.run_id}'"
            found = self.client.search_logged_models([place], query) if self.unsure else []
            self._model = found[0] if found else None
        if self._model is None:
            self._model = self.client.create_logged_model(place, MODEL, self.run_id, params=run.data.params)
        return self._model


def send_missing(
    client: mlflow.MlflowClient, run_id: str, folder: Path, end: tuple[str, Mapping[str, object]] | None = None
) -> None:
    """Sends the journal of a process that has ended, and the files beside it.

    Args:
        client: of the store.
        run_id: of the run.
        folder: of the run, if it is here.
        end: status and tags to close the run with, unless its process has come so far itself.

    Raises:
        StoreLost: the store, or the disk of its artifacts, does not answer.
        StoreRefused: it has refused some entries, and has got all others.
    """
    _, failure = _send_journal(client, run_id, folder, end)
    if failure:  # all of the journal stays: it says how the run has ended, and sending it again is harmless
        raise store_error(store_uri(), failure) from failure
    (folder / JOURNAL).unlink(missing_ok=True)


def send_before_reopening(client: mlflow.MlflowClient, run_id: str, folder: Path) -> None:
    """Sends what an earlier attempt of a run has left; what is refused is left to the outbox of the next attempt.

    Raises:
        StoreLost: the store, or the disk of its artifacts, does not answer.
    """
    refused, failure = _send_journal(client, run_id, folder)
    if failure and not is_refusal(failure):
        raise store_error(store_uri(), failure) from failure
    if failure:
        _log.warning("%s It is tried again later.", store_error(store_uri(), failure))
    if refused:
        rest = folder / f"{JOURNAL}.new"
        rest.write_text("".join(f"{json.dumps(entry)}\n" for entry in refused), encoding="utf-8")
        rest.replace(folder / JOURNAL)
    else:
        (folder / JOURNAL).unlink(missing_ok=True)


def _send_journal(
    client: mlflow.MlflowClient, run_id: str, folder: Path, end: tuple[str, Mapping[str, object]] | None = None
) -> tuple[list[dict[str, Any]], Exception | None]:
    """Sends a journal; returns the entries that could not be sent, and why."""
    delivery = Delivery(client, run_id, folder, unsure=True)
    delivery.waiting = read_journal(folder)
    ended = any(entry["kind"] == "status" for entry in delivery.waiting)
    if delivery.waiting or end:
        delivery.add_files()
    if end and not ended:
        status, tags = end
        delivery.add("tags", tags={name: without_secrets(str(value)) for name, value in tags.items()})
        delivery.add("status", status=status)
    try:
        if delivery.waiting:
            delivery.go()
    except Exception as error:  # whatever the store, or the disk of its artifacts, has raised
        return delivery.waiting, error
    return [], None


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """The entries in the journal of a folder, in their order."""
    journal = folder / JOURNAL
    entries = []
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):  # the process died while it was writing the line
            entries.append(json.loads(line))
    return entries


def is_waiting(folder: Path) -> bool:
    """Whether a folder holds entries that the store may not have yet."""
    return (folder / JOURNAL).exists()
