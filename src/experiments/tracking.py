"""Where runs are recorded: the only file that knows MLflow."""

import contextlib
import logging
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import traceback
import webbrowser
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import distributions, version
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any, TypeVar
from urllib.parse import quote, urlparse

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# MLflow's own 7 retries of 120 s would let a command stand still for minutes when a server is down.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "8")

import mlflow
from mlflow.entities import Metric, Param, ViewType
from mlflow.exceptions import MlflowException

from experiments.config import CHECKOUT
from experiments.errors import ExperimentError

_log = logging.getLogger(__name__)
for _noisy in ("mlflow", "alembic"):
    logging.getLogger(_noisy).setLevel(logging.WARNING)

_LONGEST_PARAM = 6000  # characters, MLflow's limit
_PARAMS_A_BATCH = 100  # MLflow's limit
_CUT = " … see config.yaml"
_STILL_WRITTEN = 5  # seconds since the last change of a SQLite file that another program may be making
T = TypeVar("T")

#: Tags that the record itself sets; a user's free tags may not take their names.
TAGS = {
    "variant", "fingerprint", "experiment", "job", "command", "data.sha256", "data.validation_sha256",
    "data.test_sha256", "code.sha256", "git.commit", "git.dirty", "host", "pid", "python", "tensorflow", "keras",
    "mlflow", "failure", "sweep", "sweep.name", "best_run_id", "pruned", "reason", "superseded", "weights.sha256",
    "predictions.sha256", "diverged", "diverged_epoch", "reproduces",
}  # fmt: skip


def home() -> Path:
    """The folder that holds `mlruns/`: the checkout, or for an installed package EXPERIMENTS_HOME or this folder."""
    return CHECKOUT or Path(os.environ.get("EXPERIMENTS_HOME", "")).resolve()


def store_uri() -> str:
    """The MLflow store of every run: MLFLOW_TRACKING_URI, or a SQLite file under `home()`."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not given:
        return f"sqlite:///{home() / 'mlruns' / 'mlflow.db'}"
    file = _sqlite_file(given)
    return f"sqlite:///{file.resolve()}" if file else given


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def shown_uri() -> str:
    """The store as it may be shown: without its password."""
    return _without_password(store_uri())


def _without_password(uri: str) -> str:
    parsed = urlparse(uri)
    return uri.replace(f":{parsed.password}@", ":***@") if parsed.password else uri


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

    def fail(self, failure: str, tags: Mapping[str, object]) -> None:
        """Lets the run end as FAILED although nothing is raised."""
        _log.error("FAILED: %s", failure)
        self.status = "FAILED"
        self.set_tags({"failure": failure, **tags})

    def log_files(self) -> None:
        """Sends every file of the run's folder."""
        self.client.log_artifacts(self.id, str(self.folder))

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
        # Imported here: they cost half a second that no other command needs.
        import mlflow.keras
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
            pip_requirements=[f"{name}=={version(name)}" for name in ("keras", "tensorflow", "mlflow")],
        )
        return logged.model_id


def check_store() -> None:
    """Makes sure that a run can be recorded, and makes nothing yet.

    Raises:
        ExperimentError: a store that cannot be reached or written, or that an older MLflow has made.
    """
    uri = store_uri()
    file = _sqlite_file(uri)
    _check_writable(home() / "mlruns" / "jobs", "The files of a run")
    if file and (not file.exists() or file.stat().st_size == 0):
        _check_writable(file.parent, f"The tracking store {uri}")
        return
    try:
        _ask(lambda: mlflow.MlflowClient(uri).search_experiments(max_results=1, view_type=ViewType.ALL), file)
    except Exception as error:  # every kind of store has its own
        raise _store_error(uri, error) from error


def _check_writable(folder: Path, what: str) -> None:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ExperimentError(f"{what} cannot be made: {there} is not writable.")


