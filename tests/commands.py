"""What tests of whole commands share."""

import contextlib
import gc
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import requests

#: The console script.
EXPERIMENTS = str(Path(sys.executable).parent / "experiments")


def script(*words, **env):
    """Runs the console script `experiments` to its end; standard output and errors in one text."""
    return subprocess.run(
        [EXPERIMENTS, *words],
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def experiments(*words, **env):
    """Runs `experiments train` to its end; standard output and errors in one text."""
    return finished("train", *words, **env)


def finished(*words, **env):
    """As `script`, but forked: half the time."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "output")
        status = Command(*words, stdout=output, env=os.environ | env).wait()
        return SimpleNamespace(returncode=status, stdout=output.read_text())


class Command:
    """`experiments WORDS` in a process group of its own, forked from a process that has imported TensorFlow.

    It runs what the console script runs, with its arguments, environment and folder; only the imports, some 10 s for a
    sweep, are there already.

    Args:
        words: after `experiments`.
        stdout: file for standard output.
        stderr: file for errors, by default the same one.
        env: the whole environment, by default that of this process.
        cwd: the folder it works in.
    """

    def __init__(self, *words, stdout, stderr=None, env=None, cwd="."):
        files = [stdout, stderr or stdout]
        for file in files:
            Path(file).write_text("")
        arguments = (list(map(str, words)), list(map(str, files)), dict(env or os.environ), str(cwd))
        self.process = _context().Process(target=_command, args=arguments)
        self.process.start()
        self.pid = self.process.pid

    def poll(self):
        """Its exit status; None while it runs."""
        return self.process.exitcode

    def wait(self, seconds=None):
        """Its exit status, once it is over."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("experiments", seconds)
        return self.process.exitcode

    def kill(self):
        """Ends it, and nothing that it has started."""
        self.process.kill()

    def kill_group(self):
        """Ends it with all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.join()


def _command(words, files, env, cwd):
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for descriptor, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), descriptor)
    sys.path[:0] = [folder for folder in env.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.argv = [EXPERIMENTS, *words]
    start_program = multiprocessing.util.spawnv_passfds
    multiprocessing.util.spawnv_passfds = lambda path, words, kept: (
        _fork_server(words[-1], kept) if "forkserver" in words[-1] else start_program(path, words, kept)
    )
    from experiments.cli import main

    main()


def _fork_server(program, kept):
    """The server that a sweep forks its jobs from, forked instead of started, with all imports done."""
    if pid := os.fork():
        return pid
    gc.freeze()  # nothing that the sweep has open is closed here a second time
    tracker = multiprocessing.resource_tracker._resource_tracker._fd
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor not in {*kept, tracker}:
            with contextlib.suppress(OSError):
                os.close(descriptor)
    server = multiprocessing.forkserver._forkserver
    server.__init__()
    exec(program)  # noqa: S102 - what a new interpreter would be given
    os._exit(0)


@contextlib.contextmanager
def model_server(uri):
    """Serves a model by MLflow's own command; gives a function that sends images to it and returns its answer."""
    port = free_port()
    words = ["models", "serve", "-m", uri, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words],
        env=os.environ | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def answers():
        try:
            return requests.get(f"http://127.0.0.1:{port}/ping", timeout=5).ok
        except requests.ConnectionError:
            return False

    def answer(images):
        return requests.post(
            f"http://127.0.0.1:{port}/invocations", json={"inputs": images.tolist()}, timeout=60
        ).json()

    try:
        deadline = time.monotonic() + 240
        while not answers():
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        yield answer
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def runs(store):
    """Every run of a store, in whichever experiment."""
    found = [experiment.experiment_id for experiment in store.search_experiments()]
    return store.search_runs(found) if found else []


def free_port():
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port):
    """Whether somebody listens on a port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Server:
    """A real MLflow server.

    Args:
        folder: of its SQLite file and of its artifacts, where they are not elsewhere.
        database: the URI of its database, if it is another one.
        artifacts: the URI of the place for its artifacts, if it is another one.
        env: for it, beside the environment of this process.
    """

    def __init__(self, folder, *, database=None, artifacts=None, **env):
        self.folder = folder
        self.database = database or f"sqlite:///{folder}/mlflow.db"
        self.artifacts = artifacts or str(folder / "artifacts")
        self.env = env
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self, *, answering=True):
        words = [
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--workers",
            "1",
            "--uvicorn-opts",
            "--log-level error",
        ]
        stores = ["--backend-store-uri", self.database, "--artifacts-destination", self.artifacts]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *stores, *words],
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"} | self.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 240
        while answering and not self.answers():
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)

    def answers(self):
        return answers(self.port)

    def kill(self):
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.sweeps.preload"])
    return context


def forked(folder):
    """A context that starts processes from a server which has imported all that a run needs: 3 s a run, not 10.

    What they print goes to files in `folder`.
    """
    context = _context()

    def start(*overrides, config_dir=None, **env):
        output = Path(tempfile.mkstemp(dir=folder, suffix=".txt")[1])
        env = {name: value for name, value in os.environ.items() if name.startswith(("MLFLOW", "EXP", "KERAS"))} | env
        process = context.Process(target=_train, args=(overrides, config_dir, env, output))
        process.start()
        process.output = output
        return process

    return start


def _train(overrides, config_dir, env, output):
    os.environ.update(env)
    file = os.open(output, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    from experiments import run

    run(overrides, config_dir=config_dir)


def written(home):
    """How many epochs the runs of a home that are not over have written down."""
    return sum(file.read_text().count('"kind": "metrics"') for file in home.glob("mlruns/jobs/*/history.jsonl"))


def wait_for(epochs, process, home):
    """Waits until a training has written down so many epochs."""
    deadline = time.monotonic() + 240
    while written(home) < epochs:
        assert process.is_alive() and time.monotonic() < deadline, process.output.read_text()
        time.sleep(0.01)


def killed_after(process, epochs, seconds, home):
    """Kills a training at a moment after it has written down some epochs."""
    wait_for(epochs, process, home)
    time.sleep(seconds)
    process.kill()
    process.join()
    assert process.exitcode == -9
