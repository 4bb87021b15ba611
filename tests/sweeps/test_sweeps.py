"""Grids and lists: which jobs there are, what is refused before any starts, and what the same command runs again."""

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import hydra
import mlflow
import numpy as np
import pytest

from commands import EXPERIMENTS, experiments, finished, runs, script
from experiments.config.compose import CONF_DIR, compose
from experiments.config.identity import PACKAGE
from experiments.errors import ExperimentError
from experiments.sweeps import jobs
from experiments.sweeps.display import Display
from experiments.sweeps.plan import experiment_of
from experiments.sweeps.sweep import open_sweep
from records import record

TINY = [
    "data.limit=40",
    "epochs=1",
    "tracking.model=false",
    "model.filters=[4,4]",
    "model.dense_units=[8]",
    "optimizer.clipnorm=5.0",
]


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here builds a net in this process."""


def children(store):
    return [run for run in runs(store) if "sweep" in run.data.tags]


def parents(store):
    return [run for run in runs(store) if "sweep.name" in run.data.tags]


def sweeper_of(*words):
    """The sweeper that Hydra makes for a command line."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR), job_name="experiments"):
        cfg = hydra.compose("config", overrides=list(words), return_hydra_config=True)
    return hydra.utils.instantiate(cfg.hydra.sweeper)


# The list of jobs


def own(*arguments, params=None, listed=()):
    return [values for _, values in jobs.combinations(arguments, params or {}, listed, None)]


def test_a_grid_crosses_all_values():
    found = own("epochs=2", "model=conv2,conv3", "seed=range(3)")
    assert found == [{"model": model, "seed": seed} for model in ("conv2", "conv3") for seed in "012"]


def test_a_job_is_composed_of_what_is_fixed_and_its_own_values():
    (overrides, values), *_ = jobs.combinations(["epochs=2", "seed=3,4"], {"model": "conv3,conv2"}, [], None)
    assert overrides == ("epochs=2", "model=conv3", "seed=3")
    assert values == {"model": "conv3", "seed": "3"}


def test_the_command_line_wins_over_a_file():
    assert own("seed=7", params={"seed": "range(5)", "model": "conv2,conv3"}) == [
        {"model": "conv2"},
        {"model": "conv3"},
    ]
    assert own("seed=7,8", params={"seed": "range(5)"}) == [{"seed": "7"}, {"seed": "8"}]


def test_a_list_stands_beside_the_grid_and_both_are_crossed_with_the_command_line():
    grid = {"model": "conv2,conv3", "model.dropout": "0,0.3,0.5"}
    listed = [{"model": "conv3_wide", "epochs": 9}, {"model.filters": [8, 8], "model.dropout": None}]
    found = own(params=grid, listed=listed)
    assert len(found) == 8
    assert found[6:] == [{"model": "conv3_wide", "epochs": "9"}, {"model.filters": "[8,8]", "model.dropout": "null"}]
    assert own("seed=0,1", listed=listed) == [{**entry, "seed": seed} for entry in found[6:] for seed in "01"]


def test_an_entry_of_a_list_may_be_a_grid_itself():
    assert own(listed=[{"model": "conv2", "seed": "range(2)"}]) == [
        {"model": "conv2", "seed": "0"},
        {"model": "conv2", "seed": "1"},
    ]


def test_exclusions_are_left_out_and_numbers_go_on():
    grid = {"model": "conv2,conv3", "model.dropout": "0,0.3,0.5"}
    listed = [{"model": "conv3_wide"}, {"model": "conv2_batch_norm"}]
    found = jobs.combinations([], grid, listed, None)
    left = list(jobs.compose_jobs(found, [{"model": "conv3", "model.dropout": 0.3}], None))
    assert [job.number for job in left] == list(range(7))
    assert [job.swept_values for job in left if job.swept_values["model"] == "conv3"] == [
        {"model": "conv3", "model.dropout": "0"},
        {"model": "conv3", "model.dropout": "0.5"},
    ]


