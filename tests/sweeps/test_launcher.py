"""The launcher `process` under Hydra apps that know nothing of this package, with real processes."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from experiments.config.compose import CONF_DIR

EXPERIMENTS = str(Path(sys.executable).parent / "experiments")
PROCESS = ["-m", "hydra/launcher=process", "hydra/sweeper=basic"]
CONFIG = "x: 0\ndo: report\nseconds: 0.0\n"

# The whole of a user's script. What its jobs do is in the configuration; what they have seen goes to $SEEN.
APP = """
import json, logging, os, sys, time
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig

log = logging.getLogger(__name__)
seen = Path(os.environ["SEEN"])


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg):
    number = HydraConfig.get().job.num
    log.info("x is %s", cfg.x)
    Path("here.txt").write_text(str(cfg.x))
    facts = {"number": number, "pid": os.getpid(), "x": cfg.x, "keras": os.environ.get("KERAS_BACKEND")}
    facts |= {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "start": time.monotonic()}
    try:
        (seen / f"{number}.json").write_text(json.dumps(facts))
        if cfg.do == "fail" and cfg.x == 2:
            raise ValueError("two is too many")
        if cfg.do == "exit" and cfg.x == 2:
            sys.exit(3)
        time.sleep(cfg.seconds)
    finally:
        (seen / f"{number}.closed").write_text(str(time.monotonic()))


if __name__ == "__main__":
    main()
    print("TensorFlow" if "tensorflow" in sys.modules else "light", os.environ.get("KERAS_BACKEND"))
"""

# Another one: the task is a closure that has no name in any module.
CLOSURE_APP = """
import hydra
from pathlib import Path


def tens(offset):
    def task(cfg):
        print("sum", offset + cfg.x, flush=True)

    return task


if __name__ == "__main__":
    hydra.main(version_base="1.3", config_path=".", config_name="config")(tens(10))()
"""

# Calls the launcher as a sweeper does, several times, and tells what it returned.
DRIVER = """
import json, os, signal, sys, tempfile, threading, time
from dataclasses import dataclass
from pathlib import Path

import hydra, psutil
from hydra import version
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf

HERE = str(Path(__file__).parent)
version.setbase("1.3")


@dataclass
class Answer:
    x: int
    number: int
    pid: int
    begun: float
    ended: float


class Picky(Exception):
    def __init__(self, x, y):
        super().__init__(f"{x} and {y}")


class Unspeakable:
    def __init__(self):
        self.lock = threading.Lock()

    def __repr__(self):
        raise ValueError("cannot be said")


def task(cfg):
    begun = time.monotonic()
    time.sleep(cfg.seconds)
    pid = os.getpid()
    match cfg.do:
        case "lock":
            return threading.Lock()
        case "train":
            import keras
            import numpy as np

            keras.utils.set_random_seed(int(cfg.x))
            net = keras.Sequential([keras.layers.Conv2D(4, 3), keras.layers.Flatten(), keras.layers.Dense(10)])
            net.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
            net.fit(np.random.random((64, 28, 28, 1)), np.arange(64) % 10, verbose=0)
        case "thread":
            threading.Thread(target=time.sleep, args=(3600,)).start()
        case "scratch":
            return tempfile.mkdtemp()
        case "generator":
            return (x for x in range(3))
        case "unspeakable":
            return Unspeakable()
        case "raise":
            raise ValueError(f"x is {cfg.x}")
        case "raise_lock":
            raise ValueError(threading.Lock())
        case "picky":
            raise Picky(1, 2)
        case "exit":
            sys.exit(cfg.x)
        case "kill":
            os.kill(pid, signal.SIGKILL)
        case "abort":
            os.abort()
        case "real_time_signal":
            os.kill(pid, signal.SIGRTMIN + 6)
        case "orphan":  # a process of the job's own outlives it
            if os.fork() == 0:
                time.sleep(3600)
                os._exit(0)
            os.kill(pid, signal.SIGKILL)
    return Answer(int(cfg.x), HydraConfig.get().job.num, pid, begun, time.monotonic())


