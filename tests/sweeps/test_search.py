"""Searches with Optuna: their space, what counts as a trial, what a second call does, and that they find something."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

import commands
from commands import Command, runs
from experiments.errors import ExperimentError
from experiments.sweeps import space, study

TINY = ["data.limit=40", "tracking.model=false", "model.filters=[4,4]", "model.dense_units=[8]"]
OPTUNA = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.sampler.seed=3"]

# Training alone calls it.
SPOILER = """
import json
import os
import signal

import keras


class Spoiler(keras.callbacks.Callback):
    def __init__(self, what, level):
        super().__init__()
        self.what = what
        if level == 2:
            os.abort()

    def on_epoch_end(self, epoch, logs=None):
        if self.what == "raise":
            raise ValueError("spoiled by its user")
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "abort":
            os.abort()
"""


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here builds a net in this process."""


def tiny(words):
    flags = words.index("-m") + 1  # the parser of Hydra wants no flag between overrides
    return [*words[:flags], *TINY, *words[flags:]]


def experiments(*words, **env):
    return commands.experiments(*tiny(words), **env)


def parent_and_children(store):
    """The only parent, and its children in the order of their trials."""
    found = runs(store)
    (parent,) = [run for run in found if "sweep.name" in run.data.tags]
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return parent, sorted(children, key=lambda run: (int(run.data.tags["job"]), run.info.start_time))


def study_of(parent):
    return study.load_study(study.journal(parent.info.run_id))


# The space


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("model.dropout=interval(0,0.5)", FloatDistribution(0.0, 0.5)),
        ("optimizer.learning_rate=tag(log,interval(1e-4,0.1))", FloatDistribution(1e-4, 0.1, log=True)),
        ("batch_size=tag(int,interval(8,64))", IntDistribution(8, 64)),
        ("batch_size=tag(log,int,interval(8,64))", IntDistribution(8, 64, log=True)),
        ("epochs=range(1,10,2)", IntDistribution(1, 9, step=2)),
        ("epochs=range(1,4)", IntDistribution(1, 3)),
        ("model.dropout=range(0,0.5,0.25)", FloatDistribution(0.0, 0.25, step=0.25)),
        ("model=choice(conv2,conv3)", CategoricalDistribution(["conv2", "conv3"])),
        ("model=conv2,conv3", CategoricalDistribution(["conv2", "conv3"])),
        ("model.dropout=choice(0,0.3)", CategoricalDistribution(["0", "0.3"])),
        ("model.filters=choice([8,8],[16,16])", CategoricalDistribution(["[8,8]", "[16,16]"])),
    ],
)
def test_a_search_space_in_hydras_grammar(text, distribution):
    key = text.partition("=")[0]
    assert space.search_space(["seed=1", text], {}, None) == (("seed=1",), {key: distribution})


def test_the_command_line_wins_over_the_space_of_a_file():
    of_file = {"model.dropout": "interval(0,0.5)", "epochs": "range(1,4)", "batch_size": "32"}
    fixed, found = space.search_space(["epochs=3"], of_file, None)
    assert (fixed, found) == (("batch_size=32", "epochs=3"), {"model.dropout": FloatDistribution(0.0, 0.5)})


def test_a_misspelt_tag_is_refused():
    with pytest.raises(ExperimentError, match="the tag lgo says nothing here"):
        space.search_space(["model.dropout=tag(lgo,interval(0.1,1))"], {}, None)


@pytest.mark.parametrize("text", ["epochs=range(3,3)", "model.dropout=interval(1,0)", "seed=tag(log,interval(0,1))"])
def test_a_space_with_nothing_to_choose_is_refused(text):
    with pytest.raises(ExperimentError, match=re.escape(f"{text}: nothing can be chosen from it")):
        space.search_space([text], {}, None)