def test_exclusions_are_left_out_before_they_are_refused():
    grid = {"callbacks": "[],[reduce_on_plateau]", "schedule": "constant,one_cycle"}
    found = jobs.combinations([], grid, [], None)
    excluded = [{"schedule": "one_cycle", "callbacks": ["reduce_on_plateau"]}]
    assert len(list(jobs.compose_jobs(found, excluded, None))) == 3
    with pytest.raises(ExperimentError, match=r"Job 3 .*sets the learning rate"):
        list(jobs.compose_jobs(found, [], None))


def test_an_exclusion_may_name_what_only_some_jobs_have_but_not_what_none_has():
    found = jobs.combinations(["model=conv2,sequential"], {}, [], None)
    left = list(jobs.compose_jobs(found, [{"model.dropout": 0.0, "model": "conv2"}], None))
    assert [job.swept_values["model"] for job in left] == ["sequential"]
    with pytest.raises(ExperimentError, match=r"model\.dropuot: model=\w+ has no such key"):
        list(jobs.compose_jobs(found, [{"model": "conv9", "model.dropuot": 1}], None))


def test_values_of_a_list_are_written_in_hydras_grammar():
    listed = [{"optimizer": {"learning_rate": 0.01, "beta_1": 0.8}}]
    (job,) = jobs.compose_jobs(jobs.combinations([], {}, listed, None), [], None)
    assert (job.configuration.cfg.optimizer.learning_rate, job.configuration.cfg.optimizer.beta_1) == (0.01, 0.8)


def test_quotes_in_a_value_do_not_reach_the_name_that_the_store_is_asked_for():
    arguments = ["model.activation='relu','gelu'"]
    found = list(jobs.compose_jobs(jobs.combinations(arguments, {}, [], None), [], None))
    assert jobs.sweep_name(found, None, arguments, 1).startswith("model.activation=relu,gelu-")


def test_jobs_are_told_apart_by_what_differs():
    listed = list(jobs.compose_jobs(jobs.combinations(["epochs=2", "model=conv3", "seed=0,1"], {}, [], None), [], None))
    jobs.find_differences(listed)
    assert [job.label for job in listed] == ["seed=0", "seed=1"]


