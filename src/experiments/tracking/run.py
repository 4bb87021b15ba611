"""One run in the store: opened, written and closed with the truth about how it ended."""

import contextlib
import functools
import json
import logging
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions, version
from pathlib import Path
from time import time
from typing import Any, TextIO
from urllib.parse import urlparse

import mlflow
import psutil
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from experiments.config import CHECKOUT
from experiments.tracking.store import experiment_id, jobs_folder, open_store, shown_uri, store_error, store_uri

_log = logging.getLogger(__name__)

_LONGEST_PARAM = 6000  # characters, MLflow's limit
_PARAMS_A_BATCH = 100  # MLflow's limit
_CUT = " … see config.yaml"
_REMEMBERED = "run.json"
_own_output: Path | None = None  # where this process writes its output as long as no run of a sweep is open

#: Tags that the record itself sets; a user's free tags may not take their names.
TAGS = {
    "variant", "fingerprint", "experiment", "job", "command", "data.sha256", "data.validation_sha256",
    "data.test_sha256", "code.sha256", "git.commit", "git.dirty", "host", "pid", "python", "tensorflow", "keras",
    "mlflow", "failure", "sweep", "sweep.name", "best_run_id", "pruned", "reason", "superseded", "weights.sha256",
    "predictions.sha256", "diverged", "diverged_epoch", "reproduces",
}  # fmt: skip


@dataclass
class Run:
    """A run that is open in the store. What it logs is there when the call returns."""

    client: mlflow.MlflowClient
    id: str
    name: str
    experiment_id: str
    artifact_uri: str
    folder: Path  # files of this run on their way to the store
    status: str = "FINISHED"  # unless something is raised

    @property
    def artifacts(self) -> str:
        """The folder of the run's artifacts, or its URI when it is on another machine."""
        return str(_local(self.artifact_uri) or self.artifact_uri)

    @property
    def link(self) -> str:
        """The page of this run in the MLflow UI, without host and port."""
        return f"#/experiments/{self.experiment_id}/runs/{self.id}"

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0, model_id: str | None = None) -> None:
        """Logs all `metrics` of a step in one call; with `model_id` they are the model's too."""
        now = int(time() * 1000)
        points = [Metric(name, value, now, step, model_id, run_id=self.id) for name, value in metrics.items()]
        self.client.log_batch(self.id, metrics=points)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Sets tags of the run."""
        for name, value in tags.items():
            self.client.set_tag(self.id, name, value)

    def fail(self, failure: str, tags: Mapping[str, object], status: str = "FAILED") -> None:
        """Lets the run end as FAILED or KILLED although nothing is raised."""
        _log.error("%s: %s", status, failure)
        self.status = status
        self.set_tags({"failure": failure, **tags})

    def log_files(self) -> None:
        """Sends every file of the run's folder."""
        send_files(self.client, self.id, self.folder)

    def log_model(self, model: Any, *, image_shape: tuple[int, ...], num_classes: int, step: int) -> str:
        """Logs a Keras model that takes raw pixels, tied to the metrics of `step`.

        Args:
            model: uncompiled `keras.Model`.
            image_shape: height, width and channels.
            num_classes: length of a row of probabilities.
            step: the epoch whose weights it holds.

        Returns:
            The id of the logged model.
        """
        import_model_flavor()
        import numpy as np
        from mlflow.models import Model, ModelSignature
        from mlflow.types import Schema, TensorSpec

        signature = ModelSignature(
            inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, *image_shape), "image")]),
            outputs=Schema([TensorSpec(np.dtype("float32"), (-1, num_classes))]),
        )
        # Left to itself, Model.log takes the experiment of an active run, which we never have, or else number 0.
        logged = self.client.create_logged_model(
            self.experiment_id, name="model", source_run_id=self.id, params=self.client.get_run(self.id).data.params
        )
        Model.log(
            artifact_path=None,
            name="model",
            model_id=logged.model_id,
            flavor=mlflow.keras,
            run_id=self.id,
            step=step,
            model=model,
            signature=signature,
            pip_requirements=_model_requirements(),
        )
        return logged.model_id


def import_model_flavor() -> None:
    """Imports what logging a model needs: half a second that no other command should pay."""
    import mlflow.keras
    import mlflow.models
    import mlflow.types  # noqa: F401


def preload() -> None:
    """Does once what the first run of a process would do: most of what recording costs a short one."""
    import mlflow.pyfunc
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches

    import_model_flavor()
    environment()
    warn_dependency_requirement_mismatches(_model_requirements())  # it reads and keeps what is installed