def nested(offset):
    def inner(cfg):
        return cfg.x + offset

    return inner


TASKS = {
    "task": task,
    "nested": nested(10),
    "lambda": lambda cfg, by=3: cfg.x * by,
    "decorated": hydra.main(version_base="1.3", config_path=".", config_name="config")(task),
}


def launcher(task_function, overrides):
    GlobalHydra.instance().clear()
    main = Hydra.create_main_hydra2("driver", create_config_search_path(HERE))
    overrides = ["hydra/launcher=process", "hydra.mode=MULTIRUN", *overrides]
    cfg = main.compose_config("config", overrides, RunMode.MULTIRUN, with_log_configuration=False)
    context = HydraContext(config_loader=main.config_loader, callbacks=Callbacks(cfg))
    return Plugins.instance().instantiate_launcher(config=cfg, hydra_context=context, task_function=task_function)


def told(result):
    value = result._return_value
    answer = isinstance(value, Answer)
    ending = getattr(value, "ending", None)
    return {
        "status": result.status.name,
        "type": type(value).__name__,
        "value": vars(value) if answer else str(value),
        "reason": getattr(ending, "reason", None),
        "failure": getattr(ending, "failure", None),
        "overrides": None if result.overrides is None else list(result.overrides),
        "number": result.hydra_cfg and result.hydra_cfg.hydra.job.num,
        "id": result.hydra_cfg and result.hydra_cfg.hydra.job.id,
        "folder": result.hydra_cfg and result.hydra_cfg.hydra.runtime.output_dir,
        "name": result.task_name,
    }


def launched(what):
    launch = launcher(TASKS[what.get("task", "task")], what.get("overrides", []))
    try:
        return [told(result) for result in launch.launch(what["jobs"], what.get("first", 0))]
    except Exception as error:
        return repr(error)


def endurance(jobs):
    from experiments.sweeps.launcher import Ended

    this, seen = psutil.Process(), []
    with launcher(TASKS["task"], ["hydra.launcher.n_jobs=2"]).pool() as pool:
        for event in pool.events((number, [f"x={number}", "do=train"]) for number in range(jobs)):
            if isinstance(event, Ended):
                assert event.result.return_value.x == event.number
                seen.append((this.memory_info().rss / 2**20, this.num_fds() - 3 * len(pool.running)))
    return seen


if __name__ == "__main__":
    orders = json.loads(Path(HERE, "orders.json").read_text())
    results = {name: endurance(what) if name == "endurance" else launched(what) for name, what in orders.items()}
    results["this"] = {"pid": os.getpid(), "TensorFlow": "tensorflow" in sys.modules}
    Path(HERE, "results.json").write_text(json.dumps(results))
"""


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here builds a net in this process."""


def written(folder, **scripts):
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG)
    option = Path("hydra", "launcher", "process.yaml")
    (folder / option).parent.mkdir(parents=True, exist_ok=True)
    (folder / option).write_text((CONF_DIR / option).read_text())
    for name, script in scripts.items():
        (folder / f"{name}.py").write_text(script)
    return folder


def drive(folder, orders):
    """What the launcher returned for each order; ends what does not end by itself."""
    written(folder, driver=DRIVER)
    (folder / "orders.json").write_text(json.dumps(orders))
    output = folder / "output"  # no pipe, or this would wait for all that hold its end
    with (
        output.open("w") as file,
        subprocess.Popen([sys.executable, "driver.py"], cwd=folder, stdout=file, stderr=file) as process,
    ):
        try:
            process.wait(timeout=600)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail(f"the launching process hangs: {output.read_text()}")
    assert process.returncode == 0, output.read_text()
    return json.loads((folder / "results.json").read_text())


def environment(folder, **more):
    seen = folder / "seen"
    seen.mkdir(exist_ok=True)
    return os.environ | {"SEEN": str(seen)} | more