@pytest.mark.parametrize("file", sorted((CONF_DIR / "sweep").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_sweep_file_has_as_many_jobs_as_its_head_says(file):
    said = int(re.search(r"(\d+) jobs", file.read_text())[1])
    sweeper = sweeper_of(f"sweep={file.stem}")
    found = jobs.combinations([f"sweep={file.stem}"], sweeper.params, sweeper.include, None)
    assert len(found) == said
    assert (
        len({job.configuration.variant + str(job.configuration.cfg.seed) for job in jobs.compose_jobs(found, [], None)})
        == said
    )


def test_a_sweep_file_of_the_first_version_keeps_its_list(tmp_path):
    (tmp_path / "sweep").mkdir()
    text = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      seed: 0,1\n    list:\n      - model: conv2\n"
    (tmp_path / "sweep" / "old.yaml").write_text(text)
    sweeper = sweeper_of(f"hydra.searchpath=['file://{tmp_path}']", "sweep=old")
    assert (sweeper.params, sweeper.include, sweeper.exclude) == ({"seed": "0,1"}, [{"model": "conv2"}], [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sweeper:\n    exlude: []", "GridSweeper.__init__() got an unexpected keyword argument 'exlude'"),
        ("launcher:\n    n_job: 2", "ProcessLauncher.__init__() got an unexpected keyword argument 'n_job'"),
        ("sweeper:\n    exclude: conv2", "hydra.sweeper.exclude=conv2 is refused: it must be a list, each entry a map"),
        ("launcher:\n    n_jobs: two", "hydra.launcher.n_jobs=two is refused: it must be a whole number of at least 1"),
        ("launcher:\n    on_error: end", "hydra.launcher.on_error=end is refused. Allowed: continue, stop."),
    ],
)
def test_a_mistake_in_a_sweep_file_is_refused(tmp_path, text, message):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(f"# @package _global_\nhydra:\n  mode: MULTIRUN\n  {text}\n")
    done = experiments("--config-dir", str(tmp_path), "sweep=mine", "seed=0,1")
    assert message in done.stdout
    assert (done.returncode, done.stdout.count("\n")) == (2, 1)


def test_a_sweep_is_named_by_its_file_or_first_swept_key_and_what_is_in_it():
    def name(*arguments, choice=None):
        found = list(jobs.compose_jobs(jobs.combinations(arguments, {}, [], None), [], None))
        return jobs.sweep_name(found, choice, arguments, [job.configuration.variant for job in found])

    assert re.fullmatch(r"model=conv2,conv3-[0-9a-f]{6}", name("epochs=2", "model=conv2,conv3"))
    assert re.fullmatch(r"quick-[0-9a-f]{6}", name("model=conv2,conv3", choice="quick"))
    assert name("epochs=2", "model=conv2,conv3") != name("epochs=3", "model=conv2,conv3")


def test_a_sweep_has_the_name_that_it_is_given(tmp_path):
    def named(*arguments):
        found = list(jobs.compose_jobs(jobs.combinations(arguments, {}, [], None), [], None))
        return jobs.sweep_name(found, "quick", arguments, 1)

    assert named("seed=1,2").startswith("quick-")
    assert named("seed=1,2", "sweep.name=depth").startswith("depth-")
    assert named("seed=1,2", "sweep.name=3").startswith("3-")
    alone = compose(["sweep.name=depth", "seed=1"])
    assert alone.command == "experiments train seed=1"
    assert (alone.variant, alone.parameters) == (compose(["seed=1"]).variant, compose(["seed=1"]).parameters)


def test_a_name_that_other_jobs_have_is_refused(store):
    for name in ("depth-000001", "wide-000002", "depth-er-000003"):
        record(store, tags={"sweep.name": name})
    for given in ("depth", "wide"):
        with (
            pytest.raises(ExperimentError) as refused,
            open_sweep([], compose([f"sweep.name={given}"]), "digits", f"{given}-999999", Display()),
        ):
            pass
        assert str(refused.value).startswith(
            f"sweep.name={given}: a sweep with other jobs has this name, {given}-00000"
        )
    with open_sweep([], compose(["sweep.name=depth"]), "digits", "depth-000001", Display()):
        pass  # the same jobs: it goes on
    assert len(parents(store)) == 3


def test_a_sweep_over_data_is_kept_under_the_names_of_all_of_them():
    def experiment(*arguments):
        return experiment_of(list(jobs.compose_jobs(jobs.combinations(arguments, {}, [], None), [], None)))

    assert experiment("data=mnist_5k,mnist", "seed=0,1") == "mnist_5k+mnist"
    assert experiment("seed=0,1") == "mnist_5k"
    assert experiment("data=mnist_5k,mnist", "tracking.experiment=mine") == "mine"


# What is refused


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "seed=range(0)"], "The sweep has no job: a key is swept over no value."),
        (["-m", "sede=0,1"], "Job 0 (sede=0): sede: there is no such key. Did you mean seed?"),
        (
            ["-m", "model=conv2,conv3", "model.dropout=0,1.5"],
            "Job 1 (model=conv2 model.dropout=1.5): model.dropout=1.5 is refused: "
            "it must be a number of at least 0 and below 1.",
        ),
        (["-m", "model=conv2,conv9"], "Job 1 (model=conv9): model=conv9: there is no such option."),
        (["-m", "seed=range(1001)"], "The sweep has more than 1,000 jobs."),
        (["-m", "model.dropout=interval(0,1)"], "model.dropout=interval(0,1): a grid needs single values."),
        (["-m", "seed=0,1", "hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs=0 is refused"),
        (["-m", "seed=0,1", "hydra.sweeper.include=[{modle: conv2}]"], "Job 0 (modle=conv2 seed=0): modle:"),
        (["-m", "seed=0,1", "hydra.sweeper.list=[{modle: conv2}]"], "Job 0 (modle=conv2 seed=0): modle:"),
        (["-m", "seed=0,1", "hydra.sweeper.exclude=[{modle: conv2}]"], "modle: there is no such key. Did you mean mo"),
        (["-m", "seed=0,1", "hydra.sweeper.exclude=[{model: conv2}]"], "The sweep has no job: every combination is ex"),
        (["-m", "hydra/sweeper=optuna", "seed=3"], "The search space names no parameter."),
        (
            ["-m", "hydra/sweeper=optuna", "batch_size=8,16", "hydra/sweeper/pruner=median", "epochs=1"],
            "A pruner stops a run between epochs, and epochs=1 leaves nothing to stop.",
        ),
        (["-m", "hydra/sweeper=optuna", "epochs=1,2", "hydra.sweeper.n_trials=0"], "n_trials=0 is refused"),
        (["-m", "hydra/sweeper=optuna", "model.dropout=interval(0,2)"], "Job 1 (model.dropout=2.0): model.dropout=2"),
        (["-m", "sweep=quick,batch_size"], "sweep= names one sweep, and cannot be swept."),
        (["-m", "objective=val_accuracy,val_loss"], "The objective differs"),
        (["-m", "hydra/sweeper=optuna", "epochs=1,2", "+hydra.sweeper.sampler.foo=1"], "unexpected keyword argument"),
        (["-m", "hydra/launcher=joblib", "seed=0,1", "hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs=0 is refused"),
        (["sweep=nope"], "sweep=nope: there is no such option."),
    ],
)  # fmt: skip
def test_refused_before_anything_is_tracked(tmp_path, words, message):
    store, home = tmp_path / "store" / "mlflow.db", tmp_path / "home"
    home.mkdir()
    done = experiments(*words, MLFLOW_TRACKING_URI=f"sqlite:///{store}", EXPERIMENTS_HOME=str(home))
    assert message in done.stdout
    assert (done.returncode, done.stdout.count("\n")) == (2, 1)
    assert not store.parent.exists()
    assert not list(home.iterdir())


