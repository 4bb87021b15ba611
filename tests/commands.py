"""What tests of whole commands share."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXPERIMENTS = str(Path(sys.executable).parent / "experiments")


def experiments(*words, **env):
    """Runs `experiments train` to its end; standard output and errors in one text."""
    return subprocess.run(
        [EXPERIMENTS, "train", *words],
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def runs(store):
    """Every run of a store, in whichever experiment."""
    found = [experiment.experiment_id for experiment in store.search_experiments()]
    return store.search_runs(found) if found else []


def free_port():
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A real MLflow server on a store in `folder`."""

    def __init__(self, folder):
        self.folder = folder
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
        stores = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        artifacts = ["--artifacts-destination", str(self.folder / "artifacts"), "--serve-artifacts"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *stores, *artifacts, *words],
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 90
        while answering and not self.answers():
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)

    def answers(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self):
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def forked(folder):
    """A context that starts processes from a server which has imported all that a run needs: 3 s a run, not 10.

    What they print goes to files in `folder`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.sweeps.preload"])

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
    deadline = time.monotonic() + 120
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
