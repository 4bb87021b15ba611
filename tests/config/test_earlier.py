"""Old commands, YAML files and recorded runs mean today what they meant in the version that they were written for."""

import shlex
from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from experiments.config.compose import compose
from experiments.config.configuration import plain_values
from experiments.config.earlier import ADDED, RENAMED, current_keys, current_parameters, current_words
from experiments.config.names import names

OLD_WORDS = {
    "label_smoothing=0.1": "loss.label_smoothing=0.1",
    "label_smoothing=0,0.1 seed=1": "loss.label_smoothing=0,0.1 seed=1",
    "++label_smoothing=0.1": "++loss.label_smoothing=0.1",
    "objective.metric=val_loss objective.mode=min": "objective=val_loss",
    "-m --config-dir=own model=conv3 +tracking.tags.label_smoothing=x": "-m --config-dir=own model=conv3 "
    "+tracking.tags.label_smoothing=x",
}


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here builds a model."""


@pytest.mark.parametrize("words", OLD_WORDS)
def test_words_of_a_command_line(words):
    assert current_words(shlex.split(words)) == shlex.split(OLD_WORDS[words])


@pytest.mark.parametrize("words", ["objective.metric=val_loss objective.mode=min", "objective={metric:val_loss}"])
def test_an_old_objective(words):
    assert compose(shlex.split(words)).variant == compose(["objective=val_loss"]).variant


def test_an_old_command_is_the_same_run():
    old = compose(["label_smoothing=0.1", "objective.metric=val_loss", "objective.mode=min"])
    new = compose(["loss.label_smoothing=0.1", "objective=val_loss"])
    assert (old.variant, names(old).run, old.command) == (new.variant, names(new).run, new.command)


@pytest.fixture
def old_files(tmp_path):
    """A folder of options that were written for version 0.1."""
    files = {
        "experiment/mine": "# @package _global_\nlabel_smoothing: 0.1\nobjective:\n  metric: val_loss\n  mode: min\n",
        "callbacks/stop": "stop:\n  _target_: keras.callbacks.EarlyStopping\n"
        "  monitor: ${objective.metric}\n  mode: ${objective.mode}\n",
    }
    for name, text in files.items():
        file = tmp_path / f"{name}.yaml"
        file.parent.mkdir()
        file.write_text(text)
    return str(tmp_path)


def test_old_yaml_files(old_files):
    cfg = compose(["experiment=mine", "callbacks=[stop]"], old_files).cfg
    assert (cfg.loss.label_smoothing, cfg.objective) == (0.1, "val_loss") and "label_smoothing" not in cfg
    assert cfg.callbacks.stop == {"_target_": "keras.callbacks.EarlyStopping", "monitor": "val_loss"}


@pytest.mark.parametrize("key", ["label_smoothing", "loss.label_smoothing"])
def test_the_command_line_beats_an_old_key_in_a_file(old_files, key):
    assert compose(["experiment=mine", f"{key}=0.2"], old_files).cfg.loss.label_smoothing == 0.2


def test_parameters_of_a_recorded_run():
    old = {"model": "conv2", "label_smoothing": "0.0", "objective.metric": "val_loss", "objective.mode": "min"}
    assert current_parameters(old) == {
        "model": "conv2",
        "loss": "categorical_crossentropy",
        "loss._target_": "keras.losses.CategoricalCrossentropy",
        "loss.label_smoothing": "0.0",
        "metrics": "[]",
        "objective": "val_loss",
    }
    new = compose([]).parameters
    assert current_parameters(new) == new


def test_swept_keys():
    old, new = ({key: "0,0.1", "seed": "range(3)"} for key in ("label_smoothing", "loss.label_smoothing"))
    assert current_keys(old) == current_keys(new) == new
    assert current_keys([old, new]) == [new, new]
    assert current_keys(20) == 20


def test_keys_that_are_no_parameter(tmp_path):
    words = ["tracking.patience=3", "hydra.sweeper.list=[{model: conv2}]"]
    assert current_words(words) == ["tracking.store_timeout=3", "hydra.sweeper.include=[{model: conv2}]"]
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ntracking:\n  patience: 3\n")
    assert compose(["experiment=mine"], str(tmp_path)).cfg.tracking.store_timeout == 3
    assert compose(["tracking.patience=4"]).cfg.tracking.store_timeout == 4


def test_no_key_of_today_is_an_old_one():
    today = compose([]).parameters
    assert not set(RENAMED) & set(today)


def test_a_key_that_came_later_leaves_the_variant_as_it_was_unless_it_is_used():
    for choices in (["data=folder"], []):
        now = compose(choices)
        values = plain_values(now.cfg)
        for key in ADDED:
            group, _, name = key.rpartition(".")
            (values[group] if group else values).pop(name, None)
        assert replace(now, cfg=OmegaConf.create(values)).variant == now.variant
    assert compose(["data=folder", "data.resize=pad"]).variant != compose(["data=folder"]).variant
