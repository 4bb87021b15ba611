"""What runs and sweeps record, on its way from their folders to the store.

A folder's journal has one entry a line, in the order in which the store gets them. Entries are written down before
they are sent, and sending the same entry twice is harmless.
"""

import contextlib
import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from time import monotonic, time
from typing import Any

import mlflow
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
from experiments.tracking.store import AGAIN_AFTER, is_final, store_error, store_uri

_log = logging.getLogger(__name__)

REMEMBERED = "run.json"
MODEL = "model"
_JOURNAL = "history.jsonl"
_OURS = (REMEMBERED, _JOURNAL, "checkpoint-")  # what names of files in a folder begin with that are no artifacts
_PARAMS_A_BATCH = 100  # MLflow's limit
_TEXTS = {".csv", ".diff", ".json", ".log", ".md", ".txt", ".yaml"}


class Delivery:
    """Sends entries in their order; files that are refused hold up nothing but themselves.

    Args:
        client: of the store.
        run_id: the run that they belong to.
        folder: of the run.
        unsure: whether the store may have some of the entries already.
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
        """Puts an entry at the end."""
        self.waiting.append({"kind": kind, "at": int(time() * 1000), **entry})
        return self.waiting[-1]

    def add_files(self) -> None:
        """Puts what is new in the folder at the end."""
        for file in sorted(self.folder.glob("*")):
            is_new = file.is_file() and self._files.get(file.name) != file.stat().st_mtime_ns
            if is_new and not file.name.startswith(_OURS):
                self.add("file", name=file.name)

    def go(self) -> None:
        """Sends what is waiting.

        Raises:
            Exception: whatever the store, or the disk of its artifacts, has raised.
        """
        refused: Exception | None = None
        entries = list(self.waiting)
        for entry in entries:
            if self.given_up:
                return
            try:
                self._send(**entry)
            except Exception as error:
                self.unsure = True  # an answer that was lost may stand for an entry that was not
                self._steps.clear()
                self._model = None
                refused = refused or error
                if entry["kind"] not in ("dataset", "file", "model"):
                    break
            else:
                self.waiting.remove(entry)
        self.tried = entries[-1]
        if refused:
            raise refused

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
            case "superseded":
                try:
                    self.client.set_tag(entry["run_id"], kind, self.run_id)
                except MlflowException as error:
                    if not is_final(error):  # or the user has deleted the older run meanwhile
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
        """A point; that of a model says which data it speaks of."""
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
        saved = Model.load(file)
        saved.run_id, saved.artifact_path = self.run_id, logged.artifact_location
        saved.model_id = saved.model_uuid = logged.model_id
        saved.save(file)
        self.client.log_model_artifacts(logged.model_id, str(self.folder / MODEL))
        run = self.client.get_run(self.run_id)
        outputs = run.outputs
        if logged.model_id not in {output.model_id for output in (outputs.model_outputs if outputs else [])}:
            self.client.log_outputs(self.run_id, [LoggedModelOutput(logged.model_id, step)])
        # As they are in the store, or a step would have two points.
        points = [point for name in run.data.metrics for point in self.client.get_metric_history(self.run_id, name)]
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
                file.write_text(clean, encoding="utf-8")  # whoever appends to it goes on at its end
        written = file.stat().st_mtime_ns
        self.client.log_artifact(self.run_id, str(file))
        self._files[file.name] = written

    def _logged_model(self) -> LoggedModel:
        """The model of this run as the store has it, made if need be."""
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


class Outbox:
    """Takes what a run records at once, and sends it in a thread of its own: no training waits for a store.

    Args:
        client: of the store.
        run_id: the run that it belongs to.
        folder: of the run.
        unsure: whether the store may have some of it already.
    """

    def __init__(self, client: mlflow.MlflowClient, run_id: str, folder: Path, *, unsure: bool) -> None:
        self._delivery = Delivery(client, run_id, folder, unsure=unsure)
        self._journal = folder / _JOURNAL
        self._news = threading.Condition()
        self._lost: Exception | None = None
        self._disk_is_full = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def put(self, kind: str, **entry: Any) -> dict[str, Any]:
        """Writes an entry down and has it sent."""
        with self._news:
            added = self._delivery.add(kind, **entry)
            self._write_down(added)
            self._news.notify_all()
        return added

    def _write_down(self, entry: Mapping[str, Any]) -> None:
        try:
            with self._journal.open("a") as journal:
                journal.write(json.dumps(entry) + "\n")
        except OSError as error:
            if not self._disk_is_full:
                _log.warning("%s cannot be written: %s", self._journal, error)
            self._disk_is_full = True

    def put_file(self, name: str, text: str) -> None:
        """Writes an artifact into the folder and has it sent; a full disk costs the artifact and no more."""
        try:
            (self._delivery.folder / name).write_text(text, encoding="utf-8", newline="")
        except OSError as error:
            _log.warning("%s cannot be written: %s", name, error)
        else:
            self.put("file", name=name)

    def close(self, status: str, patience: float) -> bool:
        """Ends the run; waits for a lost store for `patience` seconds.

        Returns:
            Whether everything has arrived.
        """
        with self._news:
            self._delivery.add_files()
        last = self.put("status", status=status)
        deadline = monotonic() + patience
        try:
            with self._news:
                while self._delivery.waiting:
                    # Once it has arrived, or has been tried at least.
                    ended = last not in self._delivery.waiting or self._delivery.tried is last
                    lost = self._lost if ended else None
                    if lost and (is_final(lost) or monotonic() > deadline):
                        break
                    self._news.wait(0.2 if self._lost else None)
        finally:
            with self._news:
                self._delivery.given_up = True
                self._news.notify_all()
            complete = not self._delivery.waiting
            if complete:
                self._journal.unlink(missing_ok=True)
            else:
                _log.warning(
                    "%s What is missing there waits in %s. Send it later with: experiments sync",
                    store_error(store_uri(), self._lost) if self._lost else "The store does not have all of the run.",
                    self._delivery.folder,
                )
        return complete

    def _work(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._delivery.waiting or self._delivery.given_up)
                if self._delivery.given_up:
                    return
            try:
                self._delivery.go()
            except Exception as error:  # nothing that a store raises may reach the training
                self._failed(error)
            else:
                if not self._delivery.given_up:
                    self._succeeded()

    def _failed(self, error: Exception) -> None:
        with self._news:
            known, self._lost = self._lost, error
        if known is None:
            _log.warning("%s The training goes on; what it records is kept.", store_error(store_uri(), error))
        with self._news:
            self._news.notify_all()
            self._news.wait_for(self._is_another_try_due, timeout=AGAIN_AFTER)

    def _is_another_try_due(self) -> bool:
        return self._delivery.given_up or self._delivery.tried is not self._delivery.waiting[-1]

    def _succeeded(self) -> None:
        with self._news:
            lost, self._lost = self._lost, None
            self._news.notify_all()
        if lost:
            _log.info("The tracking store answers again and has everything.")


def send_missing(
    client: mlflow.MlflowClient, run_id: str, folder: Path, end: tuple[str, Mapping[str, object]] | None = None
) -> None:
    """Sends what stands in the journal of a process that is gone, and the files beside it.

    Args:
        client: of the store.
        run_id: of the run.
        folder: of the run, if it is here.
        end: status and tags to close the run with, unless its process has come so far itself.

    Raises:
        Exception: whatever the store, or the disk of its artifacts, has raised.
    """
    journal = folder / _JOURNAL
    delivery = Delivery(client, run_id, folder, unsure=True)
    for line in journal.read_text().splitlines() if journal.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):  # the process died while it was writing the line
            delivery.waiting.append(json.loads(line))
    ended = any(entry["kind"] == "status" for entry in delivery.waiting)
    if delivery.waiting or end:
        delivery.add_files()
    if end and not ended:
        status, tags = end
        delivery.add("tags", tags={name: without_secrets(str(value)) for name, value in tags.items()})
        delivery.add("status", status=status)
    if delivery.waiting:
        delivery.go()
    journal.unlink(missing_ok=True)


def is_waiting(folder: Path) -> bool:
    """Whether a folder holds what the store may lack."""
    return (folder / _JOURNAL).exists()