@pytest.mark.parametrize("text", ["seed=range(3)", "data.split_seed=0,1", "data.fold=choice(0,1)"])
def test_what_only_repeats_a_trial_is_not_searched(text):
    key = text.partition("=")[0]
    with pytest.raises(ExperimentError) as refused:
        space.search_space([text, "model.dropout=interval(0,0.5)"], {}, None)
    assert str(refused.value) == (
        f"{key} is searched, but it only repeats a trial: the search would choose the luckiest run. "
        f"Give {key} one value, and hydra.sweeper.replicates=3 to train every trial with three seeds."
    )


def test_the_boundary_points_hold_every_choice_and_both_ends():
    found = {"a": CategoricalDistribution(["x", "y", "z"]), "b": FloatDistribution(0, 1), "c": IntDistribution(1, 5)}
    assert list(space.boundary_points(found)) == [
        {"a": "x", "b": 0.0, "c": 1},
        {"a": "y", "b": 0.0, "c": 1},
        {"a": "z", "b": 0.0, "c": 1},
        {"a": "x", "b": 1.0, "c": 1},
        {"a": "x", "b": 0.0, "c": 5},
    ]


def test_the_key_that_matters_is_the_important_one():
    made = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    made.optimize(lambda trial: -abs(trial.suggest_float("a", 0, 1) - 0.3) + 0 * trial.suggest_float("b", 0, 1), 40)
    found = study.importances(made)
    assert list(found) == ["a", "b"] and found["a"] > 0.9
    assert sum(found.values()) == pytest.approx(1)


# Studies


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [["hydra.launcher.n_jobs=2"], ["hydra/launcher=basic"]], ids=["process", "basic"])
def test_a_study_is_continued_by_the_same_command(store, launcher):
    words = [*OPTUNA, "optimizer.clipnorm=tag(log,interval(0.1,10))", "epochs=1", *launcher]
    first = experiments(*words, "hydra.sweeper.n_trials=2")
    assert first.returncode == 0, first.stdout
    assert "2 trials: 0 ended, 2 to run\n" in first.stdout
    assert "2 jobs: 2 finished\n" in first.stdout
    more = experiments(*words, "hydra.sweeper.n_trials=3")
    assert "3 trials: 2 ended, 1 to run\n" in more.stdout
    assert "3 jobs: 3 finished\n" in more.stdout
    again = experiments(*words, "hydra.sweeper.n_trials=3")
    assert "3 trials: 3 ended, 0 to run\n" in again.stdout
    parent, children = parent_and_children(store)
    assert parent.info.status == "FINISHED"
    assert [run.data.tags["job"] for run in children] == ["0", "1", "2"]
    assert len({run.data.params["optimizer.clipnorm"] for run in children}) == 3
    trials = study_of(parent).trials
    assert [trial.value for trial in trials] == [run.data.metrics["best/val_accuracy"] for run in children]
    assert [str(trial.params["optimizer.clipnorm"]) for trial in trials] == [
        run.data.params["optimizer.clipnorm"] for run in children
    ]
    best = max(children, key=lambda run: run.data.metrics["best/val_accuracy"])
    assert (
        store.get_run(parent.data.tags["best_run_id"]).data.metrics["best/val_accuracy"]
        == (best.data.metrics["best/val_accuracy"])
    )
    kept = {artifact.path for artifact in store.list_artifacts(parent.info.run_id)}
    assert kept == {"jobs.json", "leaderboard.csv", "leaderboard.md", "report.html", "provenance.json", "figures"}
    space = {"space.optimizer.clipnorm": "numbers from 0.1 to 10, log"}
    assert parent.data.params == {"swept": "optimizer.clipnorm", "objective": "val_accuracy", **space}
    finished = store.get_metric_history(parent.info.run_id, "sweep/finished")
    assert [(point.step, point.value) for point in finished] == [(2, 2), (3, 3)]  # the last command adds none
    assert all(re.fullmatch(r"clipnorm=[\d.e-]+ seed=0", run.info.run_name) for run in children)
    tags = store.get_experiment(parent.info.experiment_id).tags
    view = json.loads(tags[f"mlflow.sharedViewState.{parent.info.run_id[:8]}"])
    assert (view["selectedColumns"][0], view["groupBy"]) == ("params.`optimizer.clipnorm`", None)
    page = Path(store.download_artifacts(parent.info.run_id, "report.html")).read_text()
    assert f"viewStateShareKey={parent.info.run_id[:8]}" in page


