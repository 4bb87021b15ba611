"""Exported models: each format's own runtime must say what Keras says, or nothing is left."""

import json
import shutil

import keras
import numpy as np
import pytest

from experiments import load, run
from experiments.config.compose import CONF_DIR, compose
from experiments.config.targets import instantiate
from experiments.data import mnist
from experiments.errors import ExperimentError
from experiments.models import with_scaling
from experiments.serving import export
from experiments.serving.classifier import Classifier
from experiments.serving.export import ExportFailed, Images, Limits
from experiments.training.runtime import forget_models

#: All but the one that takes larger images, which tests/test_backbone.py exports, and a narrower copy of conv5.
MODELS = sorted({file.stem for file in (CONF_DIR / "model").glob("*.yaml")} - {"backbone", "conv5_small"})
SCALES = sorted(file.stem for file in (CONF_DIR / "scale").glob("*.yaml"))
#: Format, scaling -> words of the refusal; everything else exports.
REFUSED = {("litert", "l2_columns"): "The exported model differs in litert: "}


@pytest.fixture(scope="module")
def images(digits):
    data = mnist(path=str(digits), validation_fraction=0.1, split_seed=0, limit=None)
    pixels = np.concatenate([data.test_images, data.train_images]).astype(np.float32)
    labels = np.concatenate([data.test_labels, data.train_labels])
    return Images("digits", pixels[:200], labels[:200], pixels[200:300])


@pytest.fixture(scope="module")
def weights(images):
    """Of a net that is sure of these images."""
    model = classifier(images).model
    model.compile(keras.optimizers.Adam(0.003), "sparse_categorical_crossentropy")
    model.fit(images.images, images.labels, batch_size=20, epochs=15, verbose=0)
    return model.get_weights()


def classifier(images, model="conv2", scale="unit", *overrides):
    cfg = compose([f"model={model}", f"scale={scale}", *overrides]).cfg
    forget_models(cfg.precision)
    scaling = instantiate(cfg, "scale", train_images=images.images.astype(np.uint8))
    net = instantiate(cfg, "model", input_shape=(28, 28, 1), num_classes=10)
    return Classifier(f"{model} {scale}", with_scaling(net, scaling, (28, 28, 1)), None, tuple("0123456789"))


def exported(made, form, folder, images, **options):
    return export.export_model(made, form, folder, images, **{"quantize": False, "overwrite": False} | options)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "litert"])
@pytest.mark.parametrize("model", MODELS)
def test_every_model_and_every_scaling_agrees_or_is_refused(model, form, images, tmp_path):
    """Every net with the scaling that it has by default, and two nets with every other one."""
    for scale in SCALES if model in ("conv2", "conv3_batch_norm_dropout") else ["unit"]:
        made = classifier(images, model, scale)
        if (form, scale) in REFUSED:
            with pytest.raises(ExportFailed, match=REFUSED[form, scale]):
                exported(made, form, tmp_path / scale, images)
            assert list((tmp_path / scale).iterdir()) == []
        else:
            checked = exported(made, form, tmp_path / scale, images)
            assert checked.largest_difference <= 1e-4 and checked.equal_labels == 200


@pytest.mark.slow
def test_what_is_written_is_what_is_reported(images, tmp_path):
    made = classifier(images)
    files = [exported(made, form, tmp_path, images).file for form in export.FORMATS]
    assert files == ["model.keras", "saved_model", "model.onnx", "model.tflite"]
    report = json.loads((tmp_path / "export.json").read_text())
    assert list(report) == files
    assert report["model.onnx"]["class_names"] == list(made.class_names)
    assert report["model.onnx"]["bytes"] == (tmp_path / "model.onnx").stat().st_size
    assert {entry["images"] for entry in report.values()} == {"digits"}
    assert {entry["accuracy"] for entry in report.values()} == {report["model.keras"]["accuracy_before"]}
    with pytest.raises(ExperimentError, match=r"model\.keras exists\. Use --overwrite to replace it\.$"):
        exported(made, "keras", tmp_path, images)
    assert exported(made, "keras", tmp_path, images, overwrite=True).file == "model.keras"
    assert exported(made, "saved_model", tmp_path, images, overwrite=True).file == "saved_model"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "litert"])