@pytest.mark.slow
def test_a_model_that_cannot_be_built_is_refused_before_the_first_job(tmp_path):
    store, home = tmp_path / "store" / "mlflow.db", tmp_path / "home"
    home.mkdir()
    words = ["-m", "model.pool_sizes=[2,2],[14,14]", *TINY]
    done = experiments(*words, MLFLOW_TRACKING_URI=f"sqlite:///{store}", EXPERIMENTS_HOME=str(home))
    assert done.returncode == 2
    assert done.stdout.startswith("experiments: Job 1 (model.pool_sizes=[14,14]): ")
    assert not store.parent.exists()
    assert not list(home.iterdir())


@pytest.mark.slow
def test_a_storage_that_cannot_be_opened_is_refused(store, tmp_path):
    studies = tmp_path / "home" / "mlruns" / "studies"
    studies.parent.mkdir(parents=True)
    studies.write_text("no folder")
    done = experiments("-m", "hydra/sweeper=optuna", "model.dropout=0,0.3", *TINY)
    assert done.returncode == 2
    assert f"experiments: The file of a study cannot be created: {studies} is not writable.\n" in done.stdout
    assert not runs(store)


def test_a_job_of_the_list_cannot_be_asked_for_by_python():
    with pytest.raises(ExperimentError, match="this is a sweep of several runs"):
        compose(["seed=0,1"])


# Sweeps that run


@pytest.mark.slow
def test_a_dry_run_checks_and_tracks_nothing(tmp_path):
    store, home = tmp_path / "store" / "mlflow.db", tmp_path / "home"
    home.mkdir()
    words = ["-m", "model.batch_norm=false,true", "seed=0,1,1", "dry_run=true", "data.limit=40"]
    done = experiments(*words, MLFLOW_TRACKING_URI=f"sqlite:///{store}", EXPERIMENTS_HOME=str(home))
    assert done.returncode == 0, done.stdout
    lines = [re.split(r"  +", line.strip()) for line in done.stdout.splitlines() if line]
    assert lines == [
        ["job", "variant", "parameters", "state"],
        ["0", "model.batch_norm=false seed=0", "121,930", "to run"],
        ["1", "model.batch_norm=false seed=1", "121,930", "to run"],
        ["2", "model.batch_norm=false seed=1", "121,930", "equal to job 1"],
        ["3", "model.batch_norm=true seed=0", "122,218", "to run"],
        ["4", "model.batch_norm=true seed=1", "122,218", "to run"],
        ["5", "model.batch_norm=true seed=1", "122,218", "equal to job 4"],
    ]
    assert not store.parent.exists()
    assert not list(home.iterdir())