@pytest.mark.slow
def test_another_space_is_another_study_and_says_so(store):
    words = [*OPTUNA, "hydra.sweeper.n_trials=1", "hydra.launcher.n_jobs=1"]
    first = experiments(*words, "epochs=1", "model.dropout=interval(0,0.3)")
    assert "another study" not in first.stdout
    wider = experiments(*words, "epochs=1", "model.dropout=interval(0,0.5)")
    name = re.search(r"This is another study than (\S+) \(1 trials\): (.*)\n", wider.stdout)
    assert name[1].startswith("model.dropout=interval(0,0.3)-")
    assert name[2] == "model.dropout: numbers from 0 to 0.3 is now numbers from 0 to 0.5"
    longer = experiments(*words, "epochs=2", "model.dropout=interval(0,0.5)")
    name = re.search(r"This is another study than (\S+) \(1 trials\): (.*)\n", longer.stdout)
    assert name[1].startswith("model.dropout=interval(0,0.5)-")
    assert name[2] == "epochs: 1 is now 2"


@pytest.mark.slow
def test_cma_es_chooses_trials_too(store):
    words = [*OPTUNA, "hydra/sweeper/sampler=cmaes", "hydra.sweeper.n_trials=3", "epochs=1"]
    done = experiments(*words, "model.dropout=interval(0,0.5)", "optimizer.learning_rate=interval(0.001,0.01)")
    assert done.returncode == 0, done.stdout
    parent, children = parent_and_children(store)
    assert [trial.state.name for trial in study_of(parent).trials] == ["COMPLETE"] * 3
    assert len({run.data.params["model.dropout"] for run in children}) == 3


@pytest.mark.slow
def test_equal_trials_are_trained_once(store):
    words = [*OPTUNA, "hydra/sweeper/sampler=random", "model.dropout=choice(0,0.3)", "epochs=1"]
    done = experiments(*words, "hydra.sweeper.n_trials=8", "hydra.launcher.n_jobs=2")
    assert done.returncode == 0, done.stdout
    parent, children = parent_and_children(store)
    assert sorted(run.data.params["model.dropout"] for run in children) == ["0.0", "0.3"]
    assert "8 jobs: 8 finished\n" in done.stdout
    trials = study_of(parent).trials
    assert len(trials) == 8
    by_dropout = {float(run.data.params["model.dropout"]): run.data.metrics["best/val_accuracy"] for run in children}
    assert [trial.value for trial in trials] == [by_dropout[float(trial.params["model.dropout"])] for trial in trials]


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_an_unpromising_trial_is_pruned(store, pruner):
    few = {
        "median": ["hydra.sweeper.pruner.n_startup_trials=1"],
        "hyperband": ["hydra.sweeper.pruner.reduction_factor=2"],
    }
    words = [*OPTUNA, f"hydra/sweeper/pruner={pruner}", *few[pruner], "hydra.launcher.n_jobs=1", "epochs=4"]
    done = experiments(*words, "hydra.sweeper.n_trials=6", "optimizer.learning_rate=tag(log,interval(1e-7,1e-2))")
    assert done.returncode == 0, done.stdout
    parent, children = parent_and_children(store)
    assert len(children) == 6
    states = [trial.state.name for trial in study_of(parent).trials]
    pruned = [run for run in children if "pruned" in run.data.tags]
    assert pruned
    assert [state == "PRUNED" for state in states] == [run in pruned for run in children]
    assert {run.info.status for run in children} == {"FINISHED"}
    for run in pruned:
        epochs = len(store.get_metric_history(run.info.run_id, "loss"))
        assert 1 <= epochs < 4
        assert 1 <= run.data.metrics["best/epoch"] <= epochs
    assert f"6 jobs: {6 - len(pruned)} finished, {len(pruned)} pruned\n" in done.stdout
    # A pruned run is no result outside its study.
    single = pruned[0].data.params["optimizer.learning_rate"]
    grid = experiments("-m", "epochs=4", f"optimizer.learning_rate={single},0.01", "dry_run=true")
    assert "2 jobs: 0 finished, 2 to run\n" in grid.stdout


