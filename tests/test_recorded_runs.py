"""What version 0.1 has recorded can still be compared, trained again, used and registered."""

import csv
import json
import re
import subprocess

import mlflow
import numpy as np
import pytest
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf
from PIL import Image

from commands import EXPERIMENTS, runs
from experiments import ExperimentError, load
from experiments.data import mnist_5k
from experiments.reproduce import reproduce

SINGLE = "d8ffacc3c7a8454f9fd4eb9157836e6a"
SWEEP = "optimizer.learning_rate=0.03,0.00001-97f33b"
BEST = "bfa0b9370d74489ca76201f9b81e8b4d"
SEARCH = "optimizer.learning_rate=tag(log, interval(1e-3, 1e-1))-003f7a"
TRIAL = "4ea7101ac00f4b7ba5655f996e180661"
DIVERGED = "ea101e0042ba4d209db354f8820017fb"
FAILED = "01eea8afa80249c9911003adeee949a9"


def command(*words):
    return subprocess.run([EXPERIMENTS, *words], capture_output=True, text=True, check=False)


def targets(node):
    """Every `_target_` in a configuration."""
    if isinstance(node, DictConfig):
        yield from ([node["_target_"]] if "_target_" in node else [])
        node = list(node.values())
    if isinstance(node, list | ListConfig):
        for inner in node:
            yield from targets(inner)


def test_every_class_and_function_that_they_name_is_still_there(recorded_store, tmp_path):
    files = list(tmp_path.rglob("config.yaml"))
    assert len(files) == 10
    names = {name for file in files for name in targets(OmegaConf.load(file))}
    assert {name for name in names if name.startswith("experiments.")} == {
        "experiments.data.mnist_5k",
        "experiments.models.convnet",
        "experiments.models.rescaling",
        "experiments.schedules.constant",
        "experiments.schedules.cosine",
    }
    assert all(callable(get_object(name)) for name in names)


@pytest.mark.parametrize("name", [SWEEP, SEARCH])
def test_a_sweep_has_its_table(recorded_store, tmp_path, name):
    done = command("compare", name, "--csv", str(tmp_path / "table.csv"))
    assert (done.returncode, done.stderr) == (0, "")
    (parent,) = (run for run in runs(recorded_store) if run.data.tags.get("sweep.name") == name)
    place = f"{parent.info.artifact_uri}/leaderboard.csv"
    then = list(csv.DictReader(mlflow.artifacts.load_text(place).splitlines()))
    now = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert len(then) == (2 if name == SWEEP else 3)
    for column in ("rank", "optimizer.learning_rate", "seeds", "run_ids"):
        assert [row[column] for row in now] == [row[column] for row in then]
    for column in ("best/val_accuracy", "test_accuracy"):
        assert [float(row[column]) for row in now] == pytest.approx([float(row[column]) for row in then], rel=1e-12)


def test_the_latest_sweep_is_the_search_and_the_other_is_known_by_name(recorded_store):
    assert "optimizer.learning_rate=0.01264 ranks first" in command("compare").stdout
    done = command("compare", SWEEP[:-1])
    assert done.returncode == 2
    assert SWEEP in done.stderr


@pytest.mark.parametrize("run", [SINGLE, BEST, TRIAL, DIVERGED])
def test_a_run_is_had_again(recorded_store, run, capsys):
    assert reproduce(run, tolerance=1e-4)  # on the same kind of processor it is 0
    output = capsys.readouterr().out
    again, then = runs(recorded_store)[0].data, recorded_store.get_run(run).data
    assert again.tags["reproduces"] == run
    for name in ("data.sha256", "data.validation_sha256", "data.test_sha256"):
        assert again.tags[name] == then.tags[name]
    assert re.search(r"^host +elsewhere ", output, re.MULTILINE)
    told = re.search(r"^code\.sha256 +1f3a808ab306 +(\w+)$", output, re.MULTILINE)
    assert bool(told) == (again.tags["code.sha256"] != then.tags["code.sha256"])


def test_what_has_no_numbers_is_refused_for_its_reason(recorded_store):
    with pytest.raises(ExperimentError, match="recorded no numbers to compare: ValueError: dtype='string'"):
        reproduce(FAILED)
    with pytest.raises(ExperimentError, match="has no model: its training has diverged"):
        load(DIVERGED)
    with pytest.raises(ExperimentError, match=r"has no model: it was trained with tracking\.model=false"):
        load(TRIAL)


@pytest.mark.parametrize(("name", "run"), [(SINGLE, SINGLE), (f"best:{SWEEP}", BEST)])
def test_a_model_says_what_it_said(recorded_store, tmp_path, name, run):
    file = recorded_store.download_artifacts(run, "test_predictions.npz", str(tmp_path))
    images = mnist_5k(validation_fraction=0.1111, split_seed=0, limit=100).test_images
    with np.load(file) as recorded:
        assert load(name).predict(images) == pytest.approx(recorded["probabilities"], abs=1e-6)


@pytest.mark.slow
def test_predict_says_of_a_file_what_the_run_has_recorded(recorded_store, tmp_path):
    file = recorded_store.download_artifacts(BEST, "test_predictions.npz", str(tmp_path))
    images = mnist_5k(validation_fraction=0.1111, split_seed=0, limit=100).test_images
    Image.fromarray(images[7, ..., 0]).save(tmp_path / "digit.png")
    done = command("predict", BEST, str(tmp_path / "digit.png"), "--prepare", "none", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    (said,) = json.loads(done.stdout)
    with np.load(file) as recorded:
        assert list(said["probabilities"].values()) == pytest.approx(recorded["probabilities"][7], abs=1e-6)


def test_they_can_be_registered(recorded_store):
    first = command("register", SINGLE, "--name", "digits")
    assert first.stdout.endswith(" is now version 1 of digits and its champion: it is the first version.\n")
    assert load("models:/digits@champion").run.run_id == SINGLE
    second = command("register", SWEEP, "--name", "digits", "--force")
    assert " is now version 2 of digits and its champion: " in second.stdout
    assert recorded_store.get_model_version_by_alias("digits", "champion").tags["mean"] == "0.315"
