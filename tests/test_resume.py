"""A training that is killed and started again ends as if nothing had happened, in the same run."""

import functools
import json
import os
import random
import shutil
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import mlflow
import psutil
import pytest

from commands import Command, experiments, forked, killed_after, runs
from experiments import ExperimentError, train
from experiments.config.compose import compose
from experiments.config.targets import instantiate

pytestmark = pytest.mark.slow

EPOCHS = 10
FIXED = ["data.limit=600", f"epochs={EPOCHS}", "batch_size=16", "tracking.model=false"]
ONE_CYCLE = [
    *FIXED,
    "schedule=one_cycle",
    "augment=both",
    "callbacks=[early_stopping]",
    "metrics=[auc,balanced_accuracy,macro_f1,recall]",
    "class_weight=balanced",
    "callbacks.early_stopping.patience=9",
    "callbacks.early_stopping.min_delta=0.001",
    "model=conv2",
]
PLATEAU = [
    *FIXED,
    "model=conv3_batch_norm_dropout",
    "callbacks=[plateau,swap_ema_weights]",
    "objective.metric=val_loss",
    "objective.mode=min",
]
FROZEN = [
    *FIXED,
    "model=conv2_batch_norm",
    "model.filters=[8,8]",
    "schedule=cosine",
    "freeze=[block*]",
    "unfreeze_at_epoch=5",
    "head_learning_rate=0.003",
]
OPTIONS = {
    "augment/both.yaml": "defaults: [shift_rotate, mixup]",
    "callbacks/plateau.yaml": """
plateau: {_target_: keras.callbacks.ReduceLROnPlateau, monitor: loss, patience: 1, min_delta: 0.2, cooldown: 1}
""",
}
METRICS = ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")
OF_ONE_CYCLE = ("total_loss", "val_total_loss", "val_auc", "balanced_accuracy", "val_recall/3")


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A folder of the user's own options."""
    folder = tmp_path_factory.mktemp("conf")
    for name, text in OPTIONS.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
    return str(folder)


@pytest.fixture(scope="module")
def initial_weights(tmp_path_factory):
    """A model file to start from."""
    file = tmp_path_factory.mktemp("initial") / "first.keras"
    instantiate(compose(FROZEN).cfg, "model", input_shape=(28, 28, 1), num_classes=10).save(file)
    return file


@pytest.fixture
def start(tmp_path, store, options):
    """Starts a training in a process of its own."""
    begin = forked(tmp_path)
    return lambda *overrides, **env: begin(*overrides, config_dir=options, **env)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, new_store, options):
    """Overrides -> what a run ends with that is not interrupted; trained once for all tests."""

    @functools.cache
    def trained(*overrides):
        folder = tmp_path_factory.mktemp("whole")
        shutil.copy(new_store, folder / "mlflow.db")
        uri = f"sqlite:///{folder}/mlflow.db"
        env = {"MLFLOW_TRACKING_URI": uri, "EXPERIMENTS_HOME": str(folder)}
        finished(forked(folder)(*overrides, config_dir=options, **env))
        client = mlflow.MlflowClient(uri)
        (run,) = runs(client)
        return SimpleNamespace(history=history(client, run), tags=run.data.tags)

    return lambda overrides: trained(*overrides)


def finished(process):
    process.join(240)
    assert process.exitcode == 0, process.output.read_text()
    return process.output.read_text()


def history(store, run):
    return {
        name: [(point.step, point.value) for point in store.get_metric_history(run.info.run_id, name)]
        for name in (*METRICS, *(name for name in OF_ONE_CYCLE if name in run.data.metrics))
    }


