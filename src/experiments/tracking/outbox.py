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
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric, Param

from experiments.tracking.provenance import without_secrets
from experiments.tracking.store import AGAIN_AFTER, is_final, store_error, store_uri

_log = logging.getLogger(__name__)

REMEMBERED = "run.json"
MODEL = "model"
_JOURNAL = "history.jsonl"
_OURS = (REMEMBERED, _JOURNAL, "checkpoint-")  # what names of files in a folder begin with that are no artifacts
_PARAMS_A_BATCH = 100  # MLflow's limit
_TEXTS = {".csv", ".diff", ".json", ".log", ".md", ".txt", ".yaml"}


class Delivery:
    """Sends the entries of one journal, each once it is its turn.

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
        self.entries: list[dict[str, Any]] = []
        self.sent = 0
        self._steps: dict[str, set[int]] = {}  # of metrics, that the store has
        self._model: LoggedModel | None = None

    @property
    def complete(self) -> bool:
        """Whether the store has everything."""
        return self.sent == len(self.entries)

    def add(self, kind: str, **entry: Any) -> dict[str, Any]:
        """Puts an entry at the end."""
        self.entries.append({"kind": kind, "at": int(time() * 1000), **entry})
        return self.entries[-1]

    def go(self) -> None:
        """Sends what has not been sent.

        Raises:
            Exception: whatever the store, or the disk of its artifacts, has raised.
        """
        try:
            while not self.complete:
                self._send(**self.entries[self.sent])
                self.sent += 1
        except Exception:
            self.unsure = True  # an answer that was lost may stand for an entry that was not
            self._steps.clear()
            self._model = None
            raise

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
                    self.client.set_tag(entry["run_id"] or self.run_id, name, value)
            case "file":
                _send_file(self.client, self.run_id, self.folder / entry["name"])
            case "model":
                self._send_model(entry["step"])
            case "status":
                for file in sorted(self.folder.glob("*")):
                    if file.is_file() and not file.name.startswith(_OURS):
                        _send_file(self.client, self.run_id, file)
                self.client.set_terminated(self.run_id, entry["status"], end_time=at)

    def _send_metrics(self, at: int, step: int, metrics: Mapping[str, float], of_model: bool) -> None:
        missing = {name: value for name, value in metrics.items() if step not in self._steps_of(name)}
        model_id = self._logged_model().model_id if of_model else None
        points = [Metric(name, value, at, step, model_id, run_id=self.run_id) for name, value in missing.items()]
        self.client.log_batch(self.run_id, metrics=points)
        for name in missing:
            self._steps[name].add(step)

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
            Metric(point.key, point.value, point.timestamp, step, logged.model_id, run_id=self.run_id)
            for point in points
            if point.step == step
        ]
        self.client.log_batch(self.run_id, metrics=tied)
        self._model = self.client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)

    def _logged_model(self) -> LoggedModel:
        """The model of this run as the store has it, made if need be."""
        if self._model is None:
            run = self.client.get_run(self.run_id)
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
        self._given_up = False
        self._disk_is_full = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def put(self, kind: str, **entry: Any) -> None:
        """Writes an entry down and has it sent."""
        with self._news:
            line = json.dumps(self._delivery.add(kind, **entry))
            try:
                with self._journal.open("a") as journal:
                    journal.write(line + "\n")
            except OSError as error:
                if not self._disk_is_full:
                    _log.warning("%s cannot be written: %s", self._journal, error)
                self._disk_is_full = True
            self._news.notify_all()

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
        self.put("status", status=status)
        deadline = monotonic() + patience
        try:
            with self._news:
                while not self._delivery.complete:
                    if self._lost and (is_final(self._lost) or monotonic() > deadline):
                        break
                    self._news.wait(0.2 if self._lost else None)
        finally:
            with self._news:
                self._given_up = True
                self._news.notify_all()
            if not self._delivery.complete:
                _log.warning(
                    "%s What is missing there waits in %s. Send it later with: experiments sync",
                    store_error(store_uri(), self._lost) if self._lost else "The store does not have all of the run.",
                    self._delivery.folder,
                )
        if self._delivery.complete:
            self._journal.unlink(missing_ok=True)
        return self._delivery.complete

    def _work(self) -> None:
        while True:
            with self._news:
                while self._delivery.complete and not self._given_up:
                    self._news.wait()
                if self._given_up:
                    return
            try:
                self._delivery.go()
            except Exception as error:  # nothing that a store raises may reach the training
                self._failed(error)
            else:
                self._succeeded()

    def _failed(self, error: Exception) -> None:
        if self._lost is None:
            _log.warning("%s The training goes on; what it records is kept.", store_error(store_uri(), error))
        with self._news:
            self._lost = error
            self._news.notify_all()
            self._news.wait_for(lambda: self._given_up, timeout=AGAIN_AFTER)

    def _succeeded(self) -> None:
        with self._news:
            lost, self._lost = self._lost, None
            self._news.notify_all()
        if lost:
            _log.info("The tracking store answers again and has everything.")


def send_missing(client: mlflow.MlflowClient, run_id: str, folder: Path) -> str | None:
    """Sends what stands in the journal of a process that is gone.

    Returns:
        The status that the run has ended with, None when its process did not come so far.

    Raises:
        Exception: whatever the store, or the disk of its artifacts, has raised.
    """
    journal = folder / _JOURNAL
    delivery = Delivery(client, run_id, folder, unsure=True)
    for line in journal.read_text().splitlines() if journal.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):  # the process died while it was writing the line
            delivery.entries.append(json.loads(line))
    delivery.go()
    journal.unlink(missing_ok=True)
    ends = [entry["status"] for entry in delivery.entries if entry["kind"] == "status"]
    return ends[-1] if ends else None


def is_waiting(folder: Path) -> bool:
    """Whether a folder holds what the store may lack."""
    return (folder / _JOURNAL).exists()


def _send_file(client: mlflow.MlflowClient, run_id: str, file: Path) -> None:
    """Sends a file as an artifact, without passwords if it is a text."""
    if file.suffix in _TEXTS:
        text = file.read_text(encoding="utf-8", errors="replace")
        if (clean := without_secrets(text)) != text:
            file.write_text(clean, encoding="utf-8")  # whoever appends to it goes on at its end
    client.log_artifact(run_id, str(file))
