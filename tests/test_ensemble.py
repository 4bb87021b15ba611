"""Ensembles: who is chosen, what is recorded, and what the other commands do with the result."""

import itertools
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import load, run
from experiments.compare.comparison import Selection, compare_runs
from experiments.ensemble import ensemble, select
from experiments.errors import ExperimentError
from experiments.reproduce import configuration_of
from experiments.serving.register import register_model
from experiments.tracking.results import model_file, predictions
from experiments.tracking.runs import get_run


def score(probabilities, labels, chosen):
    """Accuracy and mean log-likelihood of the mean of some models."""
    mean = probabilities[list(chosen)].mean(axis=0)
    return (mean.argmax(axis=1) == labels).mean(), np.log(mean[np.arange(len(labels)), labels]).mean()


def random_models(seed, models=5, images=40, classes=3):
    """Models that are right on about two thirds of the images, with probabilities that are sums to 1."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=images)
    evidence = generator.normal(size=(models, images, classes))
    evidence[:, np.arange(images), labels] += 1
    likelihoods = np.exp(evidence)
    return (likelihoods / likelihoods.sum(axis=2, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("seed", range(10))
def test_greedy_choice_is_between_the_best_model_and_the_best_combination(seed):
    probabilities, labels = random_models(seed)
    chosen = select(probabilities, labels, 3)
    every = [score(probabilities, labels, each) for size in (1, 2, 3) for each in
             itertools.combinations_with_replacement(range(5), size)]  # fmt: skip
    alone = max(range(5), key=lambda index: score(probabilities, labels, [index]))
    assert chosen[0] == alone
    assert score(probabilities, labels, [alone])[0] <= score(probabilities, labels, chosen)[0] <= max(every)[0]
    # Each model that joins is the one that a search through all of them finds.
    for place in range(1, len(chosen)):
        joined = [score(probabilities, labels, [*chosen[:place], index])[0] for index in range(5)]
        assert joined[chosen[place]] == max(joined)
    assert select(probabilities, labels, 3) == chosen


def test_two_models_that_correct_each_other_are_both_chosen():
    labels = np.array([0, 0, 1, 1])
    right, unsure, wrong = [0.9, 0.1], [0.4, 0.6], [0.1, 0.9]
    first = [right, unsure, wrong, wrong]  # wrong on the second image only
    second = [unsure, right, wrong, wrong]
    third = [wrong, wrong, right, right]
    probabilities = np.array([third, second, first], np.float32)
    assert sorted(select(probabilities, labels, 5)) == [1, 2]


def test_equal_models_are_no_ensemble():
    probabilities, labels = random_models(0, models=1)
    assert select(np.repeat(probabilities, 3, axis=0), labels, 5) == [0]


@pytest.fixture(scope="module")
def trained(shared_store, digits):
    """Runs of three seeds on the same data, one on other data, one without a model."""
    words = ["data=mnist", f"data.path={digits}", "epochs=1", "model.filters=[8,8]", "model.dense_units=[]"]
    words += ["optimizer.learning_rate=0.003"]
    ids = [run([*words, f"seed={seed}"]).run_id for seed in range(3)]
    other = run([*words, "data.validation_fraction=0.3"]).run_id
    bare = run([*words, "seed=3", "optimizer.learning_rate=0.02", "epochs=3", "tracking.model=false"]).run_id
    return SimpleNamespace(client=shared_store, ids=ids, other=other, bare=bare)


@pytest.mark.slow
def test_an_ensemble_is_a_run_that_every_command_takes(trained, capsys, tmp_path):
    made = ensemble(trained.ids)
    said = capsys.readouterr().out
    assert said.startswith("Chosen from 3 runs on 40 validation images:\n")
    assert f"Recorded as {made.name} ({made.run_id})\n" in said
    members = made.tags["members"].split()
    assert 2 <= len(members) <= 5 and set(members) <= set(trained.ids)
    assert made.name == f"ensemble of {len(members)}" and made.params["model"] == "ensemble"
    for part, metric in (("validation", "best/val_accuracy"), ("test", "test/accuracy")):
        means = np.mean([predictions(get_run(run_id), part).probabilities for run_id in members], axis=0)
        recorded = predictions(made, part)
        np.testing.assert_allclose(recorded.probabilities, means, atol=1e-6)
        assert made.metrics[metric] == (means.argmax(axis=1) == recorded.labels).mean()
    best = max(get_run(run_id).metrics["best/val_accuracy"] for run_id in members)
    assert made.metrics["best/val_accuracy"] >= best

    # Its model says what was recorded, also in a process without this package.
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28, 1)).astype("float32")
    expected = np.mean([load(run_id).predict(images) for run_id in members], axis=0)
    np.testing.assert_allclose(load(made.run_id).predict(images), expected, atol=1e-6)
    file = shutil.copy(model_file(made, tmp_path), tmp_path / "ensemble.keras")
    np.save(tmp_path / "images.npy", images)
    program = (
        "import sys, keras, numpy; model = keras.saving.load_model(sys.argv[1])\n"
        "numpy.save(sys.argv[3], model.predict(numpy.load(sys.argv[2]), verbose=0))\n"
        "assert not [name for name in sys.modules if name.startswith('experiments')]\n"
    )
    words = [sys.executable, "-I", "-c", program, file, tmp_path / "images.npy", tmp_path / "said.npy"]
    subprocess.run(list(map(str, words)), check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "said.npy"), expected, atol=1e-6)

    rows = compare_runs(Selection("", [made, *map(get_run, trained.ids)])).rows
    assert made.run_id in [run.run_id for row in rows for run in row.runs] and len(rows) == 2
    assert "is now version 1 of digits and its champion" in register_model(made.run_id, "digits")
    with pytest.raises(ExperimentError, match="is an ensemble, which was not trained"):
        configuration_of(made)
    # The same runs make the same ensemble.
    assert ensemble(trained.ids).tags["members"] == made.tags["members"]


@pytest.mark.slow
def test_an_ensemble_that_cannot_be_is_refused(trained):
    first = trained.ids[0]
    with pytest.raises(ExperimentError, match="An ensemble needs at least two finished runs"):
        ensemble([first, first])
    with pytest.raises(ExperimentError, match="is on other data than"):
        ensemble([first, trained.other])
    with pytest.raises(ExperimentError, match="has no model"):
        ensemble([*trained.ids, trained.bare])
    with pytest.raises(ExperimentError, match="There is no sweep in this store yet"):
        ensemble(["none-such"])
    copy = trained.client.create_run(get_run(first).experiment_id, tags=dict(get_run(first).tags))
    trained.client.set_terminated(copy.info.run_id)
    with pytest.raises(ExperimentError, match="has no recorded predictions"):
        ensemble([first, copy.info.run_id])