def app(folder, *words, **more):
    return subprocess.run(
        [sys.executable, "app.py", *words],
        cwd=folder,
        env=environment(folder, **more),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def facts(folder):
    return [json.loads(file.read_text()) for file in sorted((folder / "seen").glob("*.json"))]


# What a launcher returns


GOOD, BAD = ["x=1"], ["do=raise", "x=7"]
ORDERS = {
    "order": {
        "overrides": ["hydra.launcher.n_jobs=3"],
        "jobs": [[f"x={x}", f"seconds={seconds}"] for x, seconds in enumerate((5, 3, 0.6, 0.2, 0.2, 0.2))],
        "first": 5,
    },
    "one_at_a_time": {
        "overrides": ["hydra.launcher.n_jobs=1"],
        "jobs": [["x=0", "seconds=0.6"], ["x=1", "seconds=0.6"], ["x=2"]],
    },
    "as_many_as_fit": {"jobs": [["x=4"], ["x=5"]]},
    "nothing": {"jobs": []},
    "nested": {"task": "nested", "jobs": [["x=1"], ["x=2"]]},
    "lambda": {"task": "lambda", "jobs": [["x=1"], ["x=2"]]},
    "decorated": {"task": "decorated", "jobs": [["x=1"], ["x=2"]]},
    "unsendable": {
        "overrides": ["hydra.launcher.n_jobs=2"],
        "jobs": [GOOD, ["do=lock"], ["do=generator"], ["do=raise_lock"], GOOD],
    },
    "unspeakable": {"overrides": ["hydra.launcher.n_jobs=2"], "jobs": [["do=unspeakable"], GOOD]},
    "picky": {"overrides": ["hydra.launcher.n_jobs=2"], "jobs": [["do=picky"], GOOD]},
    "real_time_signal": {"overrides": ["hydra.launcher.n_jobs=2"], "jobs": [["do=real_time_signal"], GOOD]},
    "deaths": {
        "overrides": ["hydra.launcher.n_jobs=2", "hydra.launcher.timeout_minutes=0.2"],
        "jobs": [
            ["seconds=60"],
            BAD,
            ["do=exit", "x=3"],
            ["do=exit", "x=0"],
            ["do=kill"],
            ["do=abort"],
            GOOD,
        ],
    },
    "stop": {"overrides": ["hydra.launcher.n_jobs=1", "hydra.launcher.on_error=stop"], "jobs": [GOOD, BAD, GOOD, GOOD]},
    "stop_beside": {
        "overrides": ["hydra.launcher.n_jobs=2", "hydra.launcher.on_error=stop"],
        "jobs": [["do=kill"], ["x=1", "seconds=4"], GOOD],
    },
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return drive(tmp_path_factory.mktemp("driver"), ORDERS)


def most_at_once(answers):
    return max(sum(a["begun"] <= b["begun"] < a["ended"] for a in answers) for b in answers)


@pytest.mark.slow
def test_results_come_in_the_order_of_the_jobs(results):
    order = results["order"]
    answers = [job["value"] for job in order]
    assert [job["status"] for job in order] == ["COMPLETED"] * 6
    assert [answer["x"] for answer in answers] == [0, 1, 2, 3, 4, 5]
    assert [answer["number"] for answer in answers] == [5, 6, 7, 8, 9, 10]
    assert [job["number"] for job in order] == [5, 6, 7, 8, 9, 10]
    assert [job["id"] for job in order] == [f"driver_{number}" for number in range(5, 11)]
    assert [job["name"] for job in order] == ["driver"] * 6
    assert [job["overrides"] for job in order] == ORDERS["order"]["jobs"]
    assert len({answer["pid"] for answer in answers} | {results["this"]["pid"]}) == 7
    # The third was done before the first.
    assert answers[2]["ended"] < answers[0]["ended"]


@pytest.mark.slow
def test_as_many_at_once_as_n_jobs_says(results):
    assert most_at_once([job["value"] for job in results["order"]]) == 3
    assert most_at_once([job["value"] for job in results["one_at_a_time"]]) == 1
    assert [job["value"]["x"] for job in results["one_at_a_time"]] == [0, 1, 2]
    assert [job["value"]["x"] for job in results["as_many_as_fit"]] == [4, 5]
    assert results["nothing"] == []


@pytest.mark.slow
def test_the_launching_process_stays_light(results):
    assert results["this"]["TensorFlow"] is False


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "values"), [("nested", ["11", "12"]), ("lambda", ["3", "6"])])
def test_any_callable_is_sent(results, kind, values):
    assert [(job["status"], job["value"]) for job in results[kind]] == [("COMPLETED", value) for value in values]


