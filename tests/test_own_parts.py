"""A loss, a metric and a learning-rate schedule of the user: a Python module and a YAML file each is all they need."""

import json

import keras
import numpy as np
import pytest

from experiments import run
from experiments.errors import ExperimentError

PYTHON = '''import keras


@keras.saving.register_keras_serializable("mine")
class SquaredError(keras.losses.Loss):
    """The squared error of the probabilities, times `factor`."""

    def __init__(self, factor=1.0, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, labels, probabilities):
        return self.factor * keras.ops.sum(keras.ops.square(labels - probabilities), axis=-1)


class Doubt(keras.metrics.Mean):
    """The mean probability of all classes but the most probable one; low is good."""

    def update_state(self, labels, probabilities, sample_weight=None):
        return super().update_state(1 - keras.ops.max(probabilities, axis=-1))


def halving(*, learning_rate, steps_per_epoch):
    """The learning rate, half as large after every epoch."""
    return keras.optimizers.schedules.ExponentialDecay(learning_rate, steps_per_epoch, 0.5, staircase=True)
'''
YAML = {
    "loss/squared": "# The squared error of the probabilities.\n_target_: my_parts.SquaredError\nfactor: 0.5\n",
    "metrics/doubt": "# The mean probability of the other classes.\ndoubt:\n  _target_: my_parts.Doubt\n  mode: min\n",
    "schedule/halving": "# Half the learning rate after every epoch.\n_target_: my_parts.halving\n",
}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of options, and the module that they name."""
    for name, text in YAML.items():
        file = tmp_path / "conf" / f"{name}.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    (tmp_path / "my_parts.py").write_text(PYTHON)
    monkeypatch.syspath_prepend(tmp_path)
    return str(tmp_path / "conf")


def test_one_yaml_file_each_is_enough(store, digits, own, tmp_path, monkeypatch):
    words = ["data=npz", f"data.path={digits}", "data.limit=60", "model.filters=[2,4]", "epochs=2", "loss=squared"]
    words += ["metrics=[doubt,auc]", "schedule=halving", "objective=val_doubt", "callbacks=[early_stopping]"]
    with pytest.raises(ExperimentError, match=r"export EXPERIMENTS_ALLOW_TARGETS=my_parts\.SquaredError$"):
        run(words, config_dir=own)
    monkeypatch.setenv("EXPERIMENTS_ALLOW_TARGETS", "my_parts")
    result = run(words, config_dir=own)

    names = {"loss", "accuracy", "auc", "doubt"}
    measured = {*names, "total_loss"}  # the loss of the user
    epochs = {*measured, *(f"val_{name}" for name in measured), "learning_rate", "epoch_seconds"}
    assert set(result.history) == epochs
    assert result.history["learning_rate"] == pytest.approx([0.001, 0.0005])
    best = int(np.argmin(result.history["val_doubt"]))
    assert result.metrics["best/epoch"] == best + 1
    assert result.objective == result.metrics["best/val_doubt"] == result.history["val_doubt"][best]
    record = store.get_run(result.run_id)
    assert set(record.data.metrics) >= {*epochs, *(f"best/val_{name}" for name in names), "test/auc", "test/doubt"}
    assert json.loads(record.data.tags["metric_modes"]) == {
        "loss": "min", "accuracy": "max", "auc": "max", "doubt": "min"
    }  # fmt: skip
    assert record.data.params["metrics"] == "[auc,doubt]" and record.data.params["loss.factor"] == "0.5"
    assert f"On the test set: auc {result.metrics['test/auc']:.4f}, doubt" in record.data.tags["mlflow.note.content"]

    with np.load(store.download_artifacts(result.run_id, "test_predictions.npz")) as test:
        labels, probabilities = test["labels"], test["probabilities"]
    assert result.metrics["test/doubt"] == pytest.approx(1 - probabilities.max(axis=1).mean(), abs=1e-6)
    area = keras.metrics.AUC()
    area.update_state(keras.utils.to_categorical(labels, 10), probabilities)
    assert result.metrics["test/auc"] == pytest.approx(float(area.result()), abs=1e-6)
