"""Models of keras.applications with their own preprocessing, from a file of weights to an exported model."""

import shlex
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from commands import model_server
from experiments import load, run
from experiments.config.identity import code_sha256
from experiments.errors import ExperimentError
from experiments.images import files
from experiments.models import backbone
from experiments.serving import export, predict
from experiments.tracking.runs import get_run, history
from experiments.train import plan
from experiments.training.layers import named_layers

WORDS = ["model=backbone", "scale=none", "data=folder", "data.image_size=[96,96]", "data.color_mode=rgb"]


@pytest.fixture
def photos(tmp_path):
    """Twenty reddish and twenty bluish images."""
    random = np.random.default_rng(0)
    for channel, name in ((0, "red"), (2, "blue")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            pixels = random.integers(0, 120, (96, 96, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    return str(tmp_path / "photos")


@pytest.fixture
def weights(tmp_path):
    """A file of weights without the top, as a download would be."""
    features = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(96, 96, 3))
    features.save_weights(tmp_path / "mine.weights.h5")
    return str(tmp_path / "mine.weights.h5")


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("MobileNetV2", "mobilenet_v2"),
        ("VGG16", "vgg16"),  # blue first, minus the mean
        ("MobileNetV3Small", "mobilenet_v3"),  # scaled inside
    ],
)
def test_pixels_are_preprocessed_as_the_weights_need_it(name, module):
    model = backbone(input_shape=(32, 32, 3), num_classes=2, name=name, weights=None, dropout=0.0)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("float32")
    (features,) = (layer for layer in model.layers if isinstance(layer, keras.Model))
    outputs = features(getattr(keras.applications, module).preprocess_input(pixels.copy()))
    for layer in ("average", "classifier", "softmax"):
        outputs = model.get_layer(layer)(outputs)
    assert np.asarray(model(pixels)) == pytest.approx(np.asarray(outputs), abs=1e-6)


def test_gray_images_have_three_equal_channels():
    gray = backbone(input_shape=(32, 32, 1), num_classes=3, name="MobileNetV2", weights=None, dropout=0.1)
    color = backbone(input_shape=(32, 32, 3), num_classes=3, name="MobileNetV2", weights=None, dropout=0.1)
    color.set_weights(gray.get_weights())
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1)).astype("float32")
    assert np.asarray(gray(pixels)) == pytest.approx(np.asarray(color(np.repeat(pixels, 3, axis=-1))), abs=1e-6)


def test_the_weights_are_those_of_the_file(weights):
    model = backbone(input_shape=(32, 32, 3), num_classes=2, name="MobileNetV2", weights=weights, dropout=0.0)
    features = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(32, 32, 3))
    features.load_weights(weights)
    loaded = named_layers(model)
    for name, layer in named_layers(features).items():
        assert all((a == b).all() for a, b in zip(layer.get_weights(), loaded[name].get_weights(), strict=True))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"name": "MobilNetV2"},
            r"^model\.name=MobilNetV2: keras\.applications has no such model\. Did you mean Mobil",
        ),
        ({"weights": "none.weights.h5"}, r"^model\.weights=none\.weights\.h5: there is no such file\.$"),
        (
            {"name": "Xception"},
            r"^model\.name=Xception: images of 40 x 32 pixels are too small for it; the smallest ones are 71 x 71\. "
            r"Set data\.image_size=\[71,71\] or more, or choose another model\.$",
        ),
        (
            {"weights": __file__},
            r"test_backbone\.py cannot be loaded into MobileNetV2: .* Save the weights of a model ",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(changed, message):
    given = {"name": "MobileNetV2", "weights": None, "dropout": 0.2} | changed
    with pytest.raises(ExperimentError, match=message):
        backbone(input_shape=(40, 32, 3), num_classes=2, **given)


def test_another_scale_is_refused(compose, photos):
    with pytest.raises(ExperimentError) as caught:
        plan(compose(*WORDS, f"data.path={photos}", "scale=unit"))
    assert str(caught.value) == (
        "model: its layer preprocessing (Rescaling) scales the pixels, which scale has scaled already. "
        "Set scale=none, or choose another model."
    )


@pytest.mark.slow
def test_from_a_file_of_weights_to_an_exported_model(store, photos, weights, tmp_path):
    words = [*WORDS, f"data.path={photos}", "batch_size=8", f"model.weights={weights}", "epochs=2"]
    later = get_run(run([*words, "freeze=all_but_head", "unfreeze_at_epoch=2"]).run_id)
    assert len(history(later)["loss"]) == 2
    classifier = load(later.run_id)
    prepare = predict.preparation(classifier, None)
    found, rejected = predict.predict_files(classifier, files([photos]), prepare)
    assert (len(found), rejected, classifier.class_names) == (40, [], ("blue", "red"))
    images = export.check_images(classifier, None, [])
    checked = export.export_model(classifier, "saved_model", tmp_path / "out", images, quantize=False, overwrite=False)
    assert checked.largest_difference < 1e-5 and (tmp_path / "out" / checked.file).exists()
    pixels = np.stack([np.asarray(Image.open(file)) for file in files([photos])[::10]])
    with model_server(f"runs:/{later.run_id}/model") as answer:
        served = answer(pixels)["predictions"]
    for probabilities, said in zip(served, classifier.predict(pixels), strict=True):
        assert probabilities == pytest.approx(dict(zip(("blue", "red"), said, strict=True)), abs=1e-6)


def test_the_file_of_weights_is_part_of_the_identity(compose, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    configuration = compose("model=backbone", "model.weights=mine.weights.h5")
    digests = [code_sha256("own", configuration.cfg)]
    Path(weights).write_bytes(b"other")
    digests.append(code_sha256("own", configuration.cfg))
    assert len({"own", *digests}) == 3
    assert f"weights: {weights}" in configuration.as_yaml
    assert shlex.split(configuration.command)[-1] == f"model.weights='{weights}'"
