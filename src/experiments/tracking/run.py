"""One run in the store: opened, recorded, and ended with its true status."""

import contextlib
import json
import logging
import math
import os
import shutil
import socket
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import psutil
from mlflow.entities import RunInfo
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from experiments.errors import ExperimentError
from experiments.tracking.delivery import MODEL, NOT_RECORDED, REMEMBERED, is_waiting, send_before_reopening
from experiments.tracking.endings import Ending
from experiments.tracking.outbox import Outbox, full_disk_is_a_warning
from experiments.tracking.output import job_log
from experiments.tracking.provenance import PROVENANCE, as_file, environment, provenance, source
from experiments.tracking.runs import CUT
from experiments.tracking.secrets import without_secrets
from experiments.tracking.store import (
    call_store,
    experiment_id,
    folder_lock,
    jobs_folder,
    local_folder,
    open_store,
    run_folder,
    shown_uri,
    store_uri,
)
from experiments.tracking.ui import ui_command

_log = logging.getLogger(__name__)

_LONGEST_PARAM = 6000  # characters, MLflow's limit
_LONGEST_DIGEST = 36  # MLflow's limit, too

#: Tags that the record itself sets; a user's free tags may not take their names.
TAGS = {
    "variant", "variant.id", "fingerprint", "experiment", "job", "command", "data.sha256", "data.validation_sha256",
    "data.test_sha256", "code.sha256", "git.commit", "git.dirty", "host", "pid", "python", "tensorflow", "keras",
    "mlflow", "failure", "sweep", "sweep.name", "best_run_id", "pruned", "reason", "superseded", "weights.sha256",
    "predictions.sha256", "metric_modes", "diverged", "diverged_epoch", "reproduces", "members", NOT_RECORDED,
}  # fmt: skip


@dataclass
class Run:
    """A run that is open in the store; what it records is sent in the background of the training."""

    id: str
    name: str
    experiment_id: str
    artifact_uri: str
    folder: Path  # files of this run on their way to the store, and its checkpoints
    outbox: Outbox
    status: str = "FINISHED"  # unless something is raised
    diverged: bool = False
    has_model: bool = False

    @property
    def artifacts(self) -> str:
        """The folder of the run's artifacts, or its URI when it is on another machine."""
        return str(local_folder(self.artifact_uri) or self.artifact_uri)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Records the metrics of a step; those of step 0 are also metrics of the logged model, if there is one."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self.outbox.put("metrics", step=step, metrics=finite, of_model=self.has_model and step == 0)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Sets tags of the run."""
        if tags:
            self.outbox.put("tags", tags={name: without_secrets(str(value)) for name, value in tags.items()})

    def log_dataset(
        self,
        *,
        name: str,
        sha256: str,
        loader: str,
        num_images: int,
        image_shape: tuple[int, ...],
        num_classes: int,
        sizes: Mapping[str, int],
    ) -> None:
        """Links the run to its data, which runs with equal `name` and `sha256` share.

        Args:
            name: of the data.
            sha256: of all of them.
            loader: name of the function that has read them; where they lie is not recorded.
            num_images: all that there are.
            image_shape: height, width and channels.
            num_classes: how many.
            sizes: how many images this run uses for what.
        """
        specs = {"image": {"dtype": "uint8", "shape": [-1, *image_shape]}, "label": {"dtype": "int64", "shape": [-1]}}
        tensors = [{"name": field, "type": "tensor", "tensor-spec": spec} for field, spec in specs.items()]
        profile = {"images": num_images, "image_shape": " x ".join(map(str, image_shape)), "classes": num_classes}
        self.outbox.put(
            "dataset",
            dataset={
                "name": without_secrets(name),
                "digest": sha256[:_LONGEST_DIGEST],
                "source_type": "code",
                "source": json.dumps({"tags": {"mlflow.source.name": loader}}),
                "schema": json.dumps({"mlflow_colspec": tensors}),  # the UI shows this kind as a table
                "profile": json.dumps(profile),
            },
            tags={MLFLOW_DATASET_CONTEXT: "training", **{part: str(size) for part, size in sizes.items()}},
        )

    def fail(self, failure: str, tags: Mapping[str, object], status: str = "FAILED") -> None:
        """Makes the run end as FAILED or KILLED although no exception is raised."""
        _log.error("%s: %s", status, failure)
        self.status = status
        self.diverged = "diverged" in tags
        self.set_tags({"failure": failure, **tags})

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """The path to write an artifact to; when the disk is full, the run continues without the artifact."""
        path = self.folder / name
        with full_disk_is_a_warning(path):
            yield path

    def log_model(self, model: Any, *, image_shape: tuple[int, ...], class_names: Sequence[str], step: int) -> None:
        """Records a Keras model that takes raw pixels, tied to the metrics of `step`.

        Args:
            model: uncompiled `keras.Model`.
            image_shape: height, width and channels.
            class_names: in the order of the probabilities; kept in the metadata, and the columns of what MLflow's
                server answers.
            step: the epoch whose weights it holds.
        """
        import_model_flavor()
        import mlflow.keras
        import numpy as np
        from mlflow.models import Model, ModelSignature
        from mlflow.types import Schema, TensorSpec

        from experiments.tracking import named_answer

        signature = ModelSignature(
            inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, *image_shape), "image")]),
            outputs=Schema([TensorSpec(np.dtype("float32"), (-1, len(class_names)))]),
        )
        with self.file(MODEL) as folder:
            shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was killed just here
            saved = Model()
            mlflow.keras.save_model(
                model,
                str(folder),
                mlflow_model=saved,
                signature=signature,
                pip_requirements=_model_requirements(),
                metadata={"class_names": list(class_names)},
            )
            loader = Path(named_answer.__file__)
            (folder / "code").mkdir()
            shutil.copy(loader, folder / "code")
            saved.flavors["python_function"] |= {"loader_module": loader.stem, "code": "code"}
            saved.save(folder / "MLmodel")
            self.outbox.put("model", step=step)
            self.has_model = True

    @contextlib.contextmanager
    def system_metrics(self, *, wanted: bool) -> Iterator[None]:
        """Records `system/…`, the load of this machine, meanwhile, as MLflow measures it, if it is wanted."""
        if not wanted:
            yield
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)  # it reports its beginning and its end
        monitor = SystemMetricsMonitor(self.id, resume_logging=True, tracking_uri=store_uri())
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()