def _ask(ask: Callable[[], T], file: Path | None) -> T:
    """The answer of a store whose tables may be being made just now.

    Making a SQLite store is not safe from two processes at once: those of ours take turns, and other programs get 20 s.
    """
    deadline = monotonic() + 20
    while True:
        try:
            with _alone_in(file.parent) if file else contextlib.nullcontext():
                return ask()
        except Exception:
            being_made = file and file.exists() and time() - file.stat().st_mtime < _STILL_WRITTEN
            if not being_made or monotonic() > deadline:
                raise
            sleep(0.5)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keeps other processes that ask for the same folder waiting."""
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":  # no locks on folders
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _store_error(uri: str, error: Exception) -> ExperimentError:
    shown = _without_password(uri)
    if "out-of-date database schema" in str(error):
        return ExperimentError(
            f"The tracking store {shown} was made by another version of MLflow than this one ({version('mlflow')}).",
            advice=f"Copy the file first, then: mlflow db upgrade {shown}",
        )
    reason = str(error).replace(uri, shown).splitlines()[0][:300].rstrip(".")
    if urlparse(uri).scheme not in ("http", "https"):
        return ExperimentError(f"The tracking store {shown} cannot be used: {reason}.")
    return ExperimentError(
        f"The tracking store {shown} cannot be reached: {reason}.",
        advice="Start its server, or unset MLFLOW_TRACKING_URI to record in a local file.",
    )


@contextlib.contextmanager
def open_run(
    *,
    experiment: str,
    name: str,
    params: Mapping[str, str],
    tags: Mapping[str, object],
    files: Mapping[str, str],
) -> Iterator[Run]:
    """A new run in the store, closed with the truth about how it ended.

    Args:
        experiment: name of the MLflow experiment, made if need be.
        name: of the run.
        params: all of them; texts that are too long are cut.
        tags: beside those of the machine and the code, which are set here.
        files: artifacts to have from the start, name -> text.

    Raises:
        ExperimentError: the store is gone.
    """
    uri = store_uri()
    mlflow.set_tracking_uri(uri)
    try:
        client = _ask(lambda: mlflow.MlflowClient(uri), _sqlite_file(uri))
        experiment_id = _experiment_id(client, experiment, uri)
        opened = client.create_run(experiment_id, tags=_provenance() | dict(tags), run_name=name)
    except ExperimentError:
        raise
    except Exception as error:
        raise _store_error(uri, error) from error
    info = opened.info
    run = Run(client, info.run_id, name, experiment_id, info.artifact_uri, home() / "mlruns" / "jobs" / info.run_id)
    run.folder.mkdir(parents=True)
    job_log = logging.FileHandler(run.folder / "job.log")
    job_log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("experiments").addHandler(job_log)
    try:
        with _status(run):
            cut = [Param(key, _shortened(value)) for key, value in params.items()]
            for start in range(0, len(cut), _PARAMS_A_BATCH):
                client.log_batch(run.id, params=cut[start : start + _PARAMS_A_BATCH])
            for file, text in files.items():
                (run.folder / file).write_text(text)
            yield run
    finally:
        logging.getLogger("experiments").removeHandler(job_log)
        job_log.close()
    shutil.rmtree(run.folder)


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
        terminated = error.code == 143
        status = "KILLED" if terminated else "FAILED"
        tags = {"reason": "signal" if terminated else "exit", "failure": "SIGTERM" if terminated else f"{error!r}"}
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


def _experiment_id(client: mlflow.MlflowClient, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        file = _sqlite_file(uri)
        location = (file.parent / "artifacts" / quote(name, safe="")).as_uri() if file else None
        try:
            # The kind opens the experiment's page on its training runs instead of traces.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            return client.create_experiment(name, artifact_location=location, tags=tags)
        except MlflowException:  # another process made it in between
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise ExperimentError(
            f"The MLflow experiment {name} was deleted.",
            advice="Choose another one with tracking.experiment=…, or: "
            f"mlflow experiments restore -x {found.experiment_id}",
        )
    return found.experiment_id


def _shortened(value: str) -> str:
    return value if len(value) <= _LONGEST_PARAM else value[: _LONGEST_PARAM - len(_CUT)] + _CUT


def _provenance() -> dict[str, object]:
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


def environment() -> str:
    """Every installed package with its version, as a file that pip can install."""
    found = {dist.metadata["Name"]: dist.version for dist in distributions() if dist.metadata["Name"]}
    return "".join(f"{name}=={found[name]}\n" for name in sorted(found, key=str.lower) if name != "experiments")


def _local(uri: str) -> Path | None:
    from mlflow.utils.file_utils import local_file_uri_to_path

    return Path(local_file_uri_to_path(uri)) if urlparse(uri).scheme in ("", "file") else None


def serve_ui(host: str, port: int) -> int:
    """Shows the store in the MLflow UI until Ctrl-C; opens a browser where there is one.

    Args:
        host: address to listen on.
        port: to listen on.

    Returns:
        The exit status.

    Raises:
        ExperimentError: nothing is recorded yet, or the port is taken.
    """
    uri = store_uri()
    check_store()
    file = _sqlite_file(uri)
    if file and not file.exists():
        raise ExperimentError(f"Nothing is recorded in {uri} yet.", advice="Start with: experiments train")
    if urlparse(uri).scheme in ("http", "https"):
        address = urlparse(uri)
        url = f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}/{_training_runs_page(uri)}"
        print(f"The store is a server with a UI of its own: {url}")
        webbrowser.open(url)
        return 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ExperimentError(f"Port {port} of {host} is taken.", advice=f"Try: --port {port + 1}") from error
    listen = ["--host", host, "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning"]
    stores = ["--backend-store-uri", uri, "--registry-store-uri", uri]
    words = [sys.executable, "-m", "mlflow", "server", *stores, *listen]
    # Its job runners serve features that nobody needs here, and would outlive it.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_LOGGING_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore"}
    server = subprocess.Popen(words, env=os.environ | quiet, start_new_session=True)  # noqa: S603
    url = f"http://{host}:{port}/{_training_runs_page(uri)}"
    try:
        while server.poll() is None and not _answers(host, port):
            sleep(0.2)
        if server.poll() is not None:
            return 1
        print(f"\nThe runs: {url}\nStop with Ctrl-C.", flush=True)
        if sys.stdout.isatty():
            webbrowser.open(url)
        return server.wait()
    finally:
        # The whole group: the server has workers of its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def _training_runs_page(uri: str) -> str:
    """The latest run's experiment, on its runs and charts, the best run first; without host and port."""
    client = mlflow.MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    latest = client.search_runs(experiments, order_by=["attributes.start_time DESC"], max_results=1)
    if not latest:
        return ""
    return (
        f"#/experiments/{latest[0].info.experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART"
        "&orderByKey=metrics.%60best%2Fval_accuracy%60&orderByAsc=false"
    )