@pytest.fixture(scope="module")
def swept(tmp_path_factory, new_store):
    """A finished sweep of four different jobs, one of them listed twice: the store, its home and what was printed."""
    folder = tmp_path_factory.mktemp("swept")
    shutil.copy(new_store, folder / "mlflow.db")
    env = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "EXPERIMENTS_HOME": str(folder / "home")}
    words = ["-m", "model.dropout=0,0.3", "seed=0,1,0", "tracking.note=why", *TINY]
    done = experiments(*words, **env, MLFLOW_RUN_ID="0" * 32)
    assert done.returncode == 0, done.stdout
    return mlflow.MlflowClient(env["MLFLOW_TRACKING_URI"]), env, words, done.stdout


@pytest.mark.slow
def test_one_parent_and_honest_children(swept):
    store, _, words, output = swept
    (parent,) = parents(store)
    found = children(store)
    assert len(found) == 4
    assert parent.info.status == "FINISHED"
    name = parent.data.tags["sweep.name"]
    assert re.fullmatch(r"model\.dropout=0,0\.3-[0-9a-f]{6}", name)
    assert parent.info.run_name == name
    assert {run.data.tags["mlflow.parentRunId"] for run in found} == {parent.info.run_id}
    assert {run.data.tags["sweep"] for run in found} == {name}
    assert sorted(run.data.tags["job"] for run in found) == ["0", "1", "3", "4"]
    assert {run.info.experiment_id for run in found} == {parent.info.experiment_id}
    assert len({run.info.run_name for run in found}) == 4
    assert "6 jobs: 0 finished, 2 equal to another one, 4 to run\n" in output
    alone = next(run for run in found if run.data.tags["job"] == "1").data.tags["command"]
    fixed = " ".join(f"'{word}'" if "[" in word else word for word in words[3:])
    assert alone == f"experiments train {fixed} model.dropout=0 seed=1 hydra.mode=RUN"


@pytest.mark.slow
def test_the_parent_keeps_the_jobs_and_the_table(swept, tmp_path):
    store, _, _, output = swept
    (parent,) = parents(store)
    kept = [artifact.path for artifact in store.list_artifacts(parent.info.run_id)]
    assert kept == ["jobs.json", "leaderboard.csv", "leaderboard.md", "provenance.json", "report.html"]
    folder = Path(parent.info.artifact_uri.removeprefix("file://"))
    listed = json.loads((folder / "jobs.json").read_text())
    by_job = {int(run.data.tags["job"]): run for run in children(store)}
    assert [entry["job"] for entry in listed] == list(range(6))
    trained = [by_job[job] for job in (0, 1, 0, 3, 4, 3)]  # the third value of the seed is the first one again
    assert [entry["run_id"] for entry in listed] == [run.info.run_id for run in trained]
    assert [entry["fingerprint"] for entry in listed] == [run.data.tags["fingerprint"] for run in trained]
    rows = list(csv.DictReader((folder / "leaderboard.csv").read_text().splitlines()))
    assert [int(row["seeds"]) for row in rows] == [2, 2]
    means = {
        dropout: sum(
            run.data.metrics["best/val_accuracy"]
            for run in by_job.values()
            if run.data.params["model.dropout"] == dropout
        )
        / 2
        for dropout in ("0.0", "0.3")
    }
    assert {row["variant"]: float(row["best/val_accuracy"]) for row in rows} == {
        f"model.dropout={dropout}": pytest.approx(mean) for dropout, mean in means.items()
    }
    best = parent.data.tags["best_run_id"]
    assert best in rows[0]["run_ids"].split()
    assert f"Best run: {best}\n" in output
    note = parent.data.tags["mlflow.note.content"]
    result = output[output.index("\nmodel.dropout=") + 1 :].partition("\n")[0]
    run_id, place = parent.info.run_id, parent.info.experiment_id
    page = f"#/experiments/{place}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    link = f"{page}&viewStateShareKey={run_id[:8]}"
    beginning = f"why\n\n6 jobs: 6 finished. [Runs and charts]({link})\n\n**{result}**\n\n| rank | variant |"
    assert note.startswith(beginning)
    assert note.count(result) == 1
    assert (folder / "leaderboard.md").read_text() in note
    assert output.endswith(f"Look at them with experiments ui: http://127.0.0.1:5000/{link}\n")
    view = json.loads(store.get_experiment(place).tags[f"mlflow.sharedViewState.{run_id[:8]}"])
    assert view["searchFilter"] == f"tags.sweep = '{parent.info.run_name}' and tags.superseded IS NULL"
    assert view["selectedColumns"][0] == "params.`model.dropout`"
    assert len(view["groupsExpanded"]) == 2
    assert parent.data.params == {"swept": "model.dropout", "objective": "val_accuracy"}
    assert parent.data.metrics == {
        "sweep/jobs": 6, "sweep/finished": 6, "sweep/failed": 0, "sweep/variants": 2,
        "sweep/best_val_accuracy": pytest.approx(max(means.values())),
        "sweep/best_test_accuracy": pytest.approx(float(rows[0]["test_accuracy"])),
    }  # fmt: skip