@pytest.mark.slow
def test_a_function_that_hydra_main_has_wrapped_is_sent(results):
    assert [(job["status"], job["value"]["x"]) for job in results["decorated"]] == [("COMPLETED", 1), ("COMPLETED", 2)]


@pytest.mark.slow
def test_jobs_of_one_launch_share_the_sweep_folder(results):
    """However late they start."""
    folders = {Path(job["folder"]).parent for job in results["one_at_a_time"]}
    assert len(folders) == 1
    assert [Path(job["folder"]).name for job in results["one_at_a_time"]] == ["0", "1", "2"]


@pytest.mark.slow
def test_what_cannot_be_sent_back_is_a_failed_job(results):
    first, lock, generator, error, last = results["unsendable"]
    assert (first["status"], last["status"]) == ("COMPLETED", "COMPLETED")
    assert [job["status"] for job in (lock, generator, error)] == ["FAILED"] * 3
    assert [job["type"] for job in (lock, generator, error)] == ["RuntimeError"] * 3
    tail = r" cannot be sent between processes: cannot pickle '{}' object"
    assert re.fullmatch(r"<unlocked _thread.lock object at \w+>" + tail.format("_thread.lock"), lock["value"])
    assert re.fullmatch(r"<generator object \S+ at \w+>" + tail.format("generator"), generator["value"])
    assert re.fullmatch(r"ValueError\(<.*>\)" + tail.format("_thread.lock"), error["value"])
    assert [job["overrides"] for job in (lock, generator)] == [["do=lock"], ["do=generator"]]


@pytest.mark.slow
def test_what_can_neither_be_sent_nor_shown_is_a_failed_job(results):
    unspeakable, good = results["unspeakable"]
    assert (unspeakable["status"], good["status"]) == ("FAILED", "COMPLETED")


@pytest.mark.slow
def test_an_exception_that_cannot_be_read_back_is_a_failed_job(results):
    """One whose arguments are not those of its __init__: pickle writes it and cannot read it."""
    assert isinstance(results["picky"], list), results["picky"]
    picky, good = results["picky"]
    assert (picky["status"], good["status"]) == ("FAILED", "COMPLETED")
    assert "1 and 2" in picky["value"]


@pytest.mark.slow
def test_death_by_a_signal_without_a_name(results):
    assert isinstance(results["real_time_signal"], list), results["real_time_signal"]
    died, good = results["real_time_signal"]
    assert (died["status"], died["reason"], good["status"]) == ("FAILED", "signal", "COMPLETED")
    assert str(signal.SIGRTMIN + 6) in died["failure"]


@pytest.mark.slow
def test_each_death_is_told_and_costs_the_others_nothing(results):
    deaths = results["deaths"]
    assert [(job["status"], job["type"], job["reason"], job["failure"]) for job in deaths[:-1]] == [
        ("FAILED", "JobDied", "timeout", "took longer than 0.2 minutes"),
        ("FAILED", "ValueError", None, None),
        ("FAILED", "JobDied", "exit", "exit status 3"),
        ("FAILED", "JobDied", "exit", "exit status 0"),
        ("FAILED", "JobDied", "signal", "SIGKILL"),
        ("FAILED", "JobDied", "signal", "SIGABRT"),
    ]
    assert deaths[1]["value"] == "x is 7"
    assert [job["value"] for job in deaths[2:6]] == ["exit status 3", "exit status 0", "SIGKILL", "SIGABRT"]
    assert (deaths[-1]["status"], deaths[-1]["value"]["x"]) == ("COMPLETED", 1)


@pytest.mark.slow
def test_a_job_that_died_says_which_it_was(results):
    """Hydra shows these overrides with the error."""
    assert [job["overrides"] for job in results["deaths"]] == ORDERS["deaths"]["jobs"]