@pytest.fixture
def spoiler(tmp_path):
    """The words and the environment for a callback that spoils trials."""
    (tmp_path / "my_callbacks.py").write_text(SPOILER)
    (tmp_path / "mine" / "callbacks").mkdir(parents=True)
    (tmp_path / "mine" / "callbacks" / "spoiler.yaml").write_text(
        "spoiler:\n  _target_: my_callbacks.Spoiler\n  what: none\n  level: 1\n"
    )
    words = ["--config-dir", str(tmp_path / "mine"), *OPTUNA, "callbacks=[spoiler]", "epochs=2"]
    return words, {"PYTHONPATH": str(tmp_path), "EXPERIMENTS_ALLOW_TARGETS": "my_callbacks"}


@pytest.mark.slow
def test_spoiled_trials_fail_and_the_study_goes_on(store, spoiler):
    words, env = spoiler
    what = "callbacks.spoiler.what=choice(none,raise,kill,abort)"
    limits = ["hydra.launcher.n_jobs=2", "hydra.sweeper.n_trials=5"]
    # This sampler seed draws each kind once, and "none" with both seeds.
    words = [
        *words,
        "hydra/sweeper/sampler=random",
        what,
        "batch_size=range(8,10)",
        *limits,
        "hydra.sweeper.sampler.seed=47",
    ]
    done = experiments(*words, **env)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stdout
    parent, children = parent_and_children(store)
    assert parent.info.status == "FAILED"
    trials = study_of(parent).trials
    assert len(trials) == 5
    by_job = {int(run.data.tags["job"]): run for run in children}
    told = {
        "raise": ("FAILED", "error", "ValueError: spoiled by its user"),
        "kill": ("KILLED", "signal", "SIGKILL"),
        "abort": ("KILLED", "signal", "SIGABRT"),
    }
    seen = {trial.params["callbacks.spoiler.what"] for trial in trials}
    assert seen == {"none", *told}
    for trial in trials:
        kind = trial.params["callbacks.spoiler.what"]
        run = by_job[trial.number]
        if kind == "none":
            assert (trial.state.name, run.info.status) == ("COMPLETE", "FINISHED")
        else:
            assert trial.state.name == "FAIL"
            assert (run.info.status, run.data.tags["reason"], run.data.tags["failure"]) == told[kind]
            assert f"[{trial.number}]" in done.stdout and told[kind][2] in done.stdout


