"""Registering models: who becomes champion, and that a served model says what predict says."""

from types import SimpleNamespace

import numpy as np
import pytest

from commands import experiments, model_server
from experiments import load, run
from experiments.errors import ExperimentError
from experiments.serving.register import register_model
from experiments.tracking.runs import get_run

GOOD = ["epochs=3", "optimizer.learning_rate=0.005"]


@pytest.fixture(scope="module")
def trained(shared_store, digits):
    """Runs on the same data: a good one, one with another seed, one hardly different, and a bad one."""
    data = ["data=mnist", f"data.path={digits}", "model.filters=[8,8]", "model.dense_units=[]"]
    own = {
        "good": GOOD,
        "again": [*GOOD, "seed=1"],
        "similar": [*GOOD, "model.dropout=0.01"],
        "bad": ["epochs=1", "optimizer.learning_rate=1e-9"],
        "other_data": [*GOOD, "data.validation_fraction=0.2"],
        "diverged": ["epochs=1", "optimizer=sgd", "optimizer.learning_rate=1e38"],
    }
    ids = {name: run([*data, *words]).run_id for name, words in own.items()}
    return SimpleNamespace(client=shared_store, **ids)


def champion(trained, name):
    return trained.client.get_model_version_by_alias(name, "champion")


@pytest.mark.slow
def test_the_first_one_is_champion_and_its_numbers_are_with_it(trained):
    said = register_model(trained.good, "first")
    assert said.endswith("is now version 1 of first and its champion: it is the first version.")
    version = champion(trained, "first")
    run = get_run(trained.good)
    assert (version.run_id, version.tags["run_ids"]) == (trained.good, trained.good)
    assert version.tags["mean"] == f"{run.metrics['best/val_accuracy']:.6g}"
    assert f"best/val_accuracy {run.metrics['best/val_accuracy']:.4f} [" in version.description
    assert f"Test accuracy of this model: {run.metrics['test/accuracy']:.4f}." in version.description
    assert f"{run.metrics['cost/macs']:,.0f} MACs" in version.description
    assert f"experiments reproduce {trained.good}" in version.description
    assert register_model(trained.good, "first").endswith("is already version 1 of first and its champion.")
    assert len(trained.client.search_model_versions("name = 'first'")) == 1


@pytest.mark.slow
def test_a_worse_one_does_not_become_champion(trained):
    register_model(trained.good, "worse")
    said = register_model(trained.bad, "worse")
    assert (
        " and its challenger: it is worse than version 1 (best/val_accuracy " in said and "exact McNemar, p = " in said
    )
    assert champion(trained, "worse").run_id == trained.good
    assert trained.client.get_model_version_by_alias("worse", "challenger").run_id == trained.bad


@pytest.mark.slow
def test_a_better_one_does(trained):
    register_model(trained.bad, "better")
    assert " and its champion: it is better than version 1 (best/val_accuracy " in register_model(
        trained.good, "better"
    )
    assert champion(trained, "better").run_id == trained.good


@pytest.mark.slow
def test_equal_ones_leave_it_alone(trained):
    register_model(trained.good, "equal")
    assert "challenger: it has the same configuration as version 1" in register_model(trained.again, "equal")
    assert "challenger: there is no significant difference from version 1 (" in register_model(trained.similar, "equal")
    assert "could not be compared with version 1 (The runs are on different data" in register_model(
        trained.other_data, "equal"
    )
    assert champion(trained, "equal").run_id == trained.good
    said = register_model(trained.bad, "equal", force=True)
    assert "its champion: made champion with --force; it is worse than version 1" in said
    assert champion(trained, "equal").run_id == trained.bad


@pytest.mark.slow
def test_what_cannot_be_registered_is_refused(trained):
    with pytest.raises(ExperimentError, match=r"^0123: there is no such run in this store\."):
        register_model("0123", "none")
    with pytest.raises(ExperimentError, match=r"^There is no sweep in this store yet\."):
        register_model("quick", "none")
    with pytest.raises(ExperimentError, match=r" has no model: its training has diverged\.$"):
        register_model(trained.diverged, "none")
    trained.client.set_tag(trained.again, "reproduces", trained.good)
    with pytest.raises(ExperimentError, match=rf" reproduces another run\. Register the original run: {trained.good}$"):
        register_model(trained.again, "none")
    trained.client.delete_tag(trained.again, "reproduces")
    with pytest.raises(ExperimentError, match=r"^a/b cannot be registered: Invalid model name 'a/b'\."):
        register_model(trained.good, "a/b")
    assert trained.client.search_registered_models("name = 'none'") == []


@pytest.mark.slow
def test_a_served_model_says_what_predict_says(trained):
    register_model(trained.good, "served")
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28, 1), dtype=np.uint8)
    with model_server("models:/served@champion") as answer:
        served = answer(images)["predictions"]
    assert [list(probabilities) for probabilities in served] == [list("0123456789")] * 20
    said = load("models:/served@champion").predict(images)
    assert np.array([list(probabilities.values()) for probabilities in served]) == pytest.approx(said, abs=1e-6)


@pytest.mark.slow
def test_of_a_sweep_the_median_seed_of_the_best_variant_is_taken(trained):
    words = [
        "optimizer.learning_rate=1e-9,0.005",
        "seed=0,1,2",
        "data.limit=100",
        "epochs=2",
        "hydra.launcher.n_jobs=2",
    ]
    done = experiments("-m", *words)
    assert done.returncode == 0, done.stdout
    assert " and its champion: it is the first version." in register_model(
        "optimizer.learning_rate=1e-9,0.005", "swept"
    )
    children = trained.client.search_runs(
        [trained.client.get_experiment_by_name("mnist_5k").experiment_id],
        "params.`optimizer.learning_rate` = '0.005'",
        order_by=["metrics.`best/val_accuracy`"],
    )
    version = champion(trained, "swept")
    assert set(version.tags["run_ids"].split()) == {child.info.run_id for child in children}
    middle = children[1].data.metrics["best/val_accuracy"]
    assert get_run(version.run_id).metrics["best/val_accuracy"] == middle
    best = load("best:optimizer.learning_rate=1e-9,0.005").run
    assert best.metrics["best/val_accuracy"] == children[-1].data.metrics["best/val_accuracy"]


def test_last_is_the_latest_run_and_not_the_latest_sweep(recorded_store):
    experiments = [found.experiment_id for found in recorded_store.search_experiments()]
    found = recorded_store.search_runs(experiments, order_by=["attributes.start_time DESC"])
    latest = next(run for run in found if "sweep.name" not in run.data.tags)
    assert any("sweep.name" in run.data.tags for run in found)
    with pytest.raises(ExperimentError, match=rf"^{latest.info.run_id} .+ has no model: it did not finish"):
        register_model("last", "digits")


def test_last_of_an_empty_store_is_refused_and_makes_no_store(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(ExperimentError, match=rf"^Nothing is recorded in sqlite:///{tmp_path}/mlflow\.db yet\."):
        register_model("last", "digits")
    assert list(tmp_path.iterdir()) == []