def import_model_flavor() -> None:
    """Imports what logging a model needs, which takes half a second and is not needed otherwise."""
    import mlflow.keras
    import mlflow.models
    import mlflow.types  # noqa: F401 - imported to be there


def preload() -> None:
    """Does in advance what the first run of a process does once: most of the cost of recording a short run."""
    import mlflow.pyfunc
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - imported to be there
    from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches

    import_model_flavor()
    environment()
    warn_dependency_requirement_mismatches(_model_requirements())  # it reads and keeps what is installed


def _model_requirements() -> list[str]:
    """The packages that a logged model needs, with versions; MLflow would take 9 s to find them."""
    return [f"{name}=={version(name)}" for name in ("keras", "tensorflow", "mlflow")]


@contextlib.contextmanager
def open_run(
    *,
    experiment: str,
    name: str,
    params: Mapping[str, str],
    tags: Mapping[str, object],
    files: Mapping[str, str],
    parent: str | None = None,
    attempt: str | None = None,
    superseded: Sequence[str] = (),
    outdated: Sequence[str] = (),
    output: str = "",
    patience: float,
) -> Iterator[Run]:
    """Creates or reopens a run in the store, and closes it with its true status.

    Args:
        experiment: name of the MLflow experiment, created if necessary; with a parent, the parent's is used.
        name: of the run.
        params: its parameters; values that are too long are cut.
        tags: beside those of the machine and the code, which are set here.
        files: artifacts to record at the start, name -> text.
        parent: id of the sweep's run.
        attempt: id of an earlier run to resume, in its own experiment and sweep.
        superseded: ids of earlier runs that this one replaces.
        outdated: ids of earlier runs whose files are deleted when this one is finished.
        output: name of the file that the output of the run's own process has gone to, if that was another one.
        patience: seconds to wait at the end for a store that does not answer.

    Raises:
        StoreLost: the store does not answer.
        ExperimentError: the store refuses it, the experiment was deleted, or the run's folder cannot be made.
    """
    client = open_store()
    machine = provenance()
    tags, files = machine | source(tags) | dict(tags), {**files, PROVENANCE: as_file(machine)}
    fingerprint = str(tags.get("fingerprint", ""))
    if attempt:
        info = call_store(_reopened, client, attempt, fingerprint)
    else:
        if parent:
            sweep = call_store(client.get_run, parent)
            place = sweep.info.experiment_id
            tags |= {"mlflow.parentRunId": parent, "sweep": sweep.data.tags["sweep.name"]}
        else:
            place = call_store(experiment_id, client, experiment)
        texts = {key: without_secrets(str(value)) for key, value in tags.items()}
        info = call_store(client.create_run, place, tags=texts, run_name=without_secrets(name)).info
    folder = _made_folder(client, info.run_id, fingerprint)
    if output and (jobs_folder() / output).exists():
        (jobs_folder() / output).rename(folder / "job.log")
    with job_log(folder / "job.log"):
        outbox = Outbox(client, info.run_id, folder, unsure=attempt is not None)
        run = Run(info.run_id, info.run_name, info.experiment_id, info.artifact_uri, folder, outbox)
        with _status(run, patience):
            for older in superseded:
                outbox.put("superseded", run_id=older)
            if attempt:
                run.set_tags(tags)
            else:
                outbox.put("params", params={key: _shortened(without_secrets(value)) for key, value in params.items()})
            for file, text in files.items():
                outbox.put_file(file, without_secrets(text))
            yield run
    if run.status == "FINISHED" or run.diverged:
        for run_id in (*outdated, run.id):
            _delete_run_folder(run_id)