def _model_requirements() -> list[str]:
    """What a logged model needs, with versions; left to itself MLflow would take 9 s to find out."""
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
    superseded: Sequence[str] = (),
    output: str = "",
) -> Iterator[Run]:
    """A new run in the store, closed with the truth about how it ended.

    Args:
        experiment: name of the MLflow experiment, made if need be; with a parent the run goes to the parent's.
        name: of the run.
        params: all of them; texts that are too long are cut.
        tags: beside those of the machine and the code, which are set here.
        files: artifacts to have from the start, name -> text.
        parent: id of the sweep's run.
        superseded: ids of older runs that this one takes the place of.
        output: name of the file that the output of the run's own process has gone to, if that was another one.

    Raises:
        ExperimentError: the store is gone.
    """
    client = open_store()
    try:
        if parent:
            sweep = client.get_run(parent)
            place = sweep.info.experiment_id
            tags = {**tags, "mlflow.parentRunId": parent, "sweep": sweep.data.tags["sweep.name"]}
        else:
            place = experiment_id(client, experiment)
        info = client.create_run(place, tags=provenance() | dict(tags), run_name=name).info
    except MlflowException as error:
        raise store_error(store_uri(), error) from error
    run = Run(client, info.run_id, name, place, info.artifact_uri, jobs_folder() / info.run_id)
    run.folder.mkdir(parents=True)
    remember(run.folder, str(tags.get("fingerprint", "")))
    if output and (jobs_folder() / output).exists():
        (jobs_folder() / output).rename(run.folder / "job.log")
    with _job_log(run.folder / "job.log"), _status(run):
        for older in superseded:
            client.set_tag(older, "superseded", run.id)
        cut = [Param(key, _shortened(value)) for key, value in params.items()]
        for start in range(0, len(cut), _PARAMS_A_BATCH):
            client.log_batch(run.id, params=cut[start : start + _PARAMS_A_BATCH])
        for file, text in files.items():
            (run.folder / file).write_text(text)
        yield run
    shutil.rmtree(run.folder)
    if run.status == "FINISHED":
        for older in superseded:
            shutil.rmtree(jobs_folder() / older, ignore_errors=True)


def this_process() -> dict[str, object]:
    """What tells this process from every other, as long as it lives."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def send_files(client: mlflow.MlflowClient, run_id: str, folder: Path) -> None:
    """Sends every file of a run's folder but our own notes."""
    for file in sorted(folder.iterdir()):
        if file.name != _REMEMBERED:
            client.log_artifact(run_id, str(file))


def remember(folder: Path, fingerprint: str = "") -> None:
    """Writes down in a run's folder whose it is and which process has it open."""
    written = {"store": shown_uri(), "fingerprint": fingerprint, **this_process()}
    (folder / _REMEMBERED).write_text(json.dumps(written))


@contextlib.contextmanager
def own_output(name: str) -> Iterator[TextIO]:
    """Sends everything that this process prints to a file, which becomes `job.log` of the next run.

    Args:
        name: of the file as long as there is no run.

    Yields:
        The standard output as it was before.
    """
    global _own_output
    jobs_folder().mkdir(parents=True, exist_ok=True)
    _own_output = jobs_folder() / name
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.ExitStack() as restore, open(os.dup(1), "w", buffering=1) as console:
        for descriptor in (1, 2):
            before = os.dup(descriptor)
            restore.callback(os.close, before)
            restore.callback(os.dup2, before, descriptor)
        restore.callback(sys.stderr.flush)
        restore.callback(sys.stdout.flush)
        with _own_output.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            yield console
        except Exception:
            traceback.print_exc()
            raise
        finally:
            _own_output = None


@contextlib.contextmanager
def _job_log(file: Path) -> Iterator[None]:
    """Writes the log of this package to `file`, after what this process has printed so far if that is kept."""
    if _own_output:
        _own_output.rename(file)
    job_log = logging.FileHandler(file)
    job_log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("experiments").addHandler(job_log)
    try:
        yield
    finally:
        logging.getLogger("experiments").removeHandler(job_log)
        job_log.close()


@contextlib.contextmanager
def _status(run: Run) -> Iterator[None]:
    """Closes `run` as FINISHED, FAILED or KILLED, and says why in tags and files."""
    status, tags = "FAILED", {}
    try:
        yield
        status = run.status
    except KeyboardInterrupt:
        status, tags = "KILLED", {"reason": "interrupted", "failure": "SIGINT"}
        raise
    except SystemExit as error:
        ended_by = next((number.name for number in signal.Signals if error.code == 128 + number), None)
        status = "KILLED" if ended_by else "FAILED"
        tags = {"reason": "signal" if ended_by else "exit", "failure": ended_by or f"{error!r}"}
        raise
    except BaseException as error:
        last_line = traceback.format_exception_only(error)[-1].strip().splitlines()[-1].strip()
        tags = {"reason": "error", "failure": last_line}
        (run.folder / "traceback.txt").write_text(traceback.format_exc())
        raise
    finally:
        if tags:
            _log.error("%s: %s", status, tags["failure"])
        run.set_tags(tags)
        run.log_files()
        run.client.set_terminated(run.id, status)


def _shortened(value: str) -> str:
    return value if len(value) <= _LONGEST_PARAM else value[: _LONGEST_PARAM - len(_CUT)] + _CUT


def provenance() -> dict[str, object]:
    """The machine and the code, as tags."""
    tags: dict[str, object] = {"host": socket.gethostname(), "pid": os.getpid(), "python": platform.python_version()}
    tags |= {name: version(name) for name in ("tensorflow", "keras", "mlflow")}
    if CHECKOUT and (commit := _git("rev-parse", "HEAD")):
        tags |= {"git.commit": commit, "git.dirty": str(bool(_git("status", "--porcelain"))).lower()}
    return tags


def _git(*arguments: str) -> str:
    git = shutil.which("git")
    if git is None:
        return ""
    done = subprocess.run([git, "-C", str(CHECKOUT), *arguments], capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip() if done.returncode == 0 else ""


@functools.cache
def environment() -> str:
    """Every installed package with its version, as a file that pip can install."""
    found = {dist.metadata["Name"]: dist.version for dist in distributions() if dist.metadata["Name"]}
    return "".join(f"{name}=={found[name]}\n" for name in sorted(found, key=str.lower) if name != "experiments")


def _local(uri: str) -> Path | None:
    from mlflow.utils.file_utils import local_file_uri_to_path

    return Path(local_file_uri_to_path(uri)) if urlparse(uri).scheme in ("", "file") else None
