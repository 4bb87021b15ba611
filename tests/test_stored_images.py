"""Images that do not fit into memory are decoded once into a file, and make the same run as in memory."""

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from commands import finished, forked, killed_after, runs
from experiments import data
from experiments.config.names import names
from experiments.dataset import Dataset
from experiments.errors import ExperimentError
from experiments.models import rescaling
from experiments.stored_images import StoredImages, pieces, stored
from experiments.training.batches import evaluation_batches, training_batches

SHAPE = (12, 40, 50, 3)
FOLDER = {
    "test_path": None,
    "image_size": [8, 9],
    "color_mode": "rgb",
    "invert": True,
    "test_fraction": 0.2,
    "validation_fraction": 0.2,
    "split_seed": 0,
    "limit": None,
}
DIGESTS = ("sha256", "validation_sha256", "test_sha256")
ARRAYS = ("train_images", "train_labels", "validation_images", "validation_labels", "test_images", "test_labels")
#: Stores twelve images, and does something else before it gives the one at a position.
PROGRAM = """
import os, signal, sys
import numpy as np
from experiments.stored_images import stored

def decode(done):
    for position in range(done, 12):
        if position == {position}:
            {action}
        yield np.full((40, 50, 3), position, np.uint8)

stored("twelve.uint8", (12, 40, 50, 3), decode, "They are too many")
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache folder of a test."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path / "keras" / "datasets"


@pytest.fixture
def photos(tmp_path):
    """Forty photos in two classes, two of them equal."""
    random = np.random.default_rng(0)
    for number in range(40):
        file = tmp_path / "photos" / ("dark", "light")[number % 2] / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 128, (8, 9, 3)) + 127 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    shutil.copy(tmp_path / "photos" / "dark" / "00.png", tmp_path / "photos" / "dark" / "02.png")
    return tmp_path / "photos"


def decoded(log=None):
    """A function that gives the images of PROGRAM, and notes in a list the position that it is asked to begin at."""

    def decode(done):
        if log is not None:
            log.append(done)
        return (np.full(SHAPE[1:], position, np.uint8) for position in range(done, SHAPE[0]))

    return decode


def in_another_process(position, action):
    code = PROGRAM.format(position=position, action=action)
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def numbers(images):
    return images[:][:, 0, 0, 0].tolist()


def test_stored_images_are_indexed_like_an_array():
    images = stored("twelve.uint8", SHAPE, decoded(), "They are too many")
    array = np.asarray(images)
    assert (images.shape, images.dtype, len(images), array.shape) == (SHAPE, np.uint8, 12, SHAPE)
    for key in (3, -1, slice(2, 9, 3), np.array([5, 1, 1]), array[:, 0, 0, 0] > 6):
        assert type(images[key]) is np.ndarray
        assert np.array_equal(images[key], array[key])
    some = images.at(np.array([7, 2, 9])).at(np.array([2, 0]))
    assert (numbers(some), some.shape) == ([9, 7], (2, 40, 50, 3))
    assert np.array_equal(np.concatenate(list(pieces(images))), array)


def test_a_data_set_is_the_same_in_a_file_and_in_memory(photos, cache, caplog):
    caplog.set_level("INFO")
    for changed in ({}, {"limit": 20}, {"duplicates": "drop"}, {"folds": 3, "fold": 1}, {"test_path": str(photos)}):
        expected = data.folder(path=str(photos), **FOLDER | changed)
        found = data.folder(path=str(photos), **FOLDER | changed, memory_mb=0)
        assert isinstance(found.train_images, StoredImages) and isinstance(expected.train_images, np.ndarray)
        assert [getattr(found, name) for name in DIGESTS] == [getattr(expected, name) for name in DIGESTS]
        for name in ARRAYS:
            assert np.array_equal(getattr(found, name), getattr(expected, name))
        assert rescaling(train_images=found.train_images).get_config().items() >= {
            (key, rescaling(train_images=expected.train_images).get_config()[key]) for key in ("scale", "offset")
        }
    assert sum("Decoding" in message for message in caplog.messages) == 2  # the last one has twice the images
    assert len(list(cache.glob("*.uint8"))) == 2
    size = 40 * 8 * 9 * 3
    assert isinstance(data.folder(path=str(photos), **FOLDER, memory_mb=size / 1e6).train_images, np.ndarray)
    assert isinstance(data.folder(path=str(photos), **FOLDER, memory_mb=(size - 1) / 1e6).train_images, StoredImages)


def test_another_file_or_another_way_to_prepare_it_is_another_cache(photos, cache):
    def load(**changed):
        return data.folder(path=str(photos), **FOLDER | changed, memory_mb=0).sha256

    digests = [load(), load(invert=False), load(background="black", resize="pad"), load(image_size=[9, 8])]
    Image.new("RGB", (9, 8), "red").save(photos / "dark" / "04.png")
    digests.append(load())
    assert len(set(digests)) == 4  # nothing is transparent here
    assert len(list(cache.glob("*.uint8"))) == 5


def test_batches_are_the_same_from_a_file_and_from_memory():
    images = stored("twelve.uint8", SHAPE, decoded(), "They are too many")
    labels = np.arange(12) % 2
    for shuffled in (
        lambda images: training_batches(images, labels, 2, batch_size=5, epochs=3, seed=1, after_epoch=1),
        lambda images: evaluation_batches(images, labels, 2, 5),
    ):
        read, expected = list(shuffled(images)), list(shuffled(np.asarray(images)))
        assert [len(batch) for batch, _ in read][:3] == [5, 5, 2]
        for ours, theirs in zip(read, expected, strict=True):
            assert all(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))
        assert shuffled(images).element_spec == shuffled(np.asarray(images)).element_spec


def test_a_killed_writer_is_resumed_after_the_last_whole_image(cache):
    killed = in_another_process(7, "os.kill(os.getpid(), signal.SIGKILL)")
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    (part,) = cache.glob("*.part")
    with part.open("ab") as stream:
        stream.write(b"\xff" * 100)  # of the image that it was writing
    begun = []
    assert numbers(stored("twelve.uint8", SHAPE, decoded(begun), "They are too many")) == list(range(12))
    assert begun == [7]
    assert not part.exists()


def test_two_processes_at_once_make_one_file(cache):
    others = []

    def decode(done):
        for position in range(done, 12):
            if position == 5:
                others.append(in_another_process(0, "sys.exit('decoded twice')"))
            yield np.full(SHAPE[1:], position, np.uint8)

    images = stored("twelve.uint8", SHAPE, decode, "They are too many")
    _, errors = others[0].communicate()
    assert (others[0].returncode, errors) == (0, "")
    assert numbers(images) == list(range(12))
    assert [file.name for file in cache.glob("twelve.uint8")] == ["twelve.uint8"]


def test_a_cache_that_was_cut_is_noticed_and_made_again(cache, caplog):
    stored("twelve.uint8", SHAPE, decoded(), "They are too many")
    os.truncate(cache / "twelve.uint8", np.prod(SHAPE) // 2)
    assert numbers(stored("twelve.uint8", SHAPE, decoded(), "They are too many")) == list(range(12))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"{cache}/twelve.uint8 is damaged and is written again"]


def test_a_cache_folder_that_takes_no_file_is_refused(cache, tmp_path, monkeypatch):
    advice = "Make room there, set KERAS_HOME to another folder, or set data.memory_mb to hold them in memory."
    with pytest.raises(ExperimentError) as refused:
        stored("many.uint8", (10**9, 1000, 1000, 3), decoded(), "They are too many")
    free = f"{shutil.disk_usage(cache).free / 1e6:,.0f}"[:3]
    assert str(refused.value).startswith(
        f"They are too many, and they cannot be stored in {cache}: 3,000,000,000 MB are needed, {free}"
    )
    assert str(refused.value).endswith(f" MB are free. {advice}")
    limited = in_another_process(0, "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))")
    _, said = limited.communicate()
    assert limited.returncode == 1
    assert (
        f"ExperimentError: They are too many, and they cannot be stored in {cache}: [Errno 27] File too large" in said
    )
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "file"))  # no folder can be made in a file, not even by root
    with pytest.raises(ExperimentError, match=rf"cannot be stored in {tmp_path}/file/datasets: .*Not a directory"):
        stored("twelve.uint8", SHAPE, decoded(), "They are too many")


def test_files_that_cannot_be_read_are_named_and_leave_no_cache(photos, cache):
    (photos / "dark" / "00.png").write_text("no image")
    (photos / "light" / "01.png").write_text("")
    with pytest.raises(ExperimentError) as refused:
        data.folder(path=str(photos), **FOLDER, memory_mb=0)
    assert str(refused.value).startswith(
        f"2 files cannot be used: {photos}/dark/00.png is not a PNG, JPEG, BMP, GIF, WebP or TIFF image; "
        f"{photos}/light/01.png is empty."
    )
    assert [file.suffix for file in cache.iterdir()] == [".lock"]


def test_the_memory_is_not_part_of_the_identity(compose):
    plain, limited = (compose("data=folder", "data.path=photos", *given) for given in ([], ["data.memory_mb=5"]))
    assert limited.cfg.data.memory_mb == 5
    assert (limited.variant, limited.parameters) == (plain.variant, plain.parameters)
    assert names(limited).run == names(plain).run


def test_a_function_of_the_users_gets_stored_images_and_makes_a_data_set_of_them():
    images = stored("twelve.uint8", SHAPE, decoded(), "They are too many")
    made = Dataset.from_arrays(images, np.arange(12) % 2, name="mine")
    assert made.sha256 == Dataset.from_arrays(np.asarray(images), np.arange(12) % 2, name="mine").sha256
    assert isinstance(made.test_images, StoredImages)


@pytest.mark.slow
def test_a_run_from_a_file_that_is_killed_ends_with_the_bits_of_one_in_memory(photos, store, tmp_path, cache):
    start, home = forked(tmp_path), tmp_path / "home"
    rows = [f"{file.relative_to(photos)},{file.parent.name},{int(file.stem) % 5}" for file in photos.glob("*/*.png")]
    (photos / "table.csv").write_text("\n".join(["path,label,weight", *sorted(rows)]))
    words = ["data=csv", f"data.path={photos}/table.csv", "data.color_mode=rgb", "data.image_size=[12,12]", "epochs=6"]
    words += ["augment=shift_rotate", "scale=standard", "batch_size=8", "tracking.model=false"]
    killed_after(start(*words, "data.memory_mb=0"), 3, 0, home)
    for memory in ("0", "1"):
        process = start(*words, f"data.memory_mb={memory}")
        process.join(240)
        assert process.exitcode == 0, process.output.read_text()
        assert ("Resuming after epoch" in process.output.read_text()) == (memory == "0")
    streamed, in_memory = runs(store)
    for tag in ("fingerprint", "weights.sha256", "predictions.sha256"):
        assert streamed.data.tags[tag] == in_memory.data.tags[tag]
    cache.rename(cache.with_name("aside"))
    cache.write_text("")
    refused = finished("train", *words, "data.memory_mb=0", KERAS_HOME=str(cache.parent))
    assert refused.returncode == 2
    assert f"cannot be stored in {cache}" in refused.stdout
    assert len(runs(store)) == 2
