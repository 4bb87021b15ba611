"""The MLflow tracking store: where it is, whether it answers, and what its errors mean."""

import contextlib
import errno
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from time import monotonic, sleep, time
from typing import ParamSpec, TypeVar
from urllib.parse import quote, unquote, urlparse

import mlflow
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from experiments.config.compose import CHECKOUT
from experiments.errors import ExperimentError
from experiments.library_internals import create_mlflow_tables
from experiments.tracking.secrets import without_secrets

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# MLflow's own 7 retries of 120 s would let a command stand still for minutes when a server is down.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "8")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

for _noisy in ("mlflow", "alembic"):
    logging.getLogger(_noisy).setLevel(logging.WARNING)
# A page at every try to reach a locked database; what it says is in the exception.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

_log = logging.getLogger(__name__)

AGAIN_AFTER = 3  # seconds between two tries to reach a lost store
_STILL_WRITTEN = 5  # seconds since the last change of a SQLite file that another program may be making
_LONGEST_FOLDER = 100  # characters of an experiment's folder; file systems take 143 to 255 bytes
_TRY_AGAIN = {408, 425, 429, 499}  # the HTTP statuses from 400 to 499 that are no refusal
#: What a file system says when the same question will get the same answer.
_FILE_REFUSALS = {
    errno.EACCES, errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT,
    errno.ENOTDIR, errno.EPERM, errno.EROFS,
}  # fmt: skip
_patience = 0.0  # seconds to wait for a lost store
_waited_in_vain = False
T = TypeVar("T")
P = ParamSpec("P")


class StoreLost(ExperimentError):
    """The store does not answer."""


class StoreRefused(ExperimentError):
    """The store refuses a request, or can never answer it; waiting would not help."""


def home() -> Path:
    """The folder that holds `mlruns/`: EXPERIMENTS_HOME, or the checkout, or for an installed package this folder."""
    given = os.environ.get("EXPERIMENTS_HOME", "")
    return CHECKOUT if CHECKOUT and not given else Path(given).resolve()


def jobs_folder() -> Path:
    """The folder of all runs and jobs, for files that the store does not have yet."""
    return home() / "mlruns" / "jobs"


def run_folder(run_id: str) -> Path:
    """The folder in which a run keeps its files until the store has them.

    Raises:
        ExperimentError: the id, which may come from a server, would lead out of the folder of all runs.
    """
    if not re.fullmatch(r"[\w-]+", run_id):
        raise ExperimentError(f"{run_id!r} is not the id of a run.")
    return jobs_folder() / run_id


def store_uri() -> str:
    """The MLflow store of every run: MLFLOW_TRACKING_URI, or a SQLite file under `home()`."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not given:
        return _sqlite_uri(home() / "mlruns" / "mlflow.db")
    file = sqlite_file(given)
    return _sqlite_uri(file.resolve()) + "".join(given.partition("?")[1:]) if file else given


def _sqlite_uri(file: Path) -> str:
    """The URI of a SQLite store, whatever characters its path has."""
    path = str(file)
    encoded = path.translate({ord(special): quote(special) for special in "%?#"})
    # MLflow would make a folder of the encoded path, unless the URI names the driver.
    return f"sqlite:///{path}" if encoded == path else f"sqlite+pysqlite:///{encoded}"


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store, None for any other store."""
    found = re.match(r"sqlite(?:\+pysqlite)?:///([^?]*)", uri)
    return Path(unquote(found[1])) if found else None


def local_folder(uri: str) -> Path | None:
    """The folder of artifacts on this machine, None if they are on another one."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    return Path(local_file_uri_to_path(uri)) if urlparse(uri).scheme in ("", "file") else None


def shown_uri() -> str:
    """The store as it may be shown: without its password."""
    return without_password(store_uri())


def without_password(uri: str) -> str:
    """The URI of a store as it may be shown."""
    parsed = urlparse(uri)
    return without_secrets(uri.replace(f":{parsed.password}@", ":***@") if parsed.password else uri)


def check_store() -> None:
    """Checks that a run can be recorded, without creating anything.

    Raises:
        ExperimentError: the store cannot be reached or written, or another version of MLflow has made it.
    """
    uri = store_uri()
    file = sqlite_file(uri)
    if uri.startswith("sqlite:") and (file is None or file.name == ":memory:" or file.is_dir()):
        raise ExperimentError(
            f"MLFLOW_TRACKING_URI={os.environ['MLFLOW_TRACKING_URI']} does not name a file.",
            advice="Name one, as in: sqlite:///mlflow.db, or with its full path: sqlite:////home/me/mlflow.db",
        )
    check_writable(jobs_folder(), "The files of a run")
    if file and nothing_recorded():
        check_writable(file.parent, f"The tracking store {uri}")
        return
    _reach(lambda: mlflow.MlflowClient(uri).search_experiments(max_results=1, view_type=ViewType.ALL))


def nothing_recorded() -> bool:
    """Whether the store does not exist yet."""
    file = sqlite_file(store_uri())
    return file is not None and (not file.exists() or file.stat().st_size == 0)


def check_writable(folder: Path, what: str) -> None:
    """Checks that a folder exists or can be created, without creating it.

    Raises:
        ExperimentError: it cannot; `what` is the subject of the message.
    """
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ExperimentError(f"{what} cannot be created: {there} is not writable.")


def _reach(question: Callable[[], T]) -> T:
    """Calls a store that may be down, or no store at all, and translates its errors."""
    uri = store_uri()

    def translated() -> T:
        try:
            return _once_made(question, sqlite_file(uri))
        except Exception as error:  # every kind of store has its own
            raise store_error(uri, error) from error

    return call_store(translated)


def _once_made(question: Callable[[], T], file: Path | None) -> T:
    """Calls a store whose tables another process may be creating just now.

    Our own processes take turns; any other program gets 20 s.
    """
    deadline = monotonic() + 20
    while True:
        try:
            with folder_lock(file.parent) if file else contextlib.nullcontext():
                if file and not file.exists():
                    _make_tables(file)
                return question()
        except Exception:
            being_made = file and file.exists() and time() - file.stat().st_mtime < _STILL_WRITTEN
            if not being_made or monotonic() > deadline:
                raise
            sleep(0.5)


def _make_tables(file: Path) -> None:
    """Creates a SQLite store under another name first, so that other programs see all of its tables or no file.

    MLflow makes them in 60 steps; a second program that meets them half made goes on with them itself, and leaves
    tables behind on which every later try fails.
    """
    from mlflow.store.db.utils import create_sqlalchemy_engine

    made = file.with_name(f"{file.name}.new")
    made.unlink(missing_ok=True)  # of a process that was killed
    engine = create_sqlalchemy_engine(_sqlite_uri(made))
    try:
        create_mlflow_tables(engine, (file.parent / "artifacts" / "Default").as_uri())
    finally:
        engine.dispose()
    if file.exists():  # another program was faster
        made.unlink()
    else:
        made.replace(file)


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Locks a folder; other processes that lock it wait."""
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