@pytest.mark.slow
def test_trials_that_cannot_be_built_fail_and_the_study_can_be_continued(store, spoiler):
    """At the ends of the space all is well; one value between kills the process that checks trials."""
    words, env = spoiler
    words = [*words, "hydra/sweeper/sampler=random", "callbacks.spoiler.level=tag(int,interval(1,3))", "epochs=1"]
    for n_trials, ended in ((5, 0), (6, 5)):
        done = experiments(*words, f"hydra.sweeper.n_trials={n_trials}", **env)
        assert f"{n_trials} trials: {ended} ended, {n_trials - ended} to run\n" in done.stdout
    parent, children = parent_and_children(store)
    trials = study_of(parent).trials
    levels = [trial.params["callbacks.spoiler.level"] for trial in trials]
    assert len(levels) == 6
    assert 2 in levels[:5] and set(levels) != {2}
    assert [trial.state.name for trial in trials] == ["FAIL" if level == 2 else "COMPLETE" for level in levels]
    refused = levels.count(2)
    assert f"6 jobs: {6 - refused} finished, {refused} failed\n" in done.stdout
    assert done.stdout.count("failed: it cannot be built: SIGABRT.") == refused
    assert len(children) == len(set(levels)) - 1


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "first"), [("hydra.launcher.n_jobs=2", 2), ("hydra/launcher=basic", 1)])
def test_the_value_of_a_trial_is_the_mean_over_its_seeds(store, launcher, first):
    words = [*OPTUNA, "optimizer.learning_rate=tag(log,interval(1e-3,1e-1))", "epochs=1", "seed=5", launcher]
    words += ["hydra.sweeper.replicates=2"]
    done = experiments(*words, f"hydra.sweeper.n_trials={first}")
    assert done.returncode == 0, done.stdout
    assert f"{first} trials with 2 seeds each: 0 ended, {first} to run\n" in done.stdout
    assert f"{2 * first} jobs: {2 * first} finished\n" in done.stdout
    more = experiments(*words, f"hydra.sweeper.n_trials={first + 1}")
    assert f"{first + 1} trials with 2 seeds each: {first} ended, 1 to run\n" in more.stdout
    parent, children = parent_and_children(store)
    assert [run.data.tags["job"] for run in children] == [str(number) for number in range(2 * first + 2)]
    assert [run.data.params["seed"] for run in children] == ["5", "6"] * (first + 1)
    values = [run.data.metrics["best/val_accuracy"] for run in children]
    trials = study_of(parent).trials
    assert [trial.value for trial in trials] == [mean(values[2 * i : 2 * i + 2]) for i in range(first + 1)]
    rates = [float(run.data.params["optimizer.learning_rate"]) for run in children]
    assert rates == [trial.params["optimizer.learning_rate"] for trial in trials for _ in range(2)]


@pytest.mark.slow
def test_the_best_trials_are_confirmed_by_a_race(store):
    words = [*OPTUNA, "model.dropout=interval(0,0.5)", "model.filters=choice([4,4],[4,8])", "epochs=1", "seed=3"]
    done = experiments(*words, "hydra.sweeper.n_trials=4", "hydra.launcher.n_jobs=2")
    assert done.returncode == 0, done.stdout
    verdicts = re.findall(r"^ +\d  .*(best|one seed, no verdict|worse|no significant)", done.stdout, re.MULTILINE)
    assert verdicts == ["best", *["one seed, no verdict"] * 3]
    (command,) = re.findall("^Confirm the best trials with new seeds: (.*)$", done.stdout, re.MULTILINE)
    assert " seed=4 " in command
    race = commands.finished(*shlex.split(command)[1:], "dry_run=true")
    assert race.returncode == 0, race.stdout
    assert race.stdout.startswith("3 to 30 seeds of each of these variants:\n")
    parent, _ = parent_and_children(store)
    ranked = sorted(study_of(parent).trials, key=lambda trial: -trial.value)
    assert [f"model.dropout={trial.params['model.dropout']}" in race.stdout for trial in ranked] == [True] * 3 + [False]


