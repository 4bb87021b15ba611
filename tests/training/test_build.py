"""Losses, metrics and callbacks: what a run builds of their YAML, and what it refuses before anything is recorded."""

import numpy as np
import pytest

from experiments.config.compose import compose
from experiments.data import mnist
from experiments.dataset import are_probabilities
from experiments.errors import ExperimentError
from experiments.training.build import build, warn_if_badly_scaled

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
    "loss/logits.yaml": "{_target_: keras.losses.CategoricalFocalCrossentropy, from_logits: true}",
    "metrics/logits.yaml": "logits: {_target_: keras.metrics.CategoricalCrossentropy, from_logits: true}",
    "augment/scaled.yaml": "unit: {_target_: keras.layers.Rescaling, scale: 0.01}",
    "augment/dark.yaml": "dark: {_target_: keras.layers.RandomBrightness, factor: 0.1, value_range: [0, 1]}",
    "callbacks/scheduler.yaml": "scheduler: {_target_: keras.callbacks.LearningRateScheduler, schedule: x}",
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
    assert built("metrics=[own]").modes["own"] is None


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
    "loss=logits": "loss.from_logits=true: every model ends in a softmax, so loss gets probabilities.",
    "metrics=[logits]": "metrics.logits.from_logits=true: every model ends in a softmax, so metrics.logits gets",
    "augment=scaled": "augment.unit: keras.layers.Rescaling would scale the training images only, not those to",
    "augment=dark": r"augment.dark: keras.layers.RandomBrightness has value_range \[0, 1\], but it is applied to raw",
    "schedule=cosine callbacks=[scheduler]": "callbacks.scheduler sets the learning rate, and so does schedule=cosine.",
    "metrics=[auc] callbacks=[wrong]": "callbacks.wrong.mode=min with callbacks.wrong.monitor=val_auc would take the "
    "worst epoch for the best. Leave callbacks.wrong.mode out.",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_refused(built, words):
    with pytest.raises(ExperimentError, match=REFUSED[words]):
        built(*words.split())


# Models that repeat what a run adds, or that cannot learn

RESCALING = "{_target_: keras.layers.Rescaling, scale: 0.00392}"
SCALED_BY_ITSELF = {
    "rescaling": RESCALING,
    "normalization": "{_target_: keras.layers.Normalization, mean: 33.3, variance: 6000.0}",
    "unit_normalization": "{_target_: keras.layers.UnitNormalization}",
    "behind others": "{_target_: keras.layers.RandomFlip}, {_target_: keras.layers.ZeroPadding2D}, " + RESCALING,
}
CONV = "{_target_: keras.layers.Conv2D, filters: 2, kernel_size: 3}"
FLATTEN = "{_target_: keras.layers.Flatten}"


@pytest.fixture
def built_of(built, tmp_path):
    """Builds a run on 50 digits whose model has these layers."""

    def build_layers(layers, *words):
        file = tmp_path / "conf" / "model" / "mine.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"_target_: experiments.models.sequential\nclassifier: true\nlayers: [{layers}]\n")
        return built("model=mine", *words)

    return build_layers


@pytest.mark.parametrize("layers", SCALED_BY_ITSELF.values(), ids=SCALED_BY_ITSELF)
@pytest.mark.parametrize("scale", ["unit", "standard", "l2_columns"])
def test_a_model_that_scales_what_is_scaled_already(built_of, layers, scale):
    with pytest.raises(ExperimentError) as refused:
        built_of(f"{layers}, {CONV}, {FLATTEN}", f"scale={scale}")
    assert str(refused.value).startswith("model: its layer ")
    assert str(refused.value).endswith(
        "scales the pixels, which scale has scaled already. Set scale=none, or leave the layer out."
    )


@pytest.mark.parametrize("layers", SCALED_BY_ITSELF.values(), ids=SCALED_BY_ITSELF)
def test_a_model_that_scales_raw_pixels_itself(built_of, layers, caplog):
    parts = built_of(f"{layers}, {CONV}, {FLATTEN}", "scale=none")
    images = np.full((3, 28, 28, 1), 255, np.uint8)
    warn_if_badly_scaled(parts, images)
    assert not caplog.records and are_probabilities(parts.model.predict(images, verbose=0))


def test_raw_pixels_that_nothing_scales(built_of, caplog):
    warn_if_badly_scaled(built_of(f"{CONV}, {FLATTEN}", "scale=none"), np.full((3, 28, 28, 1), 255, np.uint8))
    (record,) = caplog.records
    assert record.getMessage() == (
        "The scaled inputs are huge: their largest absolute value is 2.6e+02. Try scale=unit."
    )


def test_a_scaling_layer_behind_weights_is_part_of_the_model(built_of):
    assert built_of(f"{CONV}, {RESCALING}, {FLATTEN}").model.count_params() == 20 + (26 * 26 * 2 + 1) * 10


def test_a_scaling_inside_a_model_inside_a_model(tmp_path, built, monkeypatch):
    (tmp_path / "nested_net.py").write_text(
        "import keras\n\ndef net(*, input_shape, num_classes):\n"
        "    inner = [keras.Input(input_shape), keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(2, 3)]\n"
        "    layers = [keras.layers.Flatten(), keras.layers.Dense(num_classes, 'softmax')]\n"
        "    return keras.Sequential([keras.Input(input_shape), keras.Sequential(inner), *layers])\n"
    )
    monkeypatch.setenv("EXPERIMENTS_ALLOW_TARGETS", "nested_net")
    (tmp_path / "conf" / "model").mkdir()
    (tmp_path / "conf" / "model" / "nested.yaml").write_text("_target_: nested_net.net\n")
    with pytest.raises(ExperimentError, match=r"^model: its layer rescaling_?\d* \(Rescaling\) scales the pixels"):
        built("model=nested")
    assert built("model=nested", "scale=none").model.output_shape == (None, 10)


NO_GRADIENT = {
    "CategoryEncoding, num_tokens: 12, output_mode: count": "conv2d",
    "Discretization, bin_boundaries: [0.0, 1.0]": "conv2d",
}


@pytest.mark.parametrize("layer", NO_GRADIENT)
def test_a_layer_that_lets_nothing_learn(built_of, layer):
    with pytest.raises(ExperimentError) as refused:
        built_of(f"{CONV}, {FLATTEN}, {{_target_: keras.layers.{layer}}}")
    name = NO_GRADIENT[layer]
    assert str(refused.value) == (
        f"model: layer {name} would not learn, because a layer behind it passes no gradient back. "
        f"Leave that layer out, or set trainable: false for {name}."
    )
    frozen = CONV.replace("}", ", trainable: false}")
    assert built_of(f"{frozen}, {FLATTEN}, {{_target_: keras.layers.{layer}}}").model.trainable_variables