@pytest.mark.slow
def test_the_output_of_a_job_is_in_its_log(swept):
    store, env, _, output = swept
    assert "[0] model.dropout=0 seed=0: epoch 1/1, val_accuracy " in output
    assert "Epoch 1/1" not in output
    for run in children(store):
        log = Path(run.info.artifact_uri.removeprefix("file://"), "job.log").read_text()
        assert log.count("Epoch 1/1") == 1
    assert not list(Path(env["EXPERIMENTS_HOME"], "mlruns", "jobs").iterdir())


@pytest.mark.slow
def test_a_finished_sweep_is_only_shown_again(swept):
    store, env, words, output = swept
    before = len(runs(store))
    again = experiments(*words, **env)
    assert again.returncode == 0
    assert "6 jobs: 6 finished, 0 to run\n" in again.stdout
    assert again.stdout[again.stdout.index("\nrank") :] == output[output.index("\nrank") :]
    assert len(runs(store)) == before
    assert len(parents(store)) == 1


def compared(env, *words):
    """Runs `experiments compare` to its end; standard output and errors in one text."""
    return finished("compare", *words, **env)


@pytest.mark.slow
def test_comparing_shows_the_table_of_the_sweep(swept, tmp_path):
    store, env, _, output = swept
    (parent,) = parents(store)
    table = output[output.index("\nrank") : output.index("6 jobs: 6 finished\n")]
    assert "p: t over seeds and images, paired by seed; Holm-adjusted over one pair." in table
    for name in (parent.data.tags["sweep.name"], "model.dropout=0,0.3", parent.info.run_id):
        done = compared(env, name, "--csv", str(tmp_path / "table.csv"))
        assert (done.returncode, done.stdout) == (0, table)
    kept = Path(parent.info.artifact_uri.removeprefix("file://"), "leaderboard.csv")
    assert (tmp_path / "table.csv").read_text() == kept.read_text()


@pytest.mark.slow
def test_single_seeds_are_compared_image_by_image(swept):
    _, env, _, _ = swept
    done = compared(env, "--filter", "params.seed = '0'")
    assert done.returncode == 0
    assert "95 % confidence intervals: Wilson over images." in done.stdout
    assert "p: exact McNemar; Holm-adjusted over one pair." in done.stdout
    assert "A single seed does not show how results vary from seed to seed" in done.stdout
    test = compared(env, "--filter", "params.seed = '0'", "--metric", "test/accuracy")
    assert (
        "Ranked by test/accuracy: the test set was used for selection, so its metrics are no longer unbiased."
        in test.stdout
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.dropuot=0,0.3"], "model.dropuot=0,0.3: there is no such sweep in this store. Did you mean model.drop"),
        (["--filter", "params.seed = '7'"], "params.seed = '7': there is no finished run."),
        (["--filter", "params.seed ~ 7"], "MLflow refuses the filter: "),
        (["--metric", "val_acuracy"], "val_acuracy: no run has this metric. Did you mean val_accuracy?"),
        (["--csv", "no/such/folder.csv"], "no/such/folder.csv cannot be written: No such file or directory."),
        (["--html", "no/such/page.html"], "no/such/page.html cannot be written: No such file or directory."),
        (["--filter", "params.`model.dropout` = '0.0'"], "One variant alone cannot be compared."),
    ],
)
def test_what_cannot_be_compared_is_refused(swept, words, message):
    _, env, _, _ = swept
    done = compared(env, *words)
    assert done.returncode == 2
    assert f"experiments: {message}" in done.stdout


