"""Using a trained model: its names, what it says of images, and what is refused."""

import csv
import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
from types import SimpleNamespace

import keras
import numpy as np
import psutil
import pytest
from click.testing import CliRunner
from PIL import Image
from playwright.sync_api import expect

import digits as examples
from browser import opened_browser
from commands import EXPERIMENTS, free_port
from experiments import cli, images, load, run
from experiments.config.compose import compose
from experiments.config.targets import instantiate
from experiments.errors import ExperimentError
from experiments.serving import predict
from experiments.tracking import runs
from experiments.tracking.results import model_file, predictions


@pytest.fixture(scope="module")
def trained(shared_store):
    """A net trained on the embedded digits, and a run that has kept none."""
    result = run(["epochs=3", "model.dropout=0.3"])
    without = run(["epochs=1", "data.limit=40", "tracking.model=false"])
    return SimpleNamespace(run=runs.get_run(result.run_id), without=without)


@pytest.fixture(scope="module")
def classifier(trained):
    return load(trained.run.run_id)


def command(*words):
    return subprocess.run([EXPERIMENTS, "predict", *words], env=os.environ, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_digits_of_other_hands_and_fonts_are_read(classifier):
    given, labels = examples.collection()
    prepared = np.stack([images.as_mnist(image) for image in given])
    right = classifier.predict(prepared).argmax(axis=1) == labels
    assert right.mean() >= 0.85
    resized = np.stack([images.resized(image, (28, 28, 1)) for image in given])
    assert (classifier.predict(resized).argmax(axis=1) == labels).mean() < 0.5


@pytest.mark.slow
def test_every_name_of_a_model_is_the_same_model(trained, classifier, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), dtype=np.uint8)
    said = classifier.predict(pixels)
    assert said.shape == (5, 10) and said.dtype == np.float32
    assert classifier.class_names == tuple("0123456789")
    file = model_file(trained.run, tmp_path)
    for name in (f"runs:/{trained.run.run_id}", f"runs:/{trained.run.run_id}/model", str(file)):
        assert (load(name).predict(pixels[..., 0]) == said).all()


@pytest.mark.slow
def test_it_says_what_the_run_has_recorded(trained, classifier):
    """Raw pixels go in, and nothing scales them a second time."""
    recorded = predictions(trained.run, "test")
    tests = instantiate(compose([]).cfg, "data").test_images
    assert classifier.predict(tests) == pytest.approx(recorded.probabilities, abs=1e-6)


@pytest.mark.slow
def test_names_that_are_none_are_refused(trained, tmp_path):
    refused = {
        "0123": r"^0123: there is no such run in this store\.",
        trained.without.run_id: r"has no model: it was trained with tracking\.model=false\.$",
        "models:/digits@champion": r"^models:/digits@champion: there is no such registered model\.",
        "models:/digits": r"Name a version or an alias, as in models:/digits@champion\.$",
        "best:quick": r"^There is no sweep in this store yet\.",
        str(tmp_path / "none.keras"): r"none\.keras: there is no such file\.",
    }
    for name, reason in refused.items():
        with pytest.raises(ExperimentError, match=reason):
            load(name)
    (tmp_path / "broken.keras").write_text("nothing")
    with pytest.raises(ExperimentError, match=r"broken\.keras cannot be loaded: "):
        load(str(tmp_path / "broken.keras"))
    logits = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    logits.save(tmp_path / "logits.keras")
    with pytest.raises(
        ExperimentError,
        match=r"its outputs are from 0 to 0 and sum to 0\. Add keras\.layers\.Softmax\(\) after its last layer",
    ):
        load(str(tmp_path / "logits.keras"))
    logits.set_weights([np.full_like(weight, np.nan) for weight in logits.get_weights()])
    logits.save(tmp_path / "nan.keras")
    with pytest.raises(ExperimentError, match=r"its outputs are from nan to nan and sum to nan\."):
        load(str(tmp_path / "nan.keras"))
    any_size = keras.Sequential([keras.Input((None, None, 1)), keras.layers.GlobalMaxPooling2D()])
    any_size.add(keras.layers.Dense(2, "softmax"))
    any_size.save(tmp_path / "any_size.keras")
    with pytest.raises(ExperimentError, match=r"maps \(None, None, None, 1\) to \(None, 2\); it is not a classifier"):
        load(str(tmp_path / "any_size.keras"))


@pytest.mark.slow
def test_images_of_another_shape_are_refused(classifier):
    with pytest.raises(ExperimentError, match=r"takes images of shape \(n, 28, 28, 1\), not \(2, 32, 32, 3\)"):
        classifier.predict(np.zeros((2, 32, 32, 3)))
    assert classifier.predict(np.zeros((0, 28, 28))).shape == (0, 10)


