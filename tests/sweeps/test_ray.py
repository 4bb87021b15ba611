"""A sweep on a Ray cluster of two nodes, both on this machine."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import monotonic, sleep

import psutil
import pytest

BIN = Path(sys.executable).parent
START_SECONDS = 90
SWEEP_SECONDS = 300

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    """The address of a Ray cluster of two nodes with one processor each."""
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # a Unix socket's path has at most 107 bytes
    nodes: list[subprocess.Popen[bytes]] = []
    with pytest.MonkeyPatch.context() as patch:
        # Ray listens on every interface. A token of its own also keeps out one in the user's home.
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        try:
            ports = ["--port=0", f"--ray-client-server-port={free_port()}"]
            start(nodes, folder, "head", "--head", *ports, f"--temp-dir={folder}", "--include-dashboard=false")
            address = (folder / "ray_current_cluster").read_text()
            start(nodes, folder, "second", f"--address={address}", "--include-log-monitor=false")
            yield address
        finally:
            for node in reversed(nodes):
                stop(node)
            shutil.rmtree(folder, ignore_errors=True)


def free_port():
    with socket.socket() as listening:
        listening.bind(("", 0))
        return listening.getsockname()[1]


def start(nodes, folder, name, *words):
    """Starts a Ray node and waits until it has joined the cluster."""
    ports = ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
    small = ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=100000000"]
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        node = subprocess.Popen(
            [BIN / "ray", "start", "--block", *small, *ports, *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    nodes.append(node)
    deadline = monotonic() + START_SECONDS
    while "Ray runtime started." not in log.read_text():
        assert node.poll() is None and monotonic() < deadline, f"The {name} node did not start:\n{log.read_text()}"
        sleep(0.1)


def stop(node):
    """Ends a node with everything that it started, and nothing else."""
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(node.pid).children(recursive=True)
    node.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        node.wait(20)
    node.kill()
    node.wait(20)
    left = psutil.wait_procs(family, 5)[1]
    for process in left:
        process.kill()
    assert not psutil.wait_procs(left, 10)[1]


BUILDER = """
import os
from pathlib import Path

import ray

from experiments.models import convnet


def build(input_shape, num_classes, **arguments):
    if "JOBS" in os.environ:  # only on the cluster: the check before the sweep builds this too
        context = ray.get_runtime_context()
        Path(os.environ["JOBS"], context.get_task_id()).write_text(context.get_node_id())
    return convnet(input_shape=input_shape, num_classes=num_classes, **arguments)
"""
MODEL = """
defaults: [conv2, _self_]
_target_: my_nets.build
"""


def test_jobs_run_on_both_nodes(cluster, store, digits, tmp_path):
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    (tmp_path / "my_nets.py").write_text(BUILDER)
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "own.yaml").write_text(MODEL)
    passed = {
        "EXPERIMENTS_ALLOW_TARGETS": "my_nets",
        "PYTHONPATH": str(tmp_path),
        "RAY_ADDRESS": cluster,
    }
    words = [
        "hydra/launcher=cluster",
        f"+hydra.launcher.ray.init.runtime_env.env_vars.JOBS={jobs}",
        f"+hydra.launcher.ray.init.runtime_env.env_vars.KERAS_HOME={os.environ['KERAS_HOME']}",
        "+hydra.launcher.ray.remote.scheduling_strategy=SPREAD",
        *["model=own", "data=npz", f"data.path={digits}", "data.limit=100", "tracking.model=false"],
        *["epochs=1", "seed=0,1,2,3"],
    ]
    here = tmp_path / "here"
    here.mkdir()
    command = [BIN / "experiments", "train", "-m", "--config-dir", tmp_path / "mine", *words]
    with subprocess.Popen(
        command,
        cwd=here,
        env=os.environ | passed,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as sweep:
        try:
            output = sweep.communicate(timeout=SWEEP_SECONDS)[0]
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in psutil.Process(sweep.pid).children(recursive=True):
                    process.kill()
            sweep.kill()
    assert sweep.returncode == 0, output
    assert "4 jobs: 4 finished" in output
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    runs = [run for run in store.search_runs(experiments) if "fingerprint" in run.data.tags]
    assert [run.info.status for run in runs] == ["FINISHED"] * 4, output
    assert {run.data.params["seed"] for run in runs} == {"0", "1", "2", "3"}
    assert len({run.data.tags["mlflow.parentRunId"] for run in runs}) == 1
    nodes = Counter(file.read_text() for file in jobs.iterdir())
    assert (len(nodes), nodes.total()) == (2, 4), nodes