@pytest.mark.slow
def test_stop_starts_nothing_after_a_failure(results):
    def short(jobs):
        return [(job["status"], job["type"], job["failure"]) for job in jobs]

    good = ("COMPLETED", "Answer", None)
    not_started = ("FAILED", "JobDied", "not started")
    assert short(results["stop"]) == [good, ("FAILED", "ValueError", None), not_started, not_started]
    # What runs already runs to its end.
    assert short(results["stop_beside"]) == [("FAILED", "JobDied", "SIGKILL"), good, not_started]


@pytest.mark.slow
def test_a_process_that_outlives_its_job_holds_up_nothing(tmp_path):
    orders = {"orphan": {"overrides": ["hydra.launcher.n_jobs=1"], "jobs": [["do=orphan"], GOOD]}}
    try:
        died, good = drive(tmp_path, orders)["orphan"]
    finally:
        for process in psutil.process_iter(["cwd"]):
            if process.info["cwd"] == str(tmp_path):
                process.kill()
    assert (died["reason"], died["failure"], good["status"]) == ("signal", "SIGKILL", "COMPLETED")


@pytest.mark.slow
def test_a_thread_that_a_job_leaves_behind_holds_up_nothing(tmp_path):
    orders = {"thread": {"overrides": ["hydra.launcher.n_jobs=1"], "jobs": [["do=thread"], GOOD]}}
    results = drive(tmp_path, orders)["thread"]  # which ends in time, or the test fails
    assert [result["status"] for result in results] == ["COMPLETED"] * 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="jobs are forked from a server on Linux only")
def test_waiting_for_a_killed_job_to_be_reaped_takes_no_time_of_the_processor(tmp_path):
    written(tmp_path, app=APP)
    words = [*PROCESS, "seconds=100", "hydra.launcher.n_jobs=1", "hydra.launcher.timeout_minutes=0.05"]
    command = [sys.executable, "app.py", *words]
    with (
        (tmp_path / "output").open("w") as output,
        subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path), stdout=output, stderr=output) as launching,
    ):
        this = psutil.Process(launching.pid)
        try:
            job = wait_for(lambda: [seen["pid"] for seen in facts(tmp_path)], launching)[0]
            server = psutil.Process(job).parent()
            server.suspend()  # it reaps the jobs
            wait_for(lambda: psutil.Process(job).status() == psutil.STATUS_ZOMBIE, launching)
            before = sum(this.cpu_times()[:2])
            time.sleep(1)
            spent = sum(this.cpu_times()[:2]) - before
            server.resume()
            launching.wait(timeout=60)
        finally:
            launching.kill()
    assert spent < 0.2
    assert "took longer than 0.05 minutes" in (tmp_path / "output").read_text()