@pytest.mark.slow
def test_the_preparation_fits_the_data_unless_it_is_chosen(classifier):
    assert predict.preparation(classifier, None) is images.as_mnist
    image = examples.drawn(1, "white", "black", size=40, canvas=(60, 60), place=(0.5, 0.5), width=4)
    assert (predict.preparation(classifier, "resize")(image) == images.resized(image, (28, 28, 1))).all()
    asked = {"inverts": False, "background": "white", "resize": "stretch"}
    unknown = SimpleNamespace(name="mine.keras", image_shape=(28, 28, 1), run=None, **asked)
    assert (predict.preparation(unknown, None)(image) == images.resized(image, (28, 28, 1))).all()
    colour = SimpleNamespace(name="mine.keras", image_shape=(32, 32, 3), run=None)
    with pytest.raises(ExperimentError, match=r"Use --prepare resize\.$"):
        predict.preparation(colour, "mnist")


def of_every_kind(folder, random):
    """Image files of every kind, three of each in each of two classes: dark bars on light paper, across or upright."""
    for label in ("across", "upright"):
        (folder / label).mkdir(parents=True)
        for number in range(3):
            pixels = random.integers(180, 256, (37, 45, 3), dtype=np.uint8)
            place = random.integers(5, 25)
            bar = (
                (slice(place, place + 6), slice(4, 40))
                if label == "across"
                else (slice(4, 34), slice(place, place + 6))
            )
            pixels[bar] //= 6
            grey = pixels[..., 0]
            alpha = np.zeros_like(grey)
            alpha[bar] = 255
            image = Image.fromarray(pixels)
            exif = Image.Exif()
            exif[0x0112] = 6
            made = {
                "rgb.png": (image, {}),
                "grey.png": (Image.fromarray(grey), {}),
                "bits.png": (image.convert("1"), {}),
                "sixteen.png": (Image.fromarray(grey.astype(np.uint16) * 16), {}),
                "palette.gif": (image.quantize(16), {}),
                "palette_transparent.png": (image.quantize(16), {"transparency": 3}),
                "dark_on_nothing.png": (Image.fromarray(np.dstack([pixels, alpha])), {}),
                "light_on_nothing.png": (Image.fromarray(np.dstack([255 - pixels // 9, alpha])), {}),
                "grey_transparent.png": (Image.fromarray(np.dstack([grey, alpha])), {}),
                "print.jpg": (image.convert("CMYK"), {}),
                "turned.jpg": (image, {"exif": exif}),
                "photo.webp": (image, {}),
                "scan.tif": (Image.fromarray(grey.astype(np.uint16) * 257), {}),
            }
            for name, (picture, options) in made.items():
                picture.save(folder / label / f"{number}_{name}", **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["data.invert=true", "data.resize=pad"],
        ["data.color_mode=rgb", "data.image_size=[20,24]", "data.resize=crop"],
    ],
)
def test_the_files_of_the_test_set_are_predicted_as_the_run_has_recorded(shared_store, tmp_path, settings):
    random = np.random.default_rng(0)
    of_every_kind(tmp_path / "bars", random)
    of_every_kind(tmp_path / "tests", random)
    paths = [f"data.path={tmp_path / 'bars'}", f"data.test_path={tmp_path / 'tests'}"]
    result = run(["data=folder", *paths, "data.validation_fraction=0.3", "epochs=2", *settings])
    recorded = predictions(runs.get_run(result.run_id), "test")
    trained = load(result.run_id)
    prepare = predict.preparation(trained, None)
    found, refused = predict.predict_files(trained, images.files([str(tmp_path / "tests")]), prepare)
    assert refused == [] and len(found) == 78
    said = np.stack([prediction.probabilities for prediction in found])
    assert said == pytest.approx(recorded.probabilities, abs=1e-6)
    assert len(np.unique(said[:, 0].round(4))) > 20  # not one answer for all
    predict.draw(found, prepare, tmp_path / "all.png")


def test_files_are_read_256_at_once_and_keep_their_order(tmp_path):
    files = [tmp_path / f"{number}.png" for number in range(300)]
    for number, file in enumerate(files):
        Image.new("L", (4, 4), number % 200).save(file)
    files[1].write_text("no image")
    groups = []

    def answer(pixels):
        groups.append(len(pixels))
        return np.stack([pixels[:, 0, 0, 0], 255 - pixels[:, 0, 0, 0]], axis=1) / 255

    said = SimpleNamespace(predict=answer, class_names=("white", "black"))
    found, refused = predict.predict_files(said, files, lambda image: images.as_it_is(image, (4, 4, 1)))
    assert groups == [255, 44]
    images_left = [number for number in range(300) if number != 1]
    assert [prediction.file for prediction in found] == [str(files[number]) for number in images_left]
    values = [prediction.probabilities[0] * 255 for prediction in found]
    assert values == pytest.approx([number % 200 for number in images_left])
    assert refused == [f"{files[1]} is not a PNG, JPEG, BMP, GIF, WebP or TIFF image."]


@pytest.mark.slow
def test_the_command_does_all_images_and_names_what_is_none(trained, tmp_path):
    for digit in (3, 7):
        image = examples.drawn(digit, "white", "black", size=80, canvas=(120, 140), place=(0.2, 0.3), width=8)
        image.save(tmp_path / f"{digit}.png")
    (tmp_path / "none.png").write_text("hello")
    Image.new("L", (40, 40), 255).save(tmp_path / "blank.png")
    done = command(trained.run.run_id, str(tmp_path), "--picture", str(tmp_path / "all.svg"))
    assert done.returncode == 1
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[:2] for row in rows] == [
        ["file", "label"],
        [str(tmp_path / "3.png"), "3"],
        [str(tmp_path / "7.png"), "7"],
    ]
    assert done.stderr.splitlines() == [
        f"experiments: {tmp_path}/blank.png is blank.",
        f"experiments: {tmp_path}/none.png is not a PNG, JPEG, BMP, GIF, WebP or TIFF image.",
    ]
    assert (tmp_path / "all.svg").read_text().count("<image") == 4


@pytest.mark.slow
def test_json_and_csv_for_other_programs(trained, tmp_path):
    examples.drawn(3, "white", "black", size=80, canvas=(120, 140), place=(0.2, 0.3), width=8).save(tmp_path / "3.png")
    (said,) = json.loads(command(trained.run.run_id, str(tmp_path / "3.png"), "--json").stdout)
    assert (said["label"], len(said["probabilities"])) == ("3", 10)
    assert sum(said["probabilities"].values()) == pytest.approx(1)
    (row,) = csv.DictReader(io.StringIO(command(trained.run.run_id, str(tmp_path / "3.png"), "--csv").stdout))
    assert row["label"] == "3" and float(row["probability"]) == pytest.approx(said["probability"])


def test_the_json_has_a_fixed_schema():
    stream = io.StringIO()
    predict.write_json([predict.Prediction("a.png", np.array([0.25, 0.75]), ("cat", "dog"))], stream)
    assert json.loads(stream.getvalue()) == [
        {
            "file": "a.png",
            "label": "dog",
            "probability": 0.75,
            "unsure": True,
            "second": "cat",
            "second_probability": 0.25,
            "probabilities": {"cat": 0.25, "dog": 0.75},
        }
    ]


def test_a_low_probability_is_shown_as_unsure():
    sure = predict.Prediction("a.png", np.array([0.9, 0.1]), ("cat", "dog"))
    unsure = predict.Prediction("b.png", np.array([0.4, 0.6]), ("cat", "dog"))
    assert (sure.unsure, unsure.unsure) == (False, True)
    assert unsure.values()["label"] == "dog" and unsure.values()["second"] == "cat"


def test_the_second_choice_is_the_next_probable_class():
    values = predict.Prediction("a.png", np.array([0.1, 0.25, 0.65]), ("cat", "dog", "owl")).values()
    assert [values[name] for name in ("label", "probability", "second", "second_probability")] == [
        "owl",
        0.65,
        "dog",
        0.25,
    ]


def test_drawing_without_its_extra_names_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExperimentError, match=r"^draw needs Gradio\. Install it with: pip install -e '\.\[demo\]'$"):
        CliRunner().invoke(cli.command_line, ["draw", "none"], catch_exceptions=False)


@pytest.mark.slow
def test_a_taken_port_to_draw_on_names_the_next_one(trained):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = [EXPERIMENTS, "draw", trained.run.run_id, "--port", str(port)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    said = f"experiments: Port {port} is in use. Try --port {port + 1}."
    assert done.stderr.splitlines()[-1] == said and "Traceback" not in done.stderr


@pytest.fixture
def drawing_page(trained):
    """The address of the page to draw on, served until the test ends."""
    port = free_port()
    words = [EXPERIMENTS, "draw", trained.run.run_id, "--port", str(port)]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ
    ) as served:
        address = next(line for line in iter(served.stdout.readline, "") if line.startswith("Draw at "))
        connections = psutil.Process(served.pid).net_connections()
        assert {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
        yield address.removeprefix("Draw at ").strip()
        served.send_signal(signal.SIGINT)
        assert served.wait(120) in (0, 130)


@pytest.mark.slow
def test_a_digit_drawn_on_the_page_is_read(drawing_page):
    elsewhere = []
    with opened_browser() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        own = (drawing_page, "data:")
        page.on("request", lambda request: request.url.startswith(own) or elsewhere.append(request.url))
        page.goto(drawing_page)
        canvas = page.locator("canvas")
        expect(canvas).to_be_visible(timeout=60_000)
        box = canvas.bounding_box()
        side = 0.7 * box["height"]
        left, top = box["x"] + (box["width"] - 0.7 * side) / 2, box["y"] + 0.15 * box["height"]
        says = page.get_by_test_id("label-output-value")
        sees = page.get_by_alt_text("Model input")
        for stroke in examples.STROKES[4]:
            points = [(left + 0.7 * side * x, top + side * y) for x, y in stroke]
            page.mouse.move(*points[0])
            page.mouse.down()
            for point in points[1:]:
                page.mouse.move(*point, steps=10)
            expect(says).to_be_visible(timeout=60_000)  # while the button is still down
            page.mouse.up()
        expect(says).to_have_text("4", timeout=60_000)
        expect(sees).to_be_visible(timeout=60_000)
        assert sees.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [28, 28]
        page.get_by_role("button", name="Clear").click()
        expect(says).to_have_count(0, timeout=60_000)
        expect(sees).to_have_count(0, timeout=60_000)
    assert elsewhere == []
