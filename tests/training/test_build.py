"""Losses, metrics and callbacks: what a run builds of their YAML, and what it refuses before anything is recorded."""

import pytest

from experiments.config.compose import compose
from experiments.data import mnist
from experiments.errors import ExperimentError
from experiments.training.build import build

OPTIONS = {
    "metrics/vector.yaml": "vector: {_target_: keras.metrics.F1Score}",
    "metrics/sparse.yaml": "sparse: {_target_: keras.metrics.SparseTopKCategoricalAccuracy, k: 2}",
    "metrics/own.yaml": "own: {_target_: own_metric.sure}",
    "metrics/own_max.yaml": "own: {_target_: own_metric.sure, mode: max}",
    "metrics/own_best.yaml": "own: {_target_: own_metric.sure, mode: best}",
    "metrics/accuracy.yaml": "accuracy: {_target_: keras.metrics.AUC}",
    "metrics/val_auc.yaml": "val_auc: {_target_: keras.metrics.AUC}",
    "metrics/nameless.yaml": "nameless: {_target_: own_metric.nameless}",
    "metrics/layer.yaml": "layer: {_target_: keras.layers.Flatten}",
    "loss/each.yaml": "{_target_: keras.losses.CategoricalCrossentropy, reduction: none}",
    "loss/sparse.yaml": "{_target_: keras.losses.SparseCategoricalCrossentropy}",
    "loss/metric.yaml": "{_target_: keras.metrics.AUC}",
    "callbacks/wrong.yaml": "wrong: {_target_: keras.callbacks.EarlyStopping, monitor: val_auc, mode: min}",
}
OWN = """import keras


def sure(name):
    return keras.metrics.MeanMetricWrapper(lambda labels, probabilities: keras.ops.max(probabilities, axis=-1), name)


def nameless():
    return keras.metrics.AUC()
"""


@pytest.fixture
def built(tmp_path, monkeypatch, digits):
    """Builds a run on 50 digits whose options may be those above."""
    for name, text in OPTIONS.items():
        file = tmp_path / "conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "own_metric.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("EXPERIMENTS_ALLOW_TARGETS", "own_metric")
    data = mnist(path=str(digits), validation_fraction=0.1, split_seed=0, limit=50)
    return lambda *words: build(compose(words, str(tmp_path / "conf")).cfg, data)


def test_every_metric_knows_what_is_better(built):
    parts = built("metrics=[auc,macro_f1,own_max,top_3_accuracy]", "objective=val_own")
    assert [metric.name for metric in parts.metrics] == ["auc", "macro_f1", "own", "top_3_accuracy"]
    assert parts.modes == {"loss": "min"} | dict.fromkeys(["accuracy", *(m.name for m in parts.metrics)], "max")
    assert parts.mode == "max"
    assert built("objective=val_loss").mode == "min"


def test_a_metric_that_nobody_monitors_needs_no_mode(built):
    assert "own" not in built("metrics=[own]").modes


@pytest.mark.parametrize(("monitor", "mode"), [("val_accuracy", "max"), ("loss", "min"), ("val_auc", "max")])
def test_a_callback_takes_the_mode_of_its_metric(built, monitor, mode):
    words = ["metrics=[auc]", "callbacks=[early_stopping]", f"callbacks.early_stopping.monitor={monitor}"]
    (callback,) = built(*words).callbacks
    assert (callback.monitor, callback.mode) == (monitor, mode)


UNKNOWN_MODE = "it is not known whether a higher or a lower own is better. Add the line mode: max or mode: min to"
NAME = "this cannot be the name of a metric. Choose one of letters, digits and _"
REFUSED = {
    "metrics=[vector]": r"metrics.vector: keras.metrics.F1Score gives values of shape \(10,\), one number is needed. "
    "Choose an average",
    "metrics=[sparse]": r"metrics.sparse: keras.metrics.SparseTopKCategoricalAccuracy cannot take one-hot labels and "
    r"probabilities of shape \(images, 10\): ",
    "metrics=[own] objective=val_own": f"objective=val_own: {UNKNOWN_MODE} the YAML of own.",
    "metrics=[own] callbacks=[early_stopping] callbacks.early_stopping.monitor=val_own": "callbacks.early_stopping."
    f"monitor=val_own: {UNKNOWN_MODE}",
    "metrics=[own_best]": "metrics.own.mode=best is refused. Allowed: max, min.",
    "metrics=[accuracy]": f"metrics.accuracy: {NAME}",
    "metrics=[val_auc]": f"metrics.val_auc: {NAME}",
    "metrics=[nameless]": "metrics.nameless: own_metric.nameless has made a metric named auc",
    "metrics=[layer]": "metrics.layer._target_=keras.layers.Flatten: a keras Metric is needed here.",
    "loss=each": r"loss: keras.losses.CategoricalCrossentropy gives values of shape \(1,\), one number is needed.",
    "loss=sparse": "loss: keras.losses.SparseCategoricalCrossentropy cannot take one-hot labels",
    "loss=metric": "loss._target_=keras.metrics.AUC: a keras Loss is needed here.",
    "metrics=[auc] callbacks=[wrong]": "callbacks.wrong.mode=min with callbacks.wrong.monitor=val_auc would take the "
    "worst epoch for the best. Leave callbacks.wrong.mode out.",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_refused(built, words):
    with pytest.raises(ExperimentError, match=REFUSED[words]):
        built(*words.split())