def wait_for(condition, process):
    """What `condition` returns once that is true; `process` must not have ended before."""
    deadline = time.monotonic() + 120
    while not (found := condition()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return found


@pytest.mark.slow
def test_temporary_files_of_a_job_go_with_the_launch(tmp_path):
    (result,) = drive(tmp_path, {"scratch": {"jobs": [["do=scratch"]]}})["scratch"]
    assert result["status"] == "COMPLETED"
    assert not Path(result["value"]).exists()
    assert Path(result["value"]).parent.name.startswith("experiments-")


@pytest.mark.slow
def test_many_jobs_leave_nothing_in_the_launching_process(tmp_path):
    results = drive(tmp_path, {"endurance": 30})
    seen = results["endurance"]
    assert len(seen) == 30
    (early_memory, early_files), (late_memory, late_files) = seen[9], seen[-1]
    assert late_memory - early_memory < 10, seen
    assert late_files <= early_files + 5, seen  # one a job would be 20
    assert not results["this"]["TensorFlow"]


# As the launcher of a script


def tree(folder):
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def only_folder(folder):
    (day,) = folder.iterdir()
    (moment,) = day.iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d", str(moment.relative_to(folder)))
    return moment


@pytest.mark.slow
def test_each_job_sees_one_gpu(tmp_path):
    here = written(tmp_path / "here", app=APP)
    program = here / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    program.chmod(0o755)
    path = f"{here}{os.pathsep}{os.environ['PATH']}"
    done = app(here, *PROCESS, "x=1,2,3,4", "seconds=2", PATH=path)
    assert done.returncode == 0, done.stderr
    jobs = facts(here)
    assert sorted(job["gpu"] for job in jobs) == ["0", "0", "1", "1"]
    spans = [(job["start"], float((here / "seen" / f"{job['number']}.closed").read_text())) for job in jobs]
    assert max(sum(start <= moment < end for start, end in spans) for moment, _ in spans) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ["0", "1", "2"]),
        (
            ["hydra.job.chdir=true", "hydra.sweep.subdir='run_${hydra.job.num}'", "hydra.sweeper.max_batch_size=2"],
            ["run_0", "run_1", "run_2"],
        ),
    ],
    ids=["default", "own"],
)
def test_files_are_those_of_the_basic_launcher(tmp_path, words, names):
    folders = {}
    for kind in ("process", "basic"):
        here = written(tmp_path / kind, app=APP)
        done = app(here, "-m", f"hydra/launcher={kind}", "hydra/sweeper=basic", "x=1,2,3", "do=nothing", *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[-1].split()[0] == "light"
        assert re.findall(r"\t#(\d) : (.*)", done.stdout) == [(str(i), f"x={i + 1} do=nothing") for i in range(3)]
        assert sorted(re.findall(r"\[__main__\]\[INFO\] - (x is \d)", done.stdout)) == ["x is 1", "x is 2", "x is 3"]
        assert [(job["number"], job["x"]) for job in facts(here)] == [(0, 1), (1, 2), (2, 3)]
        assert len({job["pid"] for job in facts(here)}) == (3 if kind == "process" else 1)
        folders[kind] = only_folder(here / "multirun")
    expected = {"multirun.yaml"}
    for name in names:
        of_job = [f".hydra/{part}.yaml" for part in ("config", "hydra", "overrides")]
        expected |= {f"{name}/{file}" for file in [*of_job, "app.log", *(["here.txt"] if words else [])]}
    assert tree(folders["process"]) == tree(folders["basic"]) == expected
    for x, name in enumerate(names, 1):
        ours, theirs = (folders[kind] / name for kind in ("process", "basic"))
        for file in (".hydra/config.yaml", ".hydra/overrides.yaml", *(["here.txt"] if words else [])):
            assert (ours / file).read_text() == (theirs / file).read_text(), file
        assert (ours / ".hydra" / "overrides.yaml").read_text() == f"- x={x}\n- do=nothing\n"
        for folder in (ours, theirs):
            log = (folder / "app.log").read_text()
            assert re.fullmatch(rf"\[[\d\-]+ [\d:,]+\]\[__main__\]\[INFO\] - x is {x}\n", log)


@pytest.mark.slow
def test_a_closure_without_a_name_is_a_task(tmp_path):
    done = app(written(tmp_path, app=CLOSURE_APP), *PROCESS, "x=1,2")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(re.findall(r"^sum (\d+)$", done.stdout, re.MULTILINE)) == ["11", "12"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("do", "error"),
    [("fail", "ValueError: two is too many"), ("exit", "experiments.tracking.endings.JobDied: exit status 3")],
)
def test_a_failed_job_fails_the_script_after_the_others_ran(tmp_path, do, error):
    done = app(written(tmp_path, app=APP), *PROCESS, "hydra.launcher.n_jobs=1", "x=1,2,3", f"do={do}")
    assert done.returncode == 1
    assert [job["x"] for job in facts(tmp_path)] == [1, 2, 3]
    assert "Error executing job with overrides: ['x=2', 'do=" in done.stderr
    assert error in done.stderr.splitlines()


def test_the_plugin_changes_nothing_of_an_app_that_does_not_use_it(tmp_path):
    written(tmp_path, app=APP)
    done = app(tmp_path, "-m", "x=1", KERAS_BACKEND="jax")
    assert (done.returncode, done.stderr) == (0, "")
    assert [job["keras"] for job in facts(tmp_path)] == ["jax"]
    assert done.stdout.splitlines()[-1] == "light jax"


# What is refused


@pytest.mark.parametrize("sweeper", ["basic", "grid"])
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("n_jobs=0", "n_jobs=0 is refused: it must be a whole number of at least 1 or null."),
        ("timeout_minutes=0", "timeout_minutes=0 is refused: it must be a number above 0 or null."),
        ("on_error=maybe", "on_error=maybe is refused. Allowed: continue, stop."),
    ],
)
def test_refused_settings(tmp_path, sweeper, word, message):
    here, store = tmp_path / "here", tmp_path / "store" / "mlflow.db"
    here.mkdir()
    words = ["hydra/launcher=process", f"hydra/sweeper={sweeper}", f"hydra.launcher.{word}", "seed=1,2"]
    done = subprocess.run(
        [EXPERIMENTS, "train", "-m", *words],
        cwd=here,
        env=os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{store}", "EXPERIMENTS_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"experiments: hydra.launcher.{message}\n")
    assert list(tmp_path.iterdir()) == [here]
    assert not list(here.iterdir())


