"""The Python and YAML files of the how-to guides do what their pages say."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_docs import ROOT, commands, split_options, write_files

from experiments import run


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Writes the files of a how-to guide into the current folder, which Python imports from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("EXPERIMENTS_ALLOW_TARGETS", "my_data,my_files")
    return lambda page: write_files(ROOT / "docs" / "how-to" / page, tmp_path)


def trainings(page):
    """What the commands of a guide that train once are given, made small, and their `--config-dir`."""
    for words in commands(ROOT / "docs" / "how-to" / page)[0]:
        if words[0] == "train" and not {"-m", "dry_run=true"} & set(words):
            overrides, config_dir = split_options(words[1:])
            kept = [word for word in overrides if not word.startswith("epochs=")]
            yield [*kept, "epochs=1", "data.limit=60", "tracking.model=false"], config_dir


@pytest.mark.slow
@pytest.mark.parametrize("page", ["own-loss-and-metric.md", "own-architecture.md"])
def test_own_parts_of_keras_train(recipe, store, monkeypatch, page):
    recipe(page)
    monkeypatch.setenv("EXPERIMENTS_ALLOW_TARGETS", "my_parts,my_models")
    results = [run(words, config_dir=config_dir) for words, config_dir in trainings(page)]
    assert len(results) > 2
    assert {store.get_run(result.run_id).info.status for result in results} == {"FINISHED"}


def test_a_table_of_image_files(recipe, store, tmp_path):
    recipe("own-images.md")
    (tmp_path / "scans").mkdir()
    lines = ["path,label,split"]
    for number in range(40):
        Image.fromarray(np.full((64, 64), number * 6, np.uint8)).save(tmp_path / "scans" / f"{number}.png")
        lines.append(
            f"scans/{number}.png,{'benign' if number % 2 else 'malignant'},{'test' if number < 10 else 'train'}"
        )
    (tmp_path / "scans.csv").write_text("\n".join(lines))
    ((words, _),) = (found for found in trainings("own-images.md") if "data=csv" in found[0])
    with np.load(Path(run(words).artifacts, "test_predictions.npz")) as test:
        assert test["labels"].tolist() == [1, 0] * 5  # malignant, benign


def test_own_data(recipe, compose, store):
    from experiments.config.targets import instantiate

    recipe("own-images.md")
    data = instantiate(compose("data=shapes", config_dir="mine").cfg, "data")
    assert data.class_names == ("square", "disk")
    assert (data.image_shape, data.num_images, len(data.test_labels)) == ((28, 28, 1), 1000, 200)
    result = run(["data=shapes", "data.number=200", "epochs=1"], config_dir="mine")
    assert store.get_run(result.run_id).data.params["data.noise"] == "128"


@pytest.mark.slow
def test_imbalance(recipe, store):
    recipe("imbalance.md")
    runpy.run_path("imbalanced.py")
    words = ["data=npz", "data.path=imbalanced.npz", "metrics=[balanced_accuracy]", "tracking.model=false"]
    words += ["objective=val_balanced_accuracy", "model.filters=[8,16]", "epochs=4", "seed=3"]
    plain, balanced = (run([*words, f"class_weight={setting}"]) for setting in ("none", "balanced"))
    assert balanced.metrics["test/macro_f1"] > plain.metrics["test/macro_f1"] + 0.1
    notes = [store.get_run(result.run_id).data.tags["mlflow.note.content"] for result in (plain, balanced)]
    assert "The model never predicts " in notes[0] and "largest class 10.00 %, chance 10.00 %" in notes[1]
    with np.load(Path(balanced.artifacts, "test_predictions.npz")) as test:
        right = test["probabilities"].argmax(axis=1) == test["labels"]
    assert balanced.metrics["test/balanced_accuracy"] == pytest.approx(right.mean(), abs=1e-6)  # classes of equal size
    assert balanced.history["total_loss"] != balanced.history["loss"]


@pytest.mark.slow
def test_fine_tuning(recipe, store):
    recipe("fine-tune.md")
    runpy.run_path("split_digits.py")
    words = ["data=npz", "model=conv2"]
    low = ["data.path=low.npz", "model.dense_units=[128]", "data.limit=1000", "epochs=5"]
    first = run([*words, *low]).run_id
    few = ["data.path=few.npz", "epochs=10", "tracking.model=false"]
    tuned, scratch = (run([*words, *few, f"init_from={start}"]) for start in (first, "null"))
    assert store.get_run(tuned.run_id).data.params["init_from"].startswith(first)
    assert tuned.metrics["best/val_accuracy"] > scratch.metrics["best/val_accuracy"] + 0.02


def test_own_files(recipe, compose, tmp_path):
    from experiments.config.targets import instantiate

    recipe("own-images.md")
    (tmp_path / "photos").mkdir()
    for number in range(20):
        wide = np.full((10, 30, 3), number, np.uint8)
        wide[:, 10:20] = 100 + number
        Image.fromarray(wide).save(tmp_path / "photos" / f"{'cat' if number % 2 else 'dog'}_{number}.png")
    data = instantiate(compose("data=by_name", config_dir="mine").cfg, "data")
    assert (data.class_names, data.image_shape, data.num_images) == (("cat", "dog"), (64, 64, 3), 20)
    assert data.train_images.min() > 20  # cropped to the middle, and not stretched
    odd = data.train_images[:, 32, 32, 0] % 2 == 1
    assert (odd == (data.train_labels == 0)).all()


def test_own_figure(recipe, store):
    recipe("own-figure.md")
    made = runpy.run_path("my_figure.py")
    assert Path(made["result"].artifacts, "figures", "recall.png").stat().st_size > 1000
    bars = made["figure"].axes[0].patches
    labels, probabilities = np.array([0, 0, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    assert len(bars) == 10
    assert [bar.get_height() for bar in made["recall_by_class"](labels, probabilities).axes[0].patches] == [0.5, 1.0]
