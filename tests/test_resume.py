"""A training that is killed and started again ends as if nothing had happened, in the same run."""

import random
import shutil
import time

import pytest

from commands import forked, runs
from experiments import tracking

pytestmark = pytest.mark.slow

EPOCHS = 10
FIXED = ["data.limit=600", f"epochs={EPOCHS}", "batch_size=16", "tracking.model=false"]
ONE_CYCLE = [
    *FIXED,
    "schedule=one_cycle",
    "augment=both",
    "callbacks=[early_stopping]",
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
OPTIONS = {
    "augment/both.yaml": "defaults: [shift_rotate, mixup]",
    "callbacks/plateau.yaml": """
plateau: {_target_: keras.callbacks.ReduceLROnPlateau, monitor: loss, patience: 1, min_delta: 0.2, cooldown: 1}
""",
}
METRICS = ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")


@pytest.fixture
def start(tmp_path, store):
    """Starts a training in a process of its own."""
    for name, text in OPTIONS.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True)
        (tmp_path / "conf" / name).write_text(text)
    begin = forked(tmp_path)
    return lambda *overrides, **env: begin(*overrides, config_dir=str(tmp_path / "conf"), **env)


def finished(process):
    process.join(240)
    assert process.exitcode == 0, process.output.read_text()
    return process.output.read_text()


def journals(folder):
    """How many epochs each run has written down."""
    files = folder.glob("mlruns/jobs/*/history.jsonl")
    return {file: file.read_text().count('"kind": "metrics"') for file in files}


def killed_after(process, epochs, seconds, folder):
    """Kills a training at a moment after it has written down some epochs."""
    deadline = time.monotonic() + 120
    while not any(count >= epochs for count in journals(folder).values()) if epochs else False:
        assert process.is_alive() and time.monotonic() < deadline, process.output.read_text()
        time.sleep(0.01)
    time.sleep(seconds)
    process.kill()
    process.join()
    assert process.exitcode == -9


def history(store, run):
    return {
        name: [(point.step, point.value) for point in store.get_metric_history(run.info.run_id, name)]
        for name in METRICS
    }


@pytest.mark.parametrize("overrides", [ONE_CYCLE, PLATEAU], ids=["one_cycle", "plateau"])
def test_a_killed_run_ends_with_the_bits_of_an_uninterrupted_one(overrides, start, store, tmp_path):
    finished(start(*overrides, EXPERIMENTS_HOME=str(tmp_path / "whole")))
    (whole,) = runs(store)
    expected = history(store, whole)
    assert [step for step, _ in expected["loss"]] == list(range(1, EPOCHS + 1))
    if overrides is PLATEAU:
        assert len({value for _, value in expected["learning_rate"]}) > 2
    store.delete_run(whole.info.run_id)  # an equal run would be mentioned only, but let there be one at a time
    for seed in range(5):
        moments = random.Random(seed)  # noqa: S311 - nothing secret
        home = tmp_path / f"killed{seed}"
        process = start(*overrides, EXPERIMENTS_HOME=str(home))
        killed_after(process, moments.randrange(1, EPOCHS), moments.uniform(0, 0.3), home)
        said = finished(start(*overrides, EXPERIMENTS_HOME=str(home)))
        (run,) = runs(store)
        assert "Going on after epoch" in said
        assert run.info.status == "FINISHED"
        assert history(store, run) == expected
        assert run.data.tags["weights.sha256"] == whole.data.tags["weights.sha256"]
        assert run.data.tags["predictions.sha256"] == whole.data.tags["predictions.sha256"]
        assert {"reason", "failure", "superseded"} & set(run.data.tags) == set()
        assert list((home / "mlruns" / "jobs").iterdir()) == []
        store.delete_run(run.info.run_id)


@pytest.mark.parametrize("damage", [lambda file: file.stat().st_size // 2, lambda file: 0], ids=["half", "empty"])
def test_a_damaged_checkpoint_is_set_aside(damage, start, store, tmp_path):
    home = tmp_path / "home"
    finished(start(*ONE_CYCLE, EXPERIMENTS_HOME=str(tmp_path / "whole")))
    (whole,) = runs(store)
    store.delete_run(whole.info.run_id)
    killed_after(start(*ONE_CYCLE), 4, 0, home)
    (folder,) = home.glob("mlruns/jobs/*/")
    older, newer = sorted(folder.glob("checkpoint-*.npz"))
    with newer.open("r+b") as file:
        file.truncate(damage(newer))
    said = finished(start(*ONE_CYCLE))
    assert f"{newer} is damaged and now called {newer.stem}.damaged" in said
    assert f"Going on after epoch {int(older.stem[-6:])}" in said
    (run,) = runs(store)
    assert history(store, run) == history(store, whole)
    assert run.data.tags["weights.sha256"] == whole.data.tags["weights.sha256"]


def test_what_a_killed_run_is_not_gone_on_with_for(start, store, tmp_path):
    home = tmp_path / "home"
    killed_after(start(*ONE_CYCLE), 2, 0, home)
    assert "Going on" not in finished(start(*ONE_CYCLE, "epochs=2"))  # another schedule, so another run
    assert "Going on" not in finished(start(*ONE_CYCLE, "resume=false"))
    new, shorter, old = runs(store)
    assert (new.info.status, shorter.info.status, old.info.status) == ("FINISHED", "FINISHED", "KILLED")
    assert old.data.tags["superseded"] == new.info.run_id
    assert old.data.tags["reason"] == "stale"
    assert list((home / "mlruns" / "jobs").iterdir()) == []  # nothing will ask for the old checkpoint


def test_a_run_that_had_trained_all_epochs_is_evaluated(start, store, tmp_path, monkeypatch):
    home = tmp_path / "home"
    killed_after(start(*ONE_CYCLE), EPOCHS, 0, home)
    (folder,) = home.glob("mlruns/jobs/*/")
    kept = shutil.copytree(folder, tmp_path / "kept")
    said = finished(start(*ONE_CYCLE))
    assert f"Going on after epoch {EPOCHS}" in said
    (run,) = runs(store)
    assert [step for step, _ in history(store, run)["loss"]] == list(range(1, EPOCHS + 1))
    assert tracking.jobs_folder().is_dir() and len(list(kept.glob("checkpoint-*.npz"))) == 2
