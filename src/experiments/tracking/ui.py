"""The MLflow UI on the right store."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import webbrowser
from pathlib import Path
from time import sleep
from urllib.parse import urlparse

import psutil

from experiments.errors import ExperimentError
from experiments.tracking import runs, views
from experiments.tracking.store import check_store, home, shown_uri, sqlite_file, store_uri

DEFAULT_PORT = 5000


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
    file = sqlite_file(uri)
    if file and not file.exists():
        raise ExperimentError(f"Nothing is recorded in {uri} yet.", advice="Start with: experiments train")
    if urlparse(uri).scheme in ("http", "https"):
        url = page(_start_page())
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
    words = [sys.executable, "-m", "mlflow", "server", *listen]
    # As words they would show the password of a database to everyone on this machine.
    stores = {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_REGISTRY_STORE_URI": uri}
    # Its job runners serve features that nobody needs here, and would outlive it.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_LOGGING_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore"}
    # No shell reads the words.
    server = subprocess.Popen(words, env=os.environ | stores | quiet, start_new_session=True)  # noqa: S603
    url = f"http://{host}:{port}"
    running = json.dumps({"url": url, "pid": os.getpid(), "store": shown_uri()})
    try:
        start = _start_page()
        while server.poll() is None and not _answers(host, port):
            sleep(0.2)
        if server.poll() is not None:
            return 1
        with contextlib.suppress(OSError):
            _running_file().parent.mkdir(parents=True, exist_ok=True)
            _running_file().write_text(running, encoding="utf-8")
        print(f"\nThe runs: {url}/{start}\nStop with Ctrl-C.", flush=True)
        if sys.stdout.isatty():
            webbrowser.open(f"{url}/{start}")
        return server.wait()
    finally:
        with contextlib.suppress(OSError):
            if _running_file().read_text(encoding="utf-8") == running:  # and not that of another UI
                _running_file().unlink()
        # The whole group: the server has workers of its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def page(link: str) -> str:
    """Where a link into the UI opens: on the server that is the store, or where `experiments ui` runs or will run."""
    address = urlparse(store_uri())
    if address.scheme in ("http", "https"):
        return f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}/{link}"
    with contextlib.suppress(OSError, ValueError, KeyError):
        written = json.loads(_running_file().read_text(encoding="utf-8"))
        if written["store"] == shown_uri() and psutil.pid_exists(written["pid"]):
            return f"{written['url']}/{link}"
    return f"http://127.0.0.1:{DEFAULT_PORT}/{link}"


def _running_file() -> Path:
    """The file that says where the UI is running."""
    return home() / "mlruns" / "ui.json"


def ui_command() -> str:
    """The words that start the UI from here: in an environment that is not activated, with the command's place."""
    command = Path(sys.executable).parent / "experiments"
    if shutil.which("experiments") == str(command):
        return "experiments ui"
    here = Path.cwd()
    return shlex.join([str(command.relative_to(here) if command.is_relative_to(here) else command), "ui"])


def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def _start_page() -> str:
    """The view of the newest sweep, or else the experiment of the latest run; without host and port."""
    if newest := runs.sweeps(1):
        return views.link_to(newest[0])
    latest = runs.search_runs("", 1)
    return views.sorted_link(latest[0].experiment_id) if latest else ""
