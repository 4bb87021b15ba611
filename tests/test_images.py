"""Image files as a model takes them: which are read, how, and which are refused in which words."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

import digits as examples
from experiments import images
from experiments.errors import ExperimentError
from experiments.images import NotAnImage


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here builds a model."""


def four(paper="white", ink="black", *, size=60, canvas=(200, 120), place=(0.9, 0.1), width=6):
    return examples.drawn(4, paper, ink, size=size, canvas=canvas, place=place, width=width)


# As MNIST was made


def test_a_digit_fills_a_box_of_20_and_lies_by_its_centre_of_mass():
    image = Image.new("L", (300, 200), 255)
    ImageDraw.Draw(image).rectangle((10, 20, 29, 59), fill=0)  # 20 wide, 40 high
    made = images.as_mnist(image)
    assert (made.shape, made.dtype) == ((28, 28, 1), np.uint8)
    rows, columns = np.flatnonzero(made[..., 0].any(axis=1)), np.flatnonzero(made[..., 0].any(axis=0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (4, 23, 9, 18)
    assert set(made[4:24, 9:19].ravel()) == {255}


def test_the_centre_of_mass_and_not_the_box_is_in_the_middle():
    made = images.as_mnist(examples.drawn(7, "white", "black", size=100, canvas=(300, 300), place=(0, 0), width=12))
    weights = made[..., 0] / made.sum()
    centre = [(weights.sum(axis=axis) * (np.arange(28) + 0.5)).sum() for axis in (0, 1)]
    assert centre == pytest.approx([14, 14], abs=0.51)


@pytest.mark.parametrize(
    "other",
    [
        four("black", "white"),
        four(place=(0.1, 0.9)),
        four(None, "black"),
        four(None, "white"),
        four("#808080", "#202020"),
    ],
    ids=["light ink", "elsewhere", "no paper", "no paper, light ink", "grey"],
)
def test_paper_ink_and_place_make_no_difference(other, tmp_path):
    other.save(tmp_path / "other.png")
    made, wanted = images.as_mnist(images.read(tmp_path / "other.png")), images.as_mnist(four())
    assert np.abs(made.astype(int) - wanted).mean() < 3  # of 255


def test_nothing_on_the_paper_is_said():
    with pytest.raises(NotAnImage, match=r"^is blank$"):
        images.as_mnist(Image.new("L", (50, 50), 200))
    grain = np.random.default_rng(0).integers(200, 210, (50, 50), dtype=np.uint8)
    with pytest.raises(NotAnImage, match=r"^is blank$"):
        images.as_mnist(Image.fromarray(grain))


# As it is, or resized


def test_as_it_is_takes_one_size():
    pixels = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)
    assert (images.as_it_is(Image.fromarray(pixels), (28, 28, 1))[..., 0] == pixels).all()
    with pytest.raises(NotAnImage, match=r"^has 30 x 28 pixels, but the model takes 28 x 28$"):
        images.as_it_is(Image.new("L", (30, 28)), (28, 28, 1))


def as_pixels(file, channels=1):
    return images.resized(images.read(file), (2, 3, channels))


def test_transparency_becomes_white(tmp_path):
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[0, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    assert as_pixels(tmp_path / "clear.png")[..., 0].tolist() == [[0, 0, 0], [255, 255, 255]]
    pixels[..., :3] = 255  # light ink too: a rule that looks at the ink would make of each file another background
    Image.fromarray(pixels).save(tmp_path / "light.png")
    assert as_pixels(tmp_path / "light.png")[..., 0].tolist() == [[255] * 3] * 2
    Image.new("P", (3, 2)).save(tmp_path / "palette.png", transparency=0)
    assert as_pixels(tmp_path / "palette.png", 3).tolist() == np.full((2, 3, 3), 255).tolist()


def test_16_bit_pixels_are_scaled_by_their_type_and_not_by_their_file(tmp_path):
    Image.fromarray(np.array([[0, 256, 32768], [65535, 65535, 0]], np.uint16)).save(tmp_path / "deep.png")
    assert as_pixels(tmp_path / "deep.png")[..., 0].tolist() == [[0, 1, 128], [255, 255, 0]]
    Image.fromarray(np.full((2, 3), 3900, np.uint16)).save(tmp_path / "twelve_bits.png")
    assert as_pixels(tmp_path / "twelve_bits.png").tolist() == np.full((2, 3, 1), 15).tolist()


def test_images_are_turned_upright_by_exif(tmp_path):
    sideways = Image.fromarray(np.array([[10, 20], [30, 40], [50, 60]], np.uint8))
    exif = sideways.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    sideways.save(tmp_path / "turned.png", exif=exif)
    assert as_pixels(tmp_path / "turned.png")[..., 0].tolist() == [[50, 30, 10], [60, 40, 20]]


def test_inverted_pixels_are_255_minus_pixels():
    image = Image.fromarray(np.array([[0, 100, 255]], np.uint8))
    assert images.resized(image, (1, 3, 1), invert=True).ravel().tolist() == [255, 155, 0]
    assert images.as_it_is(image, (1, 3, 1), invert=True).ravel().tolist() == [255, 155, 0]


def test_resized_to_grayscale_and_to_color():
    image = Image.new("RGB", (90, 30), (255, 0, 0))
    assert images.resized(image, (8, 12, 3)).shape == (8, 12, 3)
    assert images.resized(image, (8, 12, 3))[0, 0].tolist() == [255, 0, 0]
    assert images.resized(image, (8, 12, 1))[0, 0].tolist() == [76]  # 0.299 of red


def test_another_aspect_ratio_is_stretched_cropped_or_padded():
    image = Image.fromarray(np.array([[10, 10, 90, 90, 170, 170]] * 2, np.uint8))
    assert images.resized(image, (2, 2, 1), resize="crop")[..., 0].tolist() == [[90, 90]] * 2
    assert images.resized(image, (6, 6, 1), resize="pad")[..., 0].tolist() == [
        [255] * 6, [255] * 6, *[[10, 10, 90, 90, 170, 170]] * 2, [255] * 6, [255] * 6,
    ]  # fmt: skip
    padded = images.resized(image, (4, 6, 3), resize="pad", background="black", invert=True)
    assert padded[:, 0].tolist() == [[255] * 3, [245] * 3, [245] * 3, [255] * 3]
    stretched = images.resized(image, (6, 6, 1))
    assert (stretched == images.resized(image, (6, 6, 1), resize="stretch")).all()
    assert stretched[:, 0, 0].tolist() == [10] * 6
    for resize in ("crop", "pad"):  # nothing to do
        assert (images.resized(image, (2, 6, 1), resize=resize)[..., 0] == np.asarray(image)).all()


# Files


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "tiff"])
def test_every_kind_of_file_is_read(suffix, tmp_path):
    four().save(tmp_path / f"four.{suffix}")
    made = images.as_mnist(images.read(tmp_path / f"four.{suffix}"))
    assert np.abs(made.astype(int) - images.as_mnist(four())).mean() < 6


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "CMYK", "I;16", "RGBA"])
def test_every_mode_of_pixels_is_read(mode, tmp_path):
    image = four().convert("L")
    values = np.asarray(image)
    image = Image.fromarray(values.astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    image.save(tmp_path / "four.tif")
    made = images.as_mnist(images.read(tmp_path / "four.tif"))
    assert np.abs(made.astype(int) - images.as_mnist(four())).mean() < 6


def test_a_photograph_is_turned_as_its_camera_was(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    four().rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    assert images.read(tmp_path / "turned.png").size == four().size
    assert ImageOps.grayscale(images.read(tmp_path / "turned.png")).tobytes() == ImageOps.grayscale(four()).tobytes()


def test_what_is_no_image_is_named_with_the_reason(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    four().save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    Image.new("1", (12_500, 8_000)).save(tmp_path / "bomb.png")
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "deep.tif")
    reasons = {
        "text.png": r"^is not a PNG, JPEG, BMP, GIF, WebP or TIFF image$",
        "empty.png": r"^is empty$",
        "cut.png": r"^cannot be read: .*truncated.*$",
        "bomb.png": r"^has more than 89,478,485 pixels, which is the limit$",
        "deep.tif": r"^has pixels of 32 bits \(Pillow's mode F\), whose range of values is unknown$",
    }
    for name, reason in reasons.items():
        with pytest.raises(NotAnImage, match=reason):
            images.read(tmp_path / name)


def test_files_folders_and_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.jpg", "in/c.webp", "in/deeper/D.PNG", "in/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(map(str, images.files(["in", "a.png", "in/c.webp"]))) == ["in/c.webp", "in/deeper/D.PNG", "a.png"]
    assert list(map(str, images.files(["*.*", "in/**/*.PNG"]))) == ["a.png", "b.jpg", "in/deeper/D.PNG"]
    (tmp_path / "in [1]").mkdir()
    (tmp_path / "in [1]" / "e.png").touch()
    assert list(map(str, images.files(["in [1]/*.png"]))) == ["in [1]/e.png"]
    assert list(map(str, images.files(["in/notes.txt"]))) == ["in/notes.txt"]  # named, so tried and refused


def test_what_names_no_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "three.png").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExperimentError, match=r"^thre\.png: there is no such file\. Did you mean three\.png\?"):
        images.files(["thre.png"])
    with pytest.raises(ExperimentError, match=r"^\*\.jpg: there is no such file\."):
        images.files(["*.jpg"])
    with pytest.raises(ExperimentError, match=r"^empty: there is no image in this folder\. Images are PNG, "):
        images.files(["empty"])