def _reopened(client: mlflow.MlflowClient, run_id: str, fingerprint: str) -> RunInfo:
    """Reopens a run that had ended, after sending what its folder still held."""
    folder = run_folder(run_id)
    with folder_lock(folder):  # or another command could be closing it as one of a dead process
        send_before_reopening(client, run_id, folder)
        write_owner(folder, fingerprint=fingerprint)
        for name in {"reason", "failure", "pruned"} & set(client.get_run(run_id).data.tags):
            client.delete_tag(run_id, name)
        client.update_run(run_id, status="RUNNING")
    failure = folder / "traceback.txt"
    if failure.exists():
        failure.write_text(
            f"The run was resumed after this error.\n\n{failure.read_text(encoding='utf-8')}", encoding="utf-8"
        )
    return client.get_run(run_id).info


def _made_folder(client: mlflow.MlflowClient, run_id: str, fingerprint: str) -> Path:
    folder = run_folder(run_id)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_owner(folder, fingerprint=fingerprint)
    except OSError as error:
        client.set_tag(run_id, "failure", f"its folder cannot be created: {error}")
        client.set_terminated(run_id, "FAILED")
        raise ExperimentError(f"The folder of a run cannot be created: {error}.") from error
    return folder


def _delete_run_folder(run_id: str) -> None:
    """Deletes the folder of a run, unless the store does not have everything in it yet."""
    if not is_waiting(run_folder(run_id)):
        shutil.rmtree(run_folder(run_id), ignore_errors=True)


def this_process() -> dict[str, object]:
    """What identifies this process: host, process id and start time."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def write_owner(folder: Path, *, fingerprint: str = "", sweep: str = "") -> None:
    """Writes into the folder of a run or sweep which store it belongs to and which process has it open."""
    written = {"store": shown_uri(), "fingerprint": fingerprint, "sweep": sweep, **this_process()}
    (folder / REMEMBERED).write_text(json.dumps(written), encoding="utf-8")


def release_owner(folder: Path) -> None:
    """Writes into the folder of a run that no process has it open, so that `sync` may send what is left."""
    with contextlib.suppress(OSError, json.JSONDecodeError):
        written = json.loads((folder / REMEMBERED).read_text(encoding="utf-8"))
        (folder / REMEMBERED).write_text(json.dumps(written | {"pid": None}), encoding="utf-8")


@contextlib.contextmanager
def _status(run: Run, patience: float) -> Iterator[None]:
    """Closes the run as FINISHED, FAILED or KILLED, and records why."""
    try:
        yield
    except BaseException as error:
        ending = Ending.of(error)
        run.status = ending.status
        if isinstance(error, Exception):
            with contextlib.suppress(OSError), run.file("traceback.txt") as file:  # the error itself is what matters
                file.write_text(without_secrets(traceback.format_exc()), encoding="utf-8")
        level = logging.DEBUG if ending.reason == "interrupted" else logging.ERROR  # by the user, who knows
        _log.log(level, "%s: %s", ending.status, ending.failure)
        run.set_tags(ending.tags)
        raise
    finally:
        if not run.outbox.close(run.status, patience):
            release_owner(run.folder)
            _log.warning("%s (%s) is not fully recorded yet. Send the rest with: experiments sync", run.name, run.id)
        elif run.status == "FINISHED":
            _log.info("Recorded as %s (%s)", run.name, run.id)
            _log.info("View it with: %s", ui_command())


def _shortened(value: str) -> str:
    return value if len(value) <= _LONGEST_PARAM else value[: _LONGEST_PARAM - len(CUT)] + CUT