@pytest.mark.slow
def test_a_pruner_stops_the_later_seeds_of_a_trial(store, tmp_path):
    pruners = tmp_path / "hydra" / "sweeper" / "pruner"
    pruners.mkdir(parents=True)
    (pruners / "threshold.yaml").write_text("_target_: optuna.pruners.ThresholdPruner\nlower: 0.2\n")
    words = [
        "--config-dir",
        str(tmp_path),
        *OPTUNA,
        "hydra/sweeper/pruner=threshold",
        "hydra/sweeper/sampler=random",
        "optimizer.learning_rate=choice(1e-9,0.01)",
        "epochs=3",
    ]
    words += ["model.dropout=interval(0,0.1)", "data.limit=300", "hydra.launcher.n_jobs=1"]
    # This sampler seed draws 0.01 once and 1e-9 twice.
    words += ["hydra.sweeper.replicates=2", "hydra.sweeper.n_trials=3", "hydra.sweeper.sampler.seed=5"]
    done = experiments(*words)
    assert done.returncode == 0, done.stdout
    parent, children = parent_and_children(store)
    trials = study_of(parent).trials
    rates = [float(trial.params["optimizer.learning_rate"]) for trial in trials]
    assert set(rates) == {1e-9, 0.01}
    assert [trial.state.name for trial in trials] == ["PRUNED" if rate == 1e-9 else "COMPLETE" for rate in rates]
    trained = [sum(int(run.data.tags["job"]) // 2 == trial.number for run in children) for trial in trials]
    assert trained == [1 if rate == 1e-9 else 2 for rate in rates]
    assert {run.info.status for run in children} == {"FINISHED"}
    assert not any("pruned" in run.data.tags for run in children)


@pytest.mark.slow
def test_a_study_whose_trials_all_fail_says_so(store, spoiler):
    words, env = spoiler
    words = [*words, "callbacks.spoiler.what=raise", "batch_size=range(8,16)", "hydra.sweeper.n_trials=2"]
    done = experiments(*words, **env)
    assert done.returncode == 1
    assert "No trial has a result: all have failed or were pruned.\n" in done.stdout
    assert "2 jobs: 2 failed\n" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.slow
def test_a_diverged_trial_fails_and_costs_nothing_else(store):
    words = [*OPTUNA, "optimizer=sgd", "optimizer.learning_rate=choice(1e38,0.01)", "epochs=1"]
    # This sampler seed draws each of them twice.
    done = experiments(
        *words, "hydra/sweeper/sampler=random", "hydra.sweeper.n_trials=4", "hydra.sweeper.sampler.seed=7"
    )
    assert done.returncode == 0, done.stdout
    parent, children = parent_and_children(store)
    assert len(children) == 2  # equal ones are not trained again, diverged or not
    states = {float(trial.params["optimizer.learning_rate"]): trial.state.name for trial in study_of(parent).trials}
    assert states == {1e38: "FAIL", 0.01: "COMPLETE"}
    assert parent.info.status == "FINISHED"


@pytest.mark.slow
def test_a_killed_study_is_finished_by_the_same_command(store, tmp_path):
    words = [*OPTUNA, "optimizer.learning_rate=tag(log,interval(1e-4,1e-1))", "epochs=2", "hydra.sweeper.n_trials=4"]
    first = Command("train", *tiny(words), stdout=tmp_path / "first.txt")
    deadline = time.monotonic() + 180
    while sum(run.info.status == "FINISHED" for run in runs(store)) < 1:
        assert first.poll() is None and time.monotonic() < deadline, (tmp_path / "first.txt").read_text()
        time.sleep(0.2)
    first.kill_group()
    finished = {run.info.run_id for run in runs(store) if run.info.status == "FINISHED"}
    assert 1 <= len(finished) < 4
    done = experiments(*words)
    assert done.returncode == 0, done.stdout
    parent, children = parent_and_children(store)
    trials = study_of(parent).trials
    ended = [trial for trial in trials if "interrupted" not in trial.user_attrs]
    assert [trial.state.name for trial in ended] == ["COMPLETE"] * 4
    lost = [trial.params for trial in trials if "interrupted" in trial.user_attrs]
    assert all(params in [trial.params for trial in ended] for params in lost)
    result = [run for run in children if run.info.status == "FINISHED"]
    assert len(result) == len({run.data.tags["fingerprint"] for run in result}) == 4
    assert finished <= {run.info.run_id for run in result}
    assert {run.info.status for run in runs(store)} <= {"FINISHED", "KILLED"}
    assert all(run.data.tags["reason"] == "stale" for run in children if run.info.status == "KILLED")


# The whole command; its figure fails.
WITHOUT_FIGURE = """
import sys

from experiments import cli
from experiments.compare import tables


def fail(*arguments):
    raise RuntimeError("no figure")


if __name__ == "__main__":  # or the processes of the jobs would begin with it
    tables.write_search_history = fail
    sys.argv = ["experiments", "train", *sys.argv[1:]]
    cli.main()
"""


@pytest.mark.slow
def test_a_figure_that_fails_does_not_hide_why_a_search_has_failed(store, tmp_path):
    (tmp_path / "without_figure.py").write_text(WITHOUT_FIGURE)
    # This sampler raises an error once every value has been tried.
    sampler = ["hydra/sweeper/sampler=random", "hydra.sweeper.sampler._target_=optuna.samplers.BruteForceSampler"]
    words = [
        *OPTUNA,
        *sampler,
        "batch_size=range(8,9)",
        "epochs=1",
        "hydra.sweeper.n_trials=2",
        "hydra.launcher.n_jobs=1",
    ]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "without_figure.py"), *tiny(words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "history.png cannot be drawn: RuntimeError: no figure\n" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("RuntimeError: `Study.stop` is supposed to be invoked inside")
    parent, (child,) = parent_and_children(store)
    assert (parent.info.status, child.info.status) == ("FAILED", "FINISHED")
    assert parent.data.tags["failure"].startswith("RuntimeError: `Study.stop`")


@pytest.mark.slow
def test_a_study_can_be_continued_when_a_run_of_it_is_gone(store):
    words = [*OPTUNA, "optimizer.learning_rate=tag(log,interval(1e-4,1e-1))", "epochs=1", "hydra.launcher.n_jobs=1"]
    first = experiments(*words, "hydra.sweeper.n_trials=1")
    assert first.returncode == 0, first.stdout
    parent, (child,) = parent_and_children(store)
    store.delete_run(child.info.run_id)
    uri = os.environ["MLFLOW_TRACKING_URI"]
    gone = ["--backend-store-uri", uri, "--run-ids", child.info.run_id]
    subprocess.run([sys.executable, "-m", "mlflow", "gc", *gone], check=True, capture_output=True)
    more = experiments(*words, "hydra.sweeper.n_trials=2")
    assert more.returncode == 0, more.stdout
    assert "Trial 0: its run is no longer in the store; the study keeps its result.\n" in more.stdout
    assert "2 trials: 1 ended, 1 to run\n" in more.stdout
    _, (second,) = parent_and_children(store)
    assert second.data.tags["job"] == "1"
    assert [trial.state.name for trial in study_of(parent).trials] == ["COMPLETE"] * 2


@pytest.mark.slow
def test_a_search_finds_what_trains_well(store):
    tuned = ["optimizer.learning_rate=tag(log,interval(1e-5,1e-1))", "model.dropout=interval(0,0.6)"]
    words = ["epochs=1", "batch_size=64", "data.limit=1000", "model.filters=[8,16]", "model.dense_units=[32]"]
    done = experiments(*OPTUNA, *tuned, "hydra.sweeper.n_trials=5", "hydra.launcher.n_jobs=1", *words)
    assert done.returncode == 0, done.stdout
    assert "5 jobs: 5 finished\n" in done.stdout
    parent, _ = parent_and_children(store)
    best = store.get_run(parent.data.tags["best_run_id"]).data.params
    rate, dropout = best["optimizer.learning_rate"], best["model.dropout"]
    found = f"{{seed: 11, optimizer.learning_rate: {rate}, model.dropout: {dropout}}}"
    low = "{seed: 11, optimizer.learning_rate: 1e-5}"
    again = experiments("-m", f"hydra.sweeper.include=[{found},{low}]", *words)
    assert again.returncode == 0, again.stdout
    new = [run for run in runs(store) if run.data.params.get("seed") == "11"]
    accuracies = {run.data.params["optimizer.learning_rate"]: run.data.metrics["test/accuracy"] for run in new}
    assert len(accuracies) == 2
    assert accuracies[rate] > accuracies["1e-05"]