def set_store_timeout(seconds: float) -> None:
    """Sets how many seconds `call_store` waits for a store that does not answer."""
    global _patience, _waited_in_vain
    _patience, _waited_in_vain = seconds, False


def call_store(question: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls the store, again and again while it does not answer, until the timeout.

    After one timeout, later calls are tried once only, until the store answers again.

    Raises:
        StoreLost: it does not answer.
        StoreRefused: it refuses the request.
    """
    global _waited_in_vain
    deadline = monotonic() + (0 if _waited_in_vain else _patience)
    told = False
    while True:
        try:
            answer = question(*args, **kwargs)
            _waited_in_vain = False
            return answer
        except (StoreLost, MlflowException, OSError) as error:  # the last from the disk of artifacts
            lost = store_error(store_uri(), error)
            if not isinstance(lost, StoreLost):
                raise lost from error
        left = deadline - monotonic()
        if left <= 0:
            _waited_in_vain = True
            raise lost
        if not told:
            _log.warning("%s Waiting up to %.0f s for it.", lost, left)
            told = True
        sleep(min(AGAIN_AFTER, left))


def is_refusal(error: Exception) -> bool:
    """Whether an error of the store, its artifacts or their disk is a refusal, so that waiting would not help.

    Anything unknown counts as an outage: waiting for it costs time, and giving up too early costs results.
    """
    status = _http_status(error)
    if isinstance(error, StoreRefused) or (isinstance(error, MlflowException) and error.error_code == "INVALID_STATE"):
        return True
    if status is not None:
        return (400 <= status < 500 and status not in _TRY_AGAIN) or status == 501  # not implemented
    if isinstance(error, OSError):
        return error.errno in _FILE_REFUSALS
    return isinstance(error, AttributeError | ImportError | LookupError | TypeError)


def _http_status(error: Exception) -> int | None:
    """The HTTP status that an error of MLflow, of an artifact server or of S3 stands for, None for any other error."""
    if isinstance(error, MlflowException):
        # MLflow has no error code for most statuses that a proxy answers with.
        written = re.search(r"failed with error code (\d{3}) != ", str(error))
        return int(written[1]) if written else error.get_http_status_code()
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return getattr(response, "status_code", None)


def store_error(uri: str, error: Exception) -> ExperimentError:
    """Translates whatever a store has raised into an error that says what is wrong and what to do."""
    shown = without_password(uri)
    if isinstance(error, StoreLost | StoreRefused):
        return error
    if "out-of-date database schema" in str(error):
        return ExperimentError(
            f"The tracking store {shown} was made by another version of MLflow than this one ({version('mlflow')}).",
            advice=f"Copy the file first, then: mlflow db upgrade {shlex.quote(shown)}",
        )
    text = without_secrets(str(error).replace(uri, shown)).splitlines() or [type(error).__name__]
    reason = text[0][:300].rstrip(".")
    if is_refusal(error):
        answer = "refuses it" if isinstance(error, MlflowException) else "cannot be used"
        return StoreRefused(f"The tracking store {shown} {answer}: {reason}.")
    if urlparse(uri).scheme not in ("http", "https"):
        return StoreLost(f"The tracking store {shown} cannot be used: {reason}.")
    return StoreLost(
        f"The tracking store {shown} cannot be reached: {reason}.",
        advice="Start its server, or unset MLFLOW_TRACKING_URI to record in a local file.",
    )


def open_store() -> mlflow.MlflowClient:
    """An MLflow client of the store, whose tables are created if necessary.

    Raises:
        ExperimentError: the store does not answer or refuses.
    """
    uri = store_uri()
    mlflow.set_tracking_uri(uri)
    return _reach(lambda: mlflow.MlflowClient(uri))


def experiment_id(client: mlflow.MlflowClient, name: str) -> str:
    """The id of the MLflow experiment `name`, which is created if necessary.

    Raises:
        ExperimentError: it was deleted.
    """
    uri = store_uri()
    found = client.get_experiment_by_name(name)
    if found is None:
        file = sqlite_file(uri)
        # A name of dots alone would be another folder.
        inside = name.replace(".", "_") if not name.strip(".") else quote(name, safe="")
        if len(inside) > _LONGEST_FOLDER:
            inside = f"{inside[: _LONGEST_FOLDER - 9]}-{sha256(name.encode()).hexdigest()[:8]}"
        location = (file.parent / "artifacts" / inside).as_uri() if file else None
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