@pytest.mark.parametrize("overrides", [ONE_CYCLE, PLATEAU, FROZEN], ids=["one_cycle", "plateau", "frozen"])
def test_a_killed_run_ends_with_the_bits_of_an_uninterrupted_one(
    overrides, start, store, whole, tmp_path, initial_weights
):
    is_frozen = overrides is FROZEN
    if is_frozen:
        overrides = [*overrides, f"init_from={initial_weights}"]
    expected, tags = whole(overrides).history, whole(overrides).tags
    assert [step for step, _ in expected["loss"]] == list(range(1, EPOCHS + 1))
    if overrides is PLATEAU:
        assert len({value for _, value in expected["learning_rate"]}) > 2
    home = tmp_path / "home"
    moments = random.Random(0)  # noqa: S311 - nothing secret
    for first, last in ((1, EPOCHS // 2), (EPOCHS // 2 + 1, EPOCHS - 1)):  # killed twice
        killed_after(start(*overrides), moments.randint(first, last), moments.uniform(0, 0.3), home)
    said = finished(start(*overrides))
    (run,) = runs(store)
    assert "Resuming after epoch" in said
    assert (f"Starting from {initial_weights}: 6 of 6 layers loaded" in said) == is_frozen
    assert run.info.status == "FINISHED"
    assert history(store, run) == expected
    assert run.data.tags["weights.sha256"] == tags["weights.sha256"]
    assert run.data.tags["predictions.sha256"] == tags["predictions.sha256"]
    assert {"reason", "failure", "superseded"} & set(run.data.tags) == set()
    assert list((home / "mlruns" / "jobs").iterdir()) == []


@pytest.mark.parametrize("damage", [lambda file: file.stat().st_size // 2, lambda file: 0], ids=["half", "empty"])
def test_a_damaged_checkpoint_is_set_aside(damage, start, store, whole, tmp_path):
    home = tmp_path / "home"
    killed_after(start(*ONE_CYCLE), 4, 0, home)
    (folder,) = home.glob("mlruns/jobs/*/")
    older, newer = sorted(folder.glob("checkpoint-*.npz"))
    with newer.open("r+b") as file:
        file.truncate(damage(newer))
    said = finished(start(*ONE_CYCLE))
    assert f"{newer} is corrupt and was renamed to {newer.stem}.corrupt" in said
    assert f"Resuming after epoch {int(older.stem[-6:])}" in said
    (run,) = runs(store)
    assert history(store, run) == whole(ONE_CYCLE).history
    assert run.data.tags["weights.sha256"] == whole(ONE_CYCLE).tags["weights.sha256"]


def test_what_a_killed_run_is_not_gone_on_with_for(start, store, tmp_path):
    home = tmp_path / "home"
    killed_after(start(*ONE_CYCLE), 2, 0, home)
    assert "Resuming" not in finished(start(*ONE_CYCLE, "epochs=2"))  # another schedule, so another run
    assert "Resuming" not in finished(start(*ONE_CYCLE, "resume=false"))
    new, shorter, old = runs(store)
    assert (new.info.status, shorter.info.status, old.info.status) == ("FINISHED", "FINISHED", "KILLED")
    assert old.data.tags["superseded"] == new.info.run_id
    assert old.data.tags["reason"] == "stale"
    assert list((home / "mlruns" / "jobs").iterdir()) == []  # nothing will ask for the old checkpoint


def test_a_run_that_had_trained_all_epochs_is_evaluated(start, store, tmp_path):
    home = tmp_path / "home"
    killed_after(start(*ONE_CYCLE), EPOCHS, 0, home)
    kept = sorted(file.name for file in home.glob("mlruns/jobs/*/checkpoint-*"))
    assert kept == [f"checkpoint-{epoch:06}.npz" for epoch in (EPOCHS - 1, EPOCHS)]
    said = finished(start(*ONE_CYCLE))
    assert f"Resuming after epoch {EPOCHS}" in said
    (run,) = runs(store)
    assert run.info.status == "FINISHED" and "weights.sha256" in run.data.tags
    assert [step for step, _ in history(store, run)["loss"]] == list(range(1, EPOCHS + 1))


def test_a_run_that_was_interrupted_or_has_failed_goes_on(store, capsys):
    """In one process: how a run ends does not matter, only that its checkpoint is here."""
    overrides = ["data.limit=100", "epochs=4", "tracking.model=false"]
    for epoch, error in ((2, KeyboardInterrupt), (3, RuntimeError)):
        with pytest.raises(error):
            train.run(compose(overrides), should_stop=raising(error, epoch))
    output = capsys.readouterr().out
    assert "Interrupted. Run the same command again to resume after epoch 2." in output and "SIGINT" not in output
    (run,) = runs(store)
    assert (run.info.status, run.data.tags["reason"]) == ("FAILED", "error")
    result = train.run(compose(overrides))
    assert "Resuming after epoch 3" in capsys.readouterr().out
    (run,) = runs(store)
    assert run.info.run_id == result.run_id and run.info.status == "FINISHED"
    assert {"reason", "failure"} & set(run.data.tags) == set()
    assert [step for step, _ in history(store, run)["loss"]] == [1, 2, 3, 4]
    assert {name: len(values) for name, values in result.history.items()} == dict.fromkeys(
        [*METRICS, "epoch_seconds"], 4
    )
    failure = Path(store.download_artifacts(run.info.run_id, "traceback.txt")).read_text()
    assert failure.startswith("The run was resumed after this error.\n\nTraceback")
    log = Path(store.download_artifacts(run.info.run_id, "job.log")).read_text()
    assert [line.split()[4] for line in log.splitlines() if " Epoch " in line and "DEBUG" not in line] == [
        "1/4", "2/4", "3/4", "4/4",
    ]  # fmt: skip


def test_a_verdict_on_an_earlier_epoch_ends_a_run_that_goes_on(store):
    """As of a pruner that knows more trials by now."""
    overrides = ["data.limit=100", "epochs=6", "tracking.model=false"]
    with pytest.raises(KeyboardInterrupt):
        train.run(compose(overrides), should_stop=raising(KeyboardInterrupt, 4))
    train.run(compose(overrides), should_stop=lambda epoch, _: epoch == 2)
    (run,) = runs(store)
    assert run.data.tags["pruned"] == "true"
    assert [step for step, _ in history(store, run)["loss"]] == [1, 2, 3, 4]


def test_a_run_that_has_no_memory_left_says_so(store):
    with pytest.raises(MemoryError):
        train.run(compose(["data.limit=50", "epochs=2", "tracking.model=false"]), should_stop=raising(MemoryError, 1))
    (run,) = runs(store)
    assert (run.info.status, run.data.tags["reason"]) == ("FAILED", "memory")
    assert run.data.tags["failure"] == "MemoryError: on purpose"


def raising(error, at):
    """Ends a training at an epoch's end."""

    def stop(epoch, _):
        if epoch == at:
            raise error("on purpose")
        return False

    return stop


def test_another_host_on_the_same_files_goes_on(start, store, options, tmp_path):
    home = tmp_path / "home"
    killed_after(start(*ONE_CYCLE), 2, 0, home)
    (run,) = runs(store)
    (lock,) = home.glob("mlruns/jobs/*.lock")
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 0}))
    store.set_tag(run.info.run_id, "host", "elsewhere")
    with pytest.raises(ExperimentError, match=r"^This very run is being trained by process 1 on elsewhere\."):
        train.run(compose(ONE_CYCLE, options))
    os.utime(lock, (0, 0))  # its process has not touched it for a long time
    assert "Resuming after epoch" in finished(start(*ONE_CYCLE))
    (run,) = runs(store)
    assert run.info.status == "FINISHED"
    assert run.data.tags["host"] == socket.gethostname()
    assert [step for step, _ in history(store, run)["loss"]] == list(range(1, EPOCHS + 1))


def test_without_determinism_it_goes_on_and_says_what_that_means(start, store, tmp_path):
    overrides = [*ONE_CYCLE, "deterministic=false"]
    killed_after(start(*overrides), 2, 0, tmp_path / "home")
    said = finished(start(*overrides))
    assert "With deterministic=false the result is not bit-identical to that of an uninterrupted run." in said
    (run,) = runs(store)
    assert [step for step, _ in history(store, run)["loss"]] == list(range(1, EPOCHS + 1))


def test_a_sweep_that_was_killed_goes_on_inside_its_jobs(store, tmp_path):
    words = ["-m", "seed=0,1", "data.limit=600", "epochs=10", "batch_size=16", "tracking.model=false"]
    command = [*words, "hydra.launcher.n_jobs=1"]
    kill_in_first_job(command, tmp_path)
    killed = {run.info.run_id for run in runs(store)}
    done = experiments(*command)
    assert done.returncode == 0, done.stdout
    jobs = {run.data.params["seed"]: run for run in runs(store) if "sweep" in run.data.tags}
    assert len(runs(store)) == 3
    assert jobs["0"].info.run_id in killed
    log = Path(store.download_artifacts(jobs["0"].info.run_id, "job.log")).read_text()
    assert "Resuming after epoch" in log and " Epoch 1/10 " in log
    for run in jobs.values():
        assert run.info.status == "FINISHED"
        assert [step for step, _ in history(store, run)["loss"]] == list(range(1, 11))
    again = experiments(*words[2:], "seed=0", EXPERIMENTS_HOME=str(tmp_path / "other"))
    assert again.returncode == 0, again.stdout
    alone = next(run for run in runs(store) if "sweep" not in run.data.tags and run.data.params.get("seed") == "0")
    assert alone.data.tags["weights.sha256"] == jobs["0"].data.tags["weights.sha256"]


def kill_in_first_job(words, folder):
    """Kills a sweep with all its processes after the fourth epoch of a job."""
    home = folder / "home"
    sweep = Command("train", *words, stdout=folder / "killed.txt")
    deadline = time.monotonic() + 240
    while not list(home.glob("mlruns/jobs/*/checkpoint-000004.npz")):
        assert sweep.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    sweep.kill_group()
    # A process that lives would hold its lock.
    pids = {json.loads(file.read_text())["pid"] for file in home.glob("mlruns/jobs/*/run.json")}
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=120)
    assert alive == []


def test_a_search_that_was_killed_goes_on_inside_its_trial(store, tmp_path):
    command = [
        "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.sampler.seed=1",
        "optimizer.learning_rate=tag(log,interval(0.0001,0.01))", "data.limit=600", "epochs=10", "batch_size=16",
        "tracking.model=false", "hydra.launcher.n_jobs=1",
    ]  # fmt: skip
    kill_in_first_job(command, tmp_path)
    done = experiments(*command)
    assert done.returncode == 0, done.stdout
    trials = [run for run in runs(store) if "sweep" in run.data.tags]
    assert [run.info.status for run in trials] == ["FINISHED", "FINISHED"]
    for run in trials:
        assert [step for step, _ in history(store, run)["loss"]] == list(range(1, 11))