# The end of the launching process


def until(condition):
    """Waits for what normally takes a few seconds."""
    deadline = time.monotonic() + 120
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return value


def family(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def gone(processes):
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "group", "when"),
    [
        pytest.param(signal.SIGKILL, False, "running", id="SIGKILL"),
        pytest.param(signal.SIGTERM, False, "running", id="SIGTERM"),
        pytest.param(signal.SIGINT, False, "running", id="SIGINT"),
        pytest.param(signal.SIGINT, True, "running", id="Ctrl-C"),
        pytest.param(signal.SIGKILL, False, "importing", id="SIGKILL-early"),
        pytest.param(signal.SIGINT, True, "importing", id="Ctrl-C-early"),
    ],
)
def test_nothing_outlives_the_launching_process(tmp_path, number, group, when):
    written(tmp_path, app=APP)
    words = [sys.executable, "app.py", *PROCESS, "hydra.launcher.n_jobs=2", "seconds=600", "x=1,2,3"]
    output = (tmp_path / "output").open("w")
    # A session of its own, so that a signal to all of it is like Ctrl-C in a terminal.
    with (
        output,
        subprocess.Popen(
            words, cwd=tmp_path, env=environment(tmp_path), stdout=output, stderr=output, start_new_session=True
        ) as process,
    ):
        others = []
        try:
            if when == "running":
                assert until(lambda: len(facts_pids(tmp_path)) == 2)
            else:
                assert until(lambda: forkserver_of(process))
                time.sleep(1)  # its imports take longer
                assert not facts_pids(tmp_path)
            others = family(process)
            jobs = facts_pids(tmp_path)
            assert jobs <= {other.pid for other in others}
            assert any("forkserver" in " ".join(other.cmdline()) for other in others)
            os.killpg(process.pid, number) if group else process.send_signal(number)
            # A server that is importing ends after its imports.
            assert until(lambda: process.poll() is not None and gone(others)), [*others, process.poll()]
        finally:
            for other in [*others, *family(process), process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    other.kill()
    assert process.returncode == -number
    assert len(list((tmp_path / "seen").glob("*.closed"))) == len(jobs)  # each came to the end of its `finally`
    assert len(facts_pids(tmp_path)) == len(jobs)  # and none began later
    text = (tmp_path / "output").read_text()
    assert text.count("KeyboardInterrupt\n") == (number == signal.SIGINT), text  # of the script itself, not of others
    assert not [other for other in psutil.process_iter(["cwd"]) if other.info["cwd"] == str(tmp_path)]


def facts_pids(folder):
    found = set()
    for file in (folder / "seen").glob("*.json"):
        with contextlib.suppress(ValueError):  # half-written
            found.add(json.loads(file.read_text())["pid"])
    return found


def forkserver_of(process):
    return [other for other in family(process) if "forkserver" in " ".join(other.cmdline())]