@pytest.mark.slow
def test_another_sweep_takes_what_is_finished_already(swept):
    store, env, _, _ = swept
    done = experiments("-m", "model.dropout=0,0.5", "seed=0", *TINY, **env)
    assert "2 jobs: 1 finished, 1 to run\n" in done.stdout
    new = [run for run in children(store) if run.data.params["model.dropout"] == "0.5"]
    assert len(new) == 1
    # Its runs lie under two parents, so its view names them one by one.
    place, key = re.search(r"#/experiments/(\d+)/runs\?.*viewStateShareKey=(\w+)", done.stdout).groups()
    view = json.loads(store.get_experiment(place).tags[f"mlflow.sharedViewState.{key}"])
    assert view["searchFilter"].startswith("attributes.run_id IN ('") and new[0].info.run_id in view["searchFilter"]


@pytest.mark.slow
def test_force_trains_all_again(swept):
    store, env, _, _ = swept
    before = {run.info.run_id for run in children(store)}
    done = experiments("-m", "model.dropout=0.3", "seed=0,1", "force=true", *TINY, **env)
    assert done.returncode == 0, done.stdout
    assert "2 jobs: 0 finished, 2 to run" in done.stdout
    new = [run for run in children(store) if run.info.run_id not in before]
    assert [run.info.status for run in new] == ["FINISHED"] * 2


@pytest.mark.slow
def test_jobs_on_other_data_are_others(store, digits, tmp_path):
    shutil.copy(digits, tmp_path / "other.npz")
    with np.load(digits) as arrays:
        np.savez(tmp_path / "other.npz", **{name: values[::-1] for name, values in arrays.items()})
    words = ["data=npz", f"data.path={digits},{tmp_path}/other.npz", "seed=0", *TINY, "hydra.launcher.n_jobs=1"]
    done = experiments("-m", *words)
    assert done.returncode == 0, done.stdout
    assert "2 jobs: 2 finished\n" in done.stdout
    assert len({run.data.tags["variant.id"] for run in children(store)}) == 1
    assert len({run.data.tags["fingerprint"] for run in children(store)}) == 2
    assert not [run for run in runs(store) if "superseded" in run.data.tags]
    folder = Path(parents(store)[0].info.artifact_uri.removeprefix("file://"))
    rows = list(csv.DictReader((folder / "leaderboard.csv").read_text().splitlines()))
    digests = {run.data.tags["data.sha256"][:8] for run in children(store)}
    assert {row["variant"] for row in rows} == {f"data.sha256={digest}" for digest in digests}
    assert [row["seeds"] for row in rows] == ["1", "1"]
    assert "This compares runs on different data: data.sha256 is " in done.stdout


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_end_the_sweep(store):
    words = [EXPERIMENTS, "train", "-m", "seed=0,1", *TINY]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(180) == 0
    (parent,) = parents(store)
    assert [run.info.status for run in [parent, *children(store)]] == ["FINISHED"] * 3


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "train"), [("basic", finished), ("joblib", script)])
def test_other_launchers_give_the_same(swept, launcher, train):
    store, env, _, _ = swept
    words = ["-m", "model.dropout=0.3", "seed=0,1", "force=true", f"hydra/launcher={launcher}", *TINY]
    before = {run.info.run_id: run for run in children(store)}
    done = train("train", *words, **env)
    assert done.returncode == 0, done.stdout
    assert "2 jobs: 2 finished\n" in done.stdout
    new = [run for run in children(store) if run.info.run_id not in before]
    assert len(new) == 2
    for run in new:
        old = next(
            old
            for old in before.values()
            if old.data.params == run.data.params and old.data.tags["fingerprint"] == run.data.tags["fingerprint"]
        )
        for metric in ("loss", "accuracy", "val_loss", "val_accuracy"):
            assert run.data.metrics[metric] == old.data.metrics[metric]
        assert Path(run.info.artifact_uri.removeprefix("file://"), "job.log").exists()


