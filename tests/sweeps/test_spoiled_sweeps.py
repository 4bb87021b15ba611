"""Sweeps that go wrong, as processes of their own: jobs that die, sweeps that are ended, and two at once."""

import contextlib
import csv
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import mlflow
import psutil
import pytest

from commands import Command

PATIENCE = 600  # seconds for what should take ten

# Training alone calls it: to build it, as the planning process does, is harmless.
SPOILER = """
import multiprocessing
import os
import signal
import time
from pathlib import Path

import keras

GATE = Path(__file__).parent / "gate"


class Spoiler(keras.callbacks.Callback):
    def __init__(self, what="none"):
        super().__init__()
        self.what = what
        if what == "early" and multiprocessing.current_process().name.startswith("job "):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_epoch_end(self, epoch, logs=None):
        if self.what == "raise":
            raise ValueError("spoiled by its user")
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "abort":
            os.abort()
        if self.what == "sleep":
            time.sleep(1000)
        if self.what == "hold" and epoch == 0 and not any(map(passed, range(allowed()))):
            GATE.with_name(f"held-{os.getpid()}").touch()
            while GATE.exists():
                time.sleep(0.05)


def allowed():
    return int(GATE.read_text()) if GATE.exists() else 0


def passed(number):
    try:
        GATE.with_name(f"passed-{number}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
"""


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here builds a net in this process."""


# The command, its processes and what it leaves in the store


@dataclass
class Started:
    """A command under way."""

    process: Command
    printed: Path
    complained: Path

    def family(self):
        """It and every process that it has started, directly or not."""
        launching = psutil.Process(self.process.pid)
        return [*launching.children(recursive=True), launching]

    def end(self):
        """Exit status, output and errors, when it is over."""
        status = self.process.wait(PATIENCE)
        return SimpleNamespace(status=status, output=self.printed.read_text(), errors=self.complained.read_text())


@dataclass
class Place:
    """A store, an experiments home and a user's folder, and the commands that are started there."""

    folder: Path
    digits: Path
    started: list[Started] = field(default_factory=list)

    def __post_init__(self):
        for name in ("here", "store", "options/callbacks"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "spoiler.py").write_text(SPOILER)
        option = "# Spoils the training.\nspoiler:\n  _target_: spoiler.Spoiler\n  what: none\n"
        (self.folder / "options/callbacks/spoiler.yaml").write_text(option)
        self.gate = self.folder / "gate"
        self.store = self.folder / "store/mlflow.db"
        self.jobs_folder = self.folder / "home/mlruns/jobs"

    @property
    def client(self):
        return mlflow.MlflowClient(f"sqlite:///{self.store}")

    def words(self, *words):
        data = ["data=npz", f"data.path={self.digits}", "data.limit=64"]
        small = ["model.filters=[4,4]", "model.dense_units=[8]", "epochs=2", "threads=1", "tracking.model=false"]
        return ["--config-dir", str(self.folder / "options"), *data, *small, "callbacks=spoiler", *words]

    def start(self, *words, **env):
        """Starts `experiments train` in a process group of its own."""
        own = {
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.store}",
            "EXPERIMENTS_HOME": str(self.folder / "home"),
            "EXPERIMENTS_ALLOW_TARGETS": "spoiler",
            "PYTHONPATH": str(self.folder),
        }
        number = len(self.started)
        printed, complained = self.folder / f"printed-{number}", self.folder / f"complained-{number}"
        here, env = self.folder / "here", os.environ | own | env
        process = Command("train", *words, stdout=printed, stderr=complained, env=env, cwd=here)
        self.started.append(Started(process, printed, complained))
        return self.started[-1]

    def train(self, *words, **env):
        """What a single run has come to."""
        return self.start(*self.words(*words), **env).end()

    def start_sweep(self, *words, **env):
        return self.start("-m", *self.words(*words), **env)

    def sweep(self, *words, **env):
        """What a sweep has come to."""
        return self.start_sweep(*words, **env).end()

    def command(self, *words):
        """What a sweep calls itself."""
        return shlex.join(["experiments", "train", "-m", *self.words(*words)])

    def runs(self):
        """Every run in the store, in the order of their starts."""
        client = self.client
        ids = [experiment.experiment_id for experiment in client.search_experiments()]
        return client.search_runs(ids, order_by=["attributes.start_time ASC"])

    def parent_and_children(self):
        runs = self.runs()
        (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        return parent, [run for run in runs if run is not parent]

    def artifacts(self, run):
        return {file.path for file in self.client.list_artifacts(run.info.run_id)}

    def artifact(self, run, name):
        return Path(run.info.artifact_uri.removeprefix("file://"), name).read_text()

    def leftovers(self):
        """Files that await their run, of the home's folder of jobs."""
        return sorted(file.name for file in self.jobs_folder.iterdir())

    def wait_for_held(self, held, finished):
        """Waits until so many jobs hold at the gate, and so many others are recorded as finished."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if len(list(self.folder.glob("held-*"))) == held:
                children = [run for run in self.runs() if "job" in run.data.tags]
                if sum(run.info.status == "FINISHED" for run in children) == finished:
                    return
            assert self.started[-1].process.poll() is None, self.started[-1].end()
            time.sleep(0.1)
        raise AssertionError(self.started[-1].printed.read_text())

    def open_gate(self):
        """Lets everything that holds go on, and forgets who did."""
        for file in [*self.folder.glob("held-*"), *self.folder.glob("passed-*"), self.gate]:
            file.unlink(missing_ok=True)

    def close(self):
        for started in self.started:
            started.process.kill_group()


@contextlib.contextmanager
def opened_place(folder, digits, new_store):
    place = Place(folder, digits)
    if new_store:
        shutil.copy(new_store, place.store)
    try:
        yield place
    finally:
        place.close()


@pytest.fixture
def place(tmp_path, digits, new_store):
    with opened_place(tmp_path, digits, new_store) as found:
        yield found


def survivors(processes):
    """Those that are not gone in time; one that nobody has fetched the exit status of is gone."""
    deadline = time.monotonic() + PATIENCE
    while living := [process for process in processes if lives(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return living


def lives(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def check_children(parent, children, numbers):
    """They belong to one sweep, whatever has become of them."""
    assert Counter(run.data.tags["job"] for run in children) == Counter(map(str, numbers))
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.data.tags["sweep"] for run in children} == {parent.data.tags["sweep.name"]}
    assert {run.info.experiment_id for run in children} == {parent.info.experiment_id}
    assert parent.info.experiment_id != "0"


def statuses(runs):
    return Counter(run.info.status for run in runs)


def why(run):
    return run.info.status, run.data.tags.get("reason"), run.data.tags.get("failure")


def started_jobs(output):
    return sorted(int(number) for number in re.findall(r"^\[(\d+)\] .*: started$", output, re.MULTILINE))


# Jobs that die

SPOILED = ["raise", "kill", "abort", "none", "fine"]
WHY = {
    "raise": ("FAILED", "error", "ValueError: spoiled by its user"),
    "kill": ("KILLED", "signal", "SIGKILL"),
    "abort": ("KILLED", "signal", "SIGABRT"),
    "none": ("FINISHED", None, None),
    "fine": ("FINISHED", None, None),
}


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory, digits, new_store):
    """A sweep of which three of five jobs die, each in a way of its own."""
    words = [f"callbacks.spoiler.what={','.join(SPOILED)}", "hydra.launcher.n_jobs=2"]
    with opened_place(tmp_path_factory.mktemp("spoiled"), digits, new_store) as place:
        done = place.sweep(*words)
        parent, children = place.parent_and_children()
        runs = {run.data.params["callbacks.spoiler.what"]: run for run in children}
        yield SimpleNamespace(
            place=place, done=done, parent=parent, children=children, runs=runs, command=place.command(*words)
        )


@pytest.mark.slow
def test_every_job_that_dies_says_why_and_the_others_finish(spoiled):
    assert {what: why(run) for what, run in spoiled.runs.items()} == WHY
    check_children(spoiled.parent, spoiled.children, range(5))
    assert [spoiled.runs[what].data.tags["job"] for what in SPOILED] == list("01234")
    assert not spoiled.place.client.search_runs(["0"])


@pytest.mark.slow
def test_every_job_has_its_log_and_the_raising_one_its_traceback(spoiled):
    artifacts = {what: spoiled.place.artifacts(run) for what, run in spoiled.runs.items()}
    assert all({"job.log", "config.yaml", "environment.txt"} <= found for found in artifacts.values())
    assert {what for what, found in artifacts.items() if "traceback.txt" in found} == {"raise"}
    text = spoiled.place.artifact(spoiled.runs["raise"], "traceback.txt")
    assert text.startswith("Traceback (most recent call last):\n")
    line = SPOILER.splitlines().index('            raise ValueError("spoiled by its user")') + 1
    assert f'File "{spoiled.place.folder}/spoiler.py", line {line}, in on_epoch_end' in text
    assert text.endswith("\nValueError: spoiled by its user\n")
    log = spoiled.place.artifact(spoiled.runs["raise"], "job.log")
    assert log.splitlines()[-1].endswith(" ERROR FAILED: ValueError: spoiled by its user")
    for run in spoiled.runs.values():
        assert f" INFO {run.info.run_name} ({run.info.run_id})\n" in spoiled.place.artifact(run, "job.log")


@pytest.mark.slow
def test_the_output_names_every_job_that_died(spoiled):
    done = spoiled.done
    assert (done.status, done.errors) == (1, "")
    lines = done.output.splitlines()
    assert lines[0] == "5 jobs: 0 finished, 5 to run"
    assert started_jobs(done.output) == list(range(5))
    end = lines[lines.index("[0] callbacks.spoiler.what=raise: failed: ValueError: spoiled by its user") :]
    assert end[:5] == [
        "[0] callbacks.spoiler.what=raise: failed: ValueError: spoiled by its user",
        "[1] callbacks.spoiler.what=kill: killed: SIGKILL",
        "[2] callbacks.spoiler.what=abort: killed: SIGABRT",
        "5 jobs: 2 finished, 1 failed, 2 killed",
        f"Best run: {spoiled.parent.data.tags['best_run_id']}",
    ]
    assert end[-1] == f"Run what is missing with: {spoiled.command}"
    assert "Traceback" not in done.output
    for number, what in enumerate(SPOILED):
        status, _, failure = WHY[what]
        value = "" if failure else r", val_accuracy \d\.\d{4}"
        told = f"{status.lower()}{f': {failure}' if failure else ''}"
        assert re.search(rf"^\[{number}\] callbacks.spoiler.what={what}: {told}{value}, \d+\.\d s$", done.output, re.M)


@pytest.mark.slow
def test_the_parent_of_spoiled_jobs_has_the_list_and_the_table(spoiled):
    parent, runs = spoiled.parent, spoiled.runs
    assert parent.info.status == "FAILED"
    assert {"jobs.json", "leaderboard.csv", "leaderboard.md"} <= spoiled.place.artifacts(parent)
    jobs = json.loads(spoiled.place.artifact(parent, "jobs.json"))
    assert [job["job"] for job in jobs] == list(range(5))
    assert [job["run_id"] for job in jobs] == [runs[what].info.run_id for what in SPOILED]
    assert [job["fingerprint"] for job in jobs] == [runs[what].data.tags["fingerprint"] for what in SPOILED]
    assert [job["overrides"][-1] for job in jobs] == [f"callbacks.spoiler.what={what}" for what in SPOILED]
    rows = list(csv.DictReader(spoiled.place.artifact(parent, "leaderboard.csv").splitlines()))
    assert {row["run_ids"] for row in rows} == {runs["none"].info.run_id, runs["fine"].info.run_id}
    assert parent.data.tags["best_run_id"] == rows[0]["run_ids"]
    assert rows[0]["run_ids"] in spoiled.place.artifact(parent, "leaderboard.md")


@pytest.mark.slow
def test_a_job_that_takes_too_long_is_killed(place):
    done = place.sweep("callbacks.spoiler.what=sleep", "hydra.launcher.timeout_minutes=0.2")
    assert (done.status, done.errors) == (1, "")
    parent, (job,) = place.parent_and_children()
    assert (parent.info.status, why(job)) == ("FAILED", ("KILLED", "timeout", "took longer than 0.2 minutes"))
    assert {"job.log", "config.yaml"} <= place.artifacts(job)
    lines = done.output.splitlines()
    assert "[0] conv2: killed: took longer than 0.2 minutes" in lines
    assert "1 job: 1 killed" in lines


@pytest.mark.slow
def test_stop_on_error_leaves_the_rest_for_another_call(place):
    words = ["callbacks.spoiler.what=early,none,fine", "epochs=1", "hydra.launcher.n_jobs=1"]
    done = place.sweep(*words, "hydra.launcher.on_error=stop")
    assert (done.status, done.errors) == (1, "")
    assert started_jobs(done.output) == [0]
    lines = done.output.splitlines()
    assert "[0] callbacks.spoiler.what=early: killed: SIGKILL" in lines
    assert "3 jobs: 1 killed, 2 not started" in lines
    parent, (first,) = place.parent_and_children()
    assert parent.info.status == "FAILED"
    # It has died before its own process could open its run.
    assert why(first) == ("KILLED", "signal", "SIGKILL")
    assert {"job.log", "config.yaml"} <= place.artifacts(first)
    check_children(parent, [first], [0])

    done = place.sweep(*words, "hydra.launcher.on_error=continue")
    assert (done.status, done.errors) == (1, "")
    assert done.output.splitlines()[0] == "3 jobs: 0 finished, 3 to run"
    assert "3 jobs: 2 finished, 1 killed" in done.output.splitlines()
    parent, children = place.parent_and_children()
    check_children(parent, children, [0, 0, 1, 2])
    assert statuses(children) == {"KILLED": 2, "FINISHED": 2}
    assert parent.info.status == "FAILED"


@pytest.mark.slow
def test_a_diverged_job_is_a_result(place):
    words = ["epochs=1", "optimizer=sgd", "optimizer.learning_rate=1e38,0.01", "hydra.launcher.n_jobs=2"]
    done = place.sweep(*words)
    assert (done.status, done.errors) == (0, "")
    assert "2 jobs: 1 finished, 1 diverged" in done.output.splitlines()
    parent, children = place.parent_and_children()
    assert parent.info.status == "FINISHED"
    check_children(parent, children, [0, 1])
    diverged, finished = sorted(children, key=lambda run: run.data.tags["job"])
    assert (diverged.info.status, diverged.data.tags["diverged"]) == ("FAILED", "true")
    assert diverged.data.tags["failure"].startswith("the loss is not finite (NaN or infinity) after epoch 1")
    assert f"[0] optimizer.learning_rate=1e+38: diverged: {diverged.data.tags['failure']}" in done.output.splitlines()
    assert finished.info.status == "FINISHED"
    assert parent.data.tags["best_run_id"] == finished.info.run_id

    again = place.sweep(*words)
    assert (again.status, again.errors) == (0, "")
    assert again.output.splitlines()[0] == "2 jobs: 1 finished, 1 diverged, 0 to run"
    assert started_jobs(again.output) == []
    assert "2 jobs: 1 finished, 1 diverged" in again.output.splitlines()
    assert len(place.runs()) == 3

    forced = place.sweep(*words, "force=true")
    assert (forced.status, forced.errors) == (0, "")
    assert forced.output.splitlines()[0] == "2 jobs: 0 finished, 2 to run"
    assert started_jobs(forced.output) == [0, 1]
    parent, children = place.parent_and_children()
    check_children(parent, children, [0, 0, 1, 1])
    for older in (diverged, finished):
        job = older.data.tags["job"]
        (newer,) = [run for run in children if run.data.tags["job"] == job and run.info.run_id != older.info.run_id]
        assert newer.info.status == older.info.status
        assert place.client.get_run(older.info.run_id).data.tags["superseded"] == newer.info.run_id
        assert "superseded" not in newer.data.tags


# Sweeps that are ended


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_where_it_was(place):
    words = ["callbacks.spoiler.what=hold", "seed=range(4)", "hydra.launcher.n_jobs=2"]
    place.gate.write_text("1")
    sweep = place.start_sweep(*words)
    place.wait_for_held(held=2, finished=1)
    family = sweep.family()
    os.killpg(sweep.process.pid, signal.SIGKILL)
    assert sweep.end().status == -signal.SIGKILL
    assert survivors(family) == []
    parent, before = place.parent_and_children()
    assert statuses([parent, *before]) == {"FINISHED": 1, "RUNNING": 3}
    finished = {run.info.run_id for run in before if run.info.status == "FINISHED"}
    interrupted = [run for run in before if run.info.status == "RUNNING"]

    place.open_gate()
    done = place.sweep(*words)
    assert (done.status, done.errors) == (0, "")
    assert done.output.splitlines()[0] == "4 jobs: 1 finished, 3 to run"
    there = {int(run.data.tags["job"]) for run in before if run.info.run_id in finished}
    assert started_jobs(done.output) == sorted(set(range(4)) - there)
    assert "4 jobs: 4 finished" in done.output.splitlines()
    parent, children = place.parent_and_children()
    assert parent.info.status == "FINISHED"
    assert not {"reason", "failure"} & set(parent.data.tags)
    assert statuses(children) == {"FINISHED": 4, "KILLED": 2}
    results = {run.data.tags["fingerprint"]: run for run in children if run.info.status == "FINISHED"}
    assert len(results) == 4
    assert finished <= {run.info.run_id for run in results.values()}
    check_children(parent, results.values(), range(4))
    for run in map(place.client.get_run, [run.info.run_id for run in interrupted]):
        assert why(run) == ("KILLED", "stale", "its process had died")
        assert run.data.tags["superseded"] == results[run.data.tags["fingerprint"]].info.run_id
        assert "job.log" in place.artifacts(run)
    assert len(json.loads(place.artifact(parent, "jobs.json"))) == 4
    assert place.leftovers() == []

    known = {run.info.run_id for run in place.runs()}
    last = place.sweep(*words)
    assert (last.status, last.errors) == (0, "")
    assert last.output.splitlines()[0] == "4 jobs: 4 finished, 0 to run"
    assert started_jobs(last.output) == []
    assert {run.info.run_id for run in place.runs()} == known
    assert statuses(place.runs()) == {"FINISHED": 5, "KILLED": 2}
    assert place.leftovers() == []


@pytest.mark.slow
def test_no_process_outlives_a_launching_process_that_was_killed(place):
    place.gate.write_text("0")
    sweep = place.start_sweep("callbacks.spoiler.what=hold", "seed=1,2,3", "hydra.launcher.n_jobs=2")
    place.wait_for_held(held=2, finished=0)
    family = sweep.family()
    sweep.process.kill()
    assert sweep.end().status == -signal.SIGKILL
    assert survivors(family) == []
    parent, children = place.parent_and_children()
    assert parent.info.status == "RUNNING"  # nobody is left to close it
    assert [why(run) for run in children] == [("KILLED", "signal", "SIGTERM")] * 2
    # Only its own lock is left, for the next start.
    (lock,) = place.jobs_folder.glob("*.lock")
    assert json.loads(lock.read_text())["pid"] == sweep.process.pid


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "whole_group", "status", "said"),
    [
        pytest.param(signal.SIGINT, False, 130, "experiments: interrupted\n", id="SIGINT"),
        pytest.param(signal.SIGINT, True, 130, "experiments: interrupted\n", id="Ctrl-C"),
        pytest.param(signal.SIGTERM, False, 143, "", id="SIGTERM"),
    ],
)
def test_a_sweep_that_is_stopped_closes_its_runs_and_goes_on_later(place, number, whole_group, status, said):
    words = ["callbacks.spoiler.what=hold", "seed=range(4)", "hydra.launcher.n_jobs=2"]
    place.gate.write_text("1")
    sweep = place.start_sweep(*words)
    place.wait_for_held(held=2, finished=1)
    family = sweep.family()
    (os.killpg if whole_group else os.kill)(sweep.process.pid, number)
    done = sweep.end()
    assert survivors(family) == []
    assert (done.status, done.errors) == (status, said)
    reason = "interrupted" if number == signal.SIGINT else "signal"
    parent, children = place.parent_and_children()
    assert why(parent) == ("KILLED", reason, number.name)
    killed = [run for run in children if run.info.status == "KILLED"]
    (finished,) = [run for run in children if run.info.status == "FINISHED"]
    assert [why(run) for run in killed] == [("KILLED", reason, number.name)] * 2
    assert len(children) == 3
    lines = done.output.splitlines()
    assert "4 jobs: 1 finished, 2 killed, 1 not started" in lines
    for run in killed:
        assert f"[{run.data.tags['job']}] seed={run.data.params['seed']}: killed: {number.name}" in lines
    assert re.search(r"^ +1 +\S+ +1 ", done.output, re.MULTILINE)
    assert f"Best run: {finished.info.run_id}" in lines
    assert parent.data.tags["best_run_id"] == finished.info.run_id
    assert {"jobs.json", "leaderboard.csv", "leaderboard.md"} <= place.artifacts(parent)
    assert lines[-1] == f"Resume with: {place.command(*words)}"
    assert "Traceback" not in done.output
    assert not [name for name in place.leftovers() if name.endswith(".lock")]

    place.open_gate()
    rest = place.sweep(*words)
    assert (rest.status, rest.errors) == (0, "")
    assert rest.output.splitlines()[0] == "4 jobs: 1 finished, 3 to run"
    parent, children = place.parent_and_children()
    assert parent.info.status == "FINISHED"
    assert not {"reason", "failure"} & set(parent.data.tags)
    assert statuses(children) == {"FINISHED": 4, "KILLED": 2}
    check_children(parent, [run for run in children if run.info.status == "FINISHED"], range(4))
    assert all("superseded" in run.data.tags for run in children if run.info.status == "KILLED")
    assert place.leftovers() == []


# Several at once

POLLING = """
import contextlib, os, sys, time
import mlflow

file, stop = sys.argv[1:]
print("ready", flush=True)
while not os.path.exists(file):
    time.sleep(0.001)
parent = os.getppid()
while not os.path.exists(stop) and os.getppid() == parent:
    with contextlib.suppress(Exception):
        mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    time.sleep(0.02)
"""


@pytest.mark.slow
def test_eight_jobs_at_once_on_a_new_store_that_another_program_asks(tmp_path, digits):
    stop = tmp_path / "stop"
    with opened_place(tmp_path, digits, None) as place:
        words = [sys.executable, "-c", POLLING, str(place.store), str(stop)]
        with subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        ) as polling:
            try:
                assert polling.stdout
                assert polling.stdout.readline() == "ready\n"
                done = place.sweep("seed=range(8)", "epochs=1", "hydra.launcher.n_jobs=8")
                assert polling.poll() is None
            finally:
                stop.touch()
        assert "Traceback" not in done.output + done.errors
        assert (done.status, done.errors) == (0, "")
        assert "8 jobs: 8 finished" in done.output.splitlines()
        parent, children = place.parent_and_children()
        assert statuses([parent, *children]) == {"FINISHED": 9}
        check_children(parent, children, range(8))
        assert not place.client.search_runs(["0"])
        assert place.leftovers() == []


@pytest.mark.slow
def test_a_single_run_of_what_a_sweep_trains_is_refused(place):
    words = ["callbacks.spoiler.what=hold", "hydra.launcher.n_jobs=1"]
    place.gate.write_text("0")
    sweep = place.start_sweep(*words, "seed=1,2")
    place.wait_for_held(held=1, finished=0)
    _, (training,) = place.parent_and_children()
    (lock,) = place.jobs_folder.glob(f"*-{training.data.tags['fingerprint']}.lock")
    single = place.train(words[0], f"seed={training.data.params['seed']}")
    holder = f"process {training.data.tags['pid']} on {socket.gethostname()}"
    advice = f"Wait until it has finished; if that process is gone, delete {lock}"
    said = f"experiments: This very run is being trained by {holder}. {advice}"
    assert (single.status, single.output, single.errors) == (2, "", f"{said}\n")
    assert len(place.runs()) == 2

    place.open_gate()
    done = sweep.end()
    assert (done.status, done.errors) == (0, "")
    parent, children = place.parent_and_children()
    assert statuses([parent, *children]) == {"FINISHED": 3}
    assert place.leftovers() == []


@pytest.mark.slow
def test_a_job_that_a_single_run_trains_is_running_elsewhere(place):
    words = ["callbacks.spoiler.what=hold", "hydra.launcher.n_jobs=2"]
    place.gate.write_text("0")
    single = place.start(*place.words(words[0], "seed=1"))
    place.wait_for_held(held=1, finished=0)
    place.gate.write_text("1")  # for the job that has another seed
    done = place.sweep(*words, "seed=1,2")
    assert (done.status, done.errors) == (1, "")
    holder = f"process {single.process.pid} on {socket.gethostname()}"
    told = f"[0] seed=1: running elsewhere: This very run is being trained by {holder}."
    assert [line for line in done.output.splitlines() if line.startswith(told)]
    assert "2 jobs: 1 finished, 1 running elsewhere" in done.output.splitlines()
    alone, parent, job = place.runs()
    assert (alone.info.status, parent.info.status, job.info.status) == ("RUNNING", "FAILED", "FINISHED")
    check_children(parent, [job], [1])
    assert "mlflow.parentRunId" not in alone.data.tags

    place.open_gate()
    ended = single.end()
    assert (ended.status, ended.errors) == (0, "")
    assert not list(place.jobs_folder.glob("*.lock"))
    again = place.sweep(*words, "seed=1,2")
    assert (again.status, again.errors) == (0, "")
    assert again.output.splitlines()[0] == "2 jobs: 2 finished, 0 to run"
    assert len(place.runs()) == 3
    assert place.leftovers() == []


@pytest.mark.slow
def test_what_another_process_has_finished_meanwhile_counts_at_the_end(place):
    words = ["callbacks.spoiler.what=hold", "hydra.launcher.n_jobs=1"]
    place.gate.write_text("0")
    single = place.start(*place.words(words[0], "seed=1"))
    place.wait_for_held(held=1, finished=0)
    sweep = place.start_sweep(*words, "seed=1,2,3")
    place.wait_for_held(held=2, finished=0)
    place.gate.write_text("1")
    assert place.train(words[0], "seed=3").status == 0
    holding = {int(file.name.removeprefix("held-")) for file in place.folder.glob("held-*")}
    (job,) = map(psutil.Process, holding - {single.process.pid})
    job.suspend()  # until the single run is over
    place.open_gate()
    assert single.end().status == 0
    job.resume()
    done = sweep.end()
    assert (done.status, done.errors) == (0, "")
    assert "[0] seed=1: running elsewhere: " in done.output
    assert "3 jobs: 3 finished" in done.output.splitlines()
    (parent,) = [run for run in place.runs() if "sweep.name" in run.data.tags]
    assert parent.info.status == "FINISHED"
    assert len(place.runs()) == 4
    seeds = {run.info.run_id: run.data.params.get("seed") for run in place.runs()}
    recorded = json.loads(place.artifact(parent, "jobs.json"))
    assert [seeds.get(job["run_id"]) for job in recorded] == ["1", "2", "3"]
    assert place.leftovers() == []


@pytest.mark.slow
def test_the_same_sweep_twice_at_once(place):
    words = ["callbacks.spoiler.what=hold", "seed=1,2", "hydra.launcher.n_jobs=1"]
    place.gate.write_text("0")
    first = place.start_sweep(*words)
    place.wait_for_held(held=1, finished=0)
    place.gate.write_text("1")  # for the job that the first has not started yet
    second = place.sweep(*words)
    assert second.status == 2
    launching = f"process {first.process.pid} on {socket.gethostname()}"
    assert second.errors.startswith(f"experiments: This sweep is being run by {launching}. Wait until it has finished")
    place.open_gate()
    done = first.end()
    assert (done.status, done.errors) == (0, "")
    assert "2 jobs: 2 finished" in done.output.splitlines()
    parent, children = place.parent_and_children()
    assert statuses([parent, *children]) == {"FINISHED": 3}
    check_children(parent, children, [0, 1])


@pytest.mark.slow
def test_a_run_that_the_environment_names_is_left_alone(place):
    other = place.client.create_run(place.client.create_experiment("other")).info
    words = ["seed=1,2", "epochs=1", "hydra.launcher.n_jobs=2", "tracking.model=true"]
    done = place.sweep(*words, MLFLOW_RUN_ID=other.run_id, MLFLOW_EXPERIMENT_ID=other.experiment_id)
    assert (done.status, done.errors) == (0, "")
    assert "2 jobs: 2 finished" in done.output.splitlines()
    named = place.client.get_run(other.run_id)
    assert named.info.status == "RUNNING"
    assert not named.data.metrics and not named.data.params
    assert set(named.data.tags) == {"mlflow.runName"}
    assert not place.client.search_runs(["0"])
    parent, *children = [run for run in place.runs() if run.info.run_id != other.run_id]
    assert statuses([parent, *children]) == {"FINISHED": 3}
    check_children(parent, children, [0, 1])
    assert parent.info.experiment_id != other.experiment_id