@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_is_rebuilt_in_float32(precision, form, images, weights, tmp_path):
    made = classifier(images, "conv2", "unit", f"precision={precision}")
    made.model.set_weights(weights)
    assert made.model.layers[-2].compute_dtype == precision.removeprefix("mixed_")
    checked = exported(made, form, tmp_path, images)
    assert 0 < checked.largest_difference <= 1e-2


@pytest.mark.slow
def test_quantized_to_integers_it_is_a_quarter_of_the_size(images, weights, tmp_path):
    made = classifier(images)
    made.model.set_weights(weights)
    whole = exported(made, "litert", tmp_path, images)
    small = exported(made, "litert", tmp_path, images, quantize=True)
    assert small.file == "model_int8.tflite" and small.bytes < 0.35 * whole.bytes
    with pytest.raises(ExperimentError, match=r"^--quantize int8 needs --format litert, not onnx\.$"):
        exported(made, "onnx", tmp_path, images, quantize=True)


def test_a_model_that_differs_is_removed(images, tmp_path, monkeypatch):
    made = classifier(images)
    monkeypatch.setattr(
        export, "load_exported", lambda form, file: lambda pixels: np.eye(10)[np.zeros(len(pixels), int)]
    )
    with pytest.raises(ExportFailed, match=r"labels are equal, and probabilities differ by up to .* was removed\.$"):
        exported(made, "keras", tmp_path, images)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused(images, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ExperimentError, match=r"file cannot be created: File exists\.$"):
        exported(classifier(images), "keras", tmp_path / "file", images)


def test_a_missing_package_is_named_with_how_to_install_it(images, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(ExperimentError, match=r"^--format onnx needs tf2onnx and onnxruntime\. Install it with: pip"):
        exported(classifier(images), "onnx", tmp_path, images)


@pytest.mark.parametrize(
    "difference, equal, limits, exceeded",
    [
        (1e-4, 1000, export.EXACT, False),
        (2e-4, 1000, export.EXACT, True),
        (0, 999, export.EXACT, True),
        (float("nan"), 1000, export.EXACT, True),
        (1e-2, 999, export.FROM_MIXED_PRECISION, False),
        (0, 998, export.FROM_MIXED_PRECISION, True),
        (0.5, 990, export.QUANTIZED, False),
        (0.5, 989, export.QUANTIZED, True),
    ],
)
def test_limits(difference, equal, limits: Limits, exceeded):
    checked = export.ExportCheck("model.onnx", ("0", "1"), 1, "images", 1000, difference, equal, None, None)
    assert checked.exceeds(limits) is exceeded


# What they are compared on


def test_test_images_are_filled_up_with_validation_images(images, digits):
    found = export.check_images(classifier(images), None, ["mnist", f"data.path={digits}"])
    assert found.source == "100 test images of mnist, 40 validation images"
    assert (len(found.images), len(found.labels), len(found.calibration)) == (140, 140, 200)


def test_without_data_images_are_random_and_the_same_every_time(images):
    first, second = (export.check_images(classifier(images), None, []) for _ in range(2))
    assert (first.source, first.images.shape, first.labels) == ("random images", (1000, 28, 28, 1), None)
    assert (first.images == second.images).all()


@pytest.mark.slow
def test_data_that_do_not_fit_the_model_are_refused(images, tmp_path):
    made = Classifier("mine", keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten()]), None, ("a", "b"))
    with pytest.raises(
        ExperimentError, match=r"images of shape \(28, 28, 1\) in 10 classes, but mine takes \(32, 32, 3\)"
    ):
        export.check_images(made, None, ["mnist_5k"])


@pytest.mark.slow
def test_the_model_of_a_run_is_checked_on_the_data_of_the_run(store, digits, tmp_path):
    from experiments import reproduce

    path = tmp_path / "digits.npz"
    shutil.copy(digits, path)
    result = run(["data=mnist", f"data.path={path}", "epochs=1"])
    made = load(result.run_id)
    of_run = reproduce.configuration_of(made.run)
    assert export.check_images(made, of_run, []).source == "100 test images of mnist, 40 validation images"
    path.unlink()
    assert export.check_images(made, of_run, []).source == "random images"