@pytest.mark.slow
def test_a_job_has_the_same_bits_alone_and_at_any_place_in_a_sweep(store):
    words = ["data.limit=64", "epochs=2", "tracking.model=false", "augment=shift_rotate", "model.dropout=0.3"]
    alone = experiments(*words, "seed=2")
    one = experiments("-m", *words, "seed=range(3)", "hydra.launcher.n_jobs=1", "force=true")
    two = experiments("-m", *words, "seed=range(3)", "hydra.launcher.n_jobs=2", "force=true")
    assert [done.returncode for done in (alone, one, two)] == [0, 0, 0], one.stdout + two.stdout
    found = [run for run in runs(store) if run.data.params.get("seed") == "2"]
    assert len(found) == 3
    for metric in ("loss", "accuracy", "val_loss", "val_accuracy"):
        histories = {tuple(m.value for m in store.get_metric_history(run.info.run_id, metric)) for run in found}
        assert len(histories) == 1


@pytest.mark.slow
def test_every_job_keeps_its_own_number_of_threads(store):
    done = experiments("-m", "threads=1,2", *TINY)
    assert "2 jobs: 2 finished\n" in done.stdout
    assert sorted(run.data.params["threads"] for run in children(store)) == ["1", "2"]


@pytest.mark.slow
def test_changed_code_runs_again_and_a_changed_comment_or_readme_does_not(tmp_path, new_store):
    copy = tmp_path / "copy"
    shutil.copytree(CONF_DIR, copy / "conf")
    shutil.copytree(PACKAGE.parent, copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "README.md").write_text("first\n")
    shutil.copy(new_store, tmp_path / "mlflow.db")
    env = {
        "PYTHONPATH": str(copy / "src"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "EXPERIMENTS_HOME": str(tmp_path / "home"),
    }
    words = ["-m", "seed=0", *TINY]
    first = script("train", *words, **env)
    assert "1 job: 0 finished, 1 to run\n" in first.stdout
    models = copy / "src" / "experiments" / "models.py"
    (copy / "README.md").write_text("second\n")
    models.write_text(models.read_text() + "# a comment\n")
    assert "1 job: 1 finished, 0 to run\n" in script("train", *words, **env).stdout
    models.write_text(models.read_text() + "CHANGED = True\n")
    changed = script("train", *words, **env)
    assert "1 job: 0 finished, 1 to run (1 of them were finished with other code)\n" in changed.stdout
    assert changed.returncode == 0
    store = mlflow.MlflowClient(env["MLFLOW_TRACKING_URI"])
    assert len(parents(store)) == 1
    superseded = [run for run in children(store) if "superseded" in run.data.tags]
    assert len(children(store)) == 2
    assert len(superseded) == 1


# Cross-validation


@pytest.mark.slow
def test_every_image_is_validated_once_and_a_fold_can_be_reproduced(store, digits):
    data = ["data=npz", f"data.path={digits}", "data.folds=2", "data.fold=range(2)"]
    done = experiments("-m", *data, "model=conv2,conv3", "epochs=1", "tracking.model=false")
    assert done.returncode == 0, done.stdout
    jobs = children(store)
    digests, variants, sizes = {}, {}, {}
    for run in jobs:
        fold, model = run.data.params["data.fold"], run.data.params["model"]
        digests.setdefault(fold, set()).add(run.data.tags["data.validation_sha256"])
        variants.setdefault(model, set()).add(run.data.tags["variant.id"])
        with np.load(store.download_artifacts(run.info.run_id, "validation_predictions.npz")) as predictions:
            sizes[fold] = len(predictions["labels"])
    assert [len(found) for found in digests.values()] == [1, 1]  # the same images whatever the model
    assert digests["0"] != digests["1"] and sizes["0"] + sizes["1"] == 400
    assert [len(found) for found in variants.values()] == [1, 1]
    assert re.search(r"^ +1  model=conv[23] +2 ", done.stdout, re.MULTILINE)  # both folds in one row
    again = finished("reproduce", jobs[0].info.run_id)
    assert again.returncode == 0, again.stdout
