"""What each figure of a run says, read from its Figure; every one is also drawn, since a warning is an error."""

import io
import math
import os
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.text import Text

from experiments import galleries, plot_style, plots

DIGITS = [str(digit) for digit in range(10)]


def drawn(figure: Figure) -> Figure:
    """The figure, after it has been drawn as its caller will."""
    file = io.BytesIO()
    figure.savefig(file)
    assert file.getvalue().startswith(b"\x89PNG")
    return figure


def heading(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def captions(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def caption_colors(figure: Figure) -> list[str]:
    return [to_hex(text.get_color()).upper() for text in figure.axes[0].texts]


def history(epochs: int, learning_rate=None) -> dict[str, list[float]]:
    return {
        "loss": [1 / epoch for epoch in range(1, epochs + 1)],
        "val_loss": [1.1 / epoch for epoch in range(1, epochs + 1)],
        "accuracy": [1 - 0.5 / epoch for epoch in range(1, epochs + 1)],
        "val_accuracy": [1 - 0.6 / epoch for epoch in range(1, epochs + 1)],
        "learning_rate": learning_rate or [0.001] * epochs,
        "epoch_seconds": [2.0] * epochs,
    }


def probabilities_of(predicted, confidences, classes=10) -> np.ndarray:
    """Probabilities of shape (images, classes) whose largest are the given ones."""
    rows = np.zeros((len(predicted), classes), np.float32)
    rows[np.arange(len(predicted)), predicted] = confidences
    return rows


def random_images(number: int, height=28, width=28, channels=1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (number, height, width, channels), dtype=np.uint8)


def test_neither_pyplot_nor_anything_heavy_is_imported():
    check = "from experiments import galleries, plots\nimport sys\n"
    check += "print({'matplotlib.pyplot', 'keras', 'mlflow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout == "set()\n"


def test_matplotlib_settings_are_left_alone():
    before = dict(matplotlib.rcParams)
    drawn(plots.curves(history(3), 2, "val_loss"))
    drawn(plots.confusion_matrix(np.eye(3, dtype=int), DIGITS[:3]))
    drawn(galleries.samples(random_images(16), DIGITS + DIGITS[:6]))
    assert dict(matplotlib.rcParams) == before


# curves


@pytest.mark.parametrize(
    ("epochs", "ticks"),
    [
        (1, [1]),
        (5, [1, 2, 3, 4, 5]),
        (15, [1, 5, 10, 15]),
        (100, [1, 20, 40, 60, 80, 100]),
        (5000, [1, 5000]),
    ],
)
def test_epochs_are_whole_and_counted_from_one(epochs, ticks):
    figure = drawn(plots.curves(history(epochs), 1, "val_accuracy"))
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_xticklabels()] == [str(tick) for tick in ticks]


def test_training_and_validation_share_a_panel():
    numbers = history(5)
    accuracy, loss = drawn(plots.curves(numbers, 5, "val_loss")).axes
    for axes, name in ((accuracy, "accuracy"), (loss, "loss")):
        assert axes.get_title(loc="left") == name
        _, training, validation = axes.lines[:3]
        assert list(training.get_xdata()) == list(validation.get_xdata()) == [1, 2, 3, 4, 5]
        assert list(training.get_ydata()) == numbers[name]
        assert list(validation.get_ydata()) == numbers[f"val_{name}"]
    (legend,) = accuracy.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["training", "validation"]
    assert [to_hex(line.get_color()).upper() for line in legend.get_lines()] == [
        plot_style.TRAINING,
        plot_style.VALIDATION,
    ]


@pytest.mark.parametrize(("objective", "chosen", "value"), [("val_accuracy", 0, 0.85), ("val_loss", 1, 0.275)])
def test_the_epoch_whose_weights_were_kept_is_marked(objective, chosen, value):
    figure = drawn(plots.curves(history(15), 4, objective))
    assert heading(figure)[0] == f"Epoch 4 of 15: {objective} {value:.4f}"
    for axes in figure.axes:
        assert list(axes.lines[0].get_xdata()) == [4, 4]
    point = figure.axes[chosen].lines[-1]
    assert (list(point.get_xdata()), list(point.get_ydata())) == ([4], [pytest.approx(value)])
    (note,) = figure.axes[chosen].texts
    assert (note.get_text(), note.xy[0]) == (f"{value:.4f}", 4)
    assert not figure.axes[1 - chosen].texts


@pytest.mark.parametrize(("others", "shape"), [(0, (1, 2)), (1, (1, 3)), (2, (2, 3)), (4, (2, 3)), (5, (3, 3))])
def test_every_metric_has_a_panel(others, shape):
    names = [f"metric_{number}" for number in range(others)]
    more = {f"{prefix}{name}": [0.5] * 3 for name in names for prefix in ("", "val_")}
    figure = drawn(plots.curves({**history(3), **more}, 1, "val_loss"))
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in shown] == ["accuracy", "loss", *names]
    assert all(len(axes.lines) >= 3 for axes in shown)  # the best epoch, training and validation
    assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == shape


@pytest.mark.parametrize(("epochs", "marker"), [(1, "o"), (20, "o"), (21, "")])
def test_few_epochs_have_dots(epochs, marker):
    assert plots.curves(history(epochs), 1, "val_loss").axes[0].lines[1].get_marker() == marker


@pytest.mark.parametrize(
    ("rates", "scale"),
    [
        ([0.001, 0.001, 0.001], None),
        ([0.001, 0.0005, 0.0001], "linear"),
        ([0.001, 0.0005, 0.00005], "log"),
        ([0.001, 0.0005, 0.0], "linear"),
    ],
)
def test_learning_rate_is_shown_when_it_changes(rates, scale):
    figure = drawn(plots.curves(history(3, rates), 1, "val_loss"))
    if scale is None:
        assert len(figure.axes) == 2
    else:
        assert figure.axes[2].get_title(loc="left") == "learning rate"
        assert figure.axes[2].get_yscale() == scale
        assert list(figure.axes[2].lines[-1].get_ydata()) == rates


# confusion matrix


def test_counts_are_printed_and_zeros_are_not():
    matrix = np.array([[8, 2, 0], [0, 10, 0], [1, 0, 1234]])
    figure = drawn(plots.confusion_matrix(matrix, ["cat", "dog", "cow"]))
    (axes,) = figure.axes
    assert heading(figure) == [
        "Accuracy 99.76% on 1,255 images",
        "orange: errors, by their share of the true class, at most 20.0%",
    ]
    counts = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axes.texts}
    assert counts == {(0, 0): "8", (0, 1): "2", (1, 1): "10", (2, 0): "1", (2, 2): "1234"}
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "cow"]


def test_mistakes_are_warm_and_right_ones_are_quiet():
    pixels = plots.confusion_matrix(np.array([[9, 1], [0, 10]]), ["a", "b"]).axes[0].images[0].get_array()
    red, _, blue = pixels[0, 1, :3]
    assert red > 2 * blue
    red, _, blue = pixels[1, 1, :3]
    assert blue > red > 0.75
    assert pixels[1, 0].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(("classes", "counted"), [(2, True), (10, True), (43, True), (100, False), (200, False)])
def test_counts_go_when_there_is_no_room(classes, counted):
    matrix = np.random.default_rng(0).multinomial(200, [1 / classes] * classes, size=classes)
    np.fill_diagonal(matrix, 100)
    figure = drawn(plots.confusion_matrix(matrix, [f"Speed limit number {index}" for index in range(classes)]))
    assert len(figure.axes[0].texts) == (np.count_nonzero(matrix) if counted else 0)
    assert max(figure.get_size_inches()) < 14


def test_long_names_are_upright_cut_and_inside_the_page():
    names = ["End of no passing by vehicles over 3.5 tons", "STOP " * 4, "$5 and $6"]
    figure = drawn(plots.confusion_matrix(np.eye(3, dtype=int), names))
    labels = figure.axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == ["End of no passing by vehicl…", names[1], names[2]]
    assert {label.get_rotation() for label in labels} == {90}
    box = figure.axes[0].get_tightbbox()
    assert box.x0 >= 0
    assert box.y0 >= 0


def test_empty_rows_and_an_empty_matrix_are_drawn():
    assert heading(drawn(plots.confusion_matrix(np.diag([3, 0]), DIGITS[:2])))[0] == "Accuracy 100.00% on 3 images"
    assert heading(drawn(plots.confusion_matrix(np.zeros((2, 2), int), DIGITS[:2])))[0] == "Accuracy 0.00% on 0 images"


# reliability


def reliability(counts, confidences, accuracies, lowest, highest) -> Figure:
    counts, confidences, accuracies = map(np.array, (counts, confidences, accuracies))
    return drawn(plots.reliability(counts, confidences, accuracies, np.array([lowest, highest])))


def test_what_the_bars_show_adds_up_to_the_error():
    figure = reliability(
        [50] * 4, [0.6, 0.8, 0.9, 0.99], [0.5, 0.84, 0.9, 1.0], [0.3, 0.7, 0.8, 0.9], [0.7, 0.9, 0.95, 1]
    )
    # (0.1 + 0.04 + 0 + 0.01) / 4
    assert heading(figure) == [
        "Calibration error 0.0375",
        "4 bins of 50 test images; below the line: overconfident; red: outside the 95 % interval",
    ]
    odds, gaps = figure.axes
    assert odds.get_title(loc="left") == "accuracy against confidence"
    assert gaps.get_title(loc="left") == "accuracy - confidence, percentage points; mean gap 3.75"
    heights = [bar.get_height() for bar in gaps.patches]
    assert heights == pytest.approx([-10, 4, 0, 1])
    assert np.abs(heights).mean() == pytest.approx(3.75)
    ends = [segment[:, 1].tolist() for segment in gaps.collections[0].get_segments()]
    assert ends == [pytest.approx(pair) for pair in ([-30, 10], [-10, 10], [-10, 5], [-9, 1])]
    assert [label.get_text() for label in gaps.get_xticklabels()] == ["60.0%", "90.0%", "99.0%"]


def test_points_lie_on_the_diagonal_when_the_model_is_calibrated():
    shares = [0.5, 0.7, 0.9, 0.99]
    figure = reliability([100] * 4, shares, shares, [0.4, 0.6, 0.8, 0.9], [0.6, 0.8, 0.95, 0.999])
    odds = figure.axes[0]
    points = odds.collections[1].get_offsets()
    assert points[:, 0].tolist() == points[:, 1].tolist() == pytest.approx([math.log(s / (1 - s)) for s in shares])
    (diagonal,) = odds.lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == list(odds.get_xlim()) == list(odds.get_ylim())
    assert [label.get_text() for label in odds.get_xticklabels()] == ["50%", "90%", "99%"]
    assert [label.get_text() for label in odds.get_yticklabels()] == ["50%", "90%", "100%"]


def test_only_what_is_off_beyond_chance_is_red():
    figure = reliability(
        [40] * 4, [0.5, 0.7, 0.9, 1.0], [0.6, 0.6, 0.6, 1.0], [0.51, 0.5, 0.5, 0.9], [0.7, 0.75, 0.7, 1]
    )
    colors = [plot_style.WRONG, plot_style.VALIDATION, plot_style.WRONG, plot_style.VALIDATION]
    odds, gaps = figure.axes
    assert [to_hex(color).upper() for color in odds.collections[1].get_facecolor()] == colors
    assert [to_hex(bar.get_facecolor()).upper() for bar in gaps.patches] == colors


@pytest.mark.parametrize("confidence", [1.0, 1 + 2.0**-23, 1 - 1e-12])
def test_models_that_are_sure_of_everything(confidence):
    figure = reliability([7, 7, 6], [confidence] * 3, [1.0, 0.5, 0.0], [0.6, 0.1, 0.0], [1.0, 0.9, 0.4])
    assert heading(figure)[1].startswith("3 bins of 6 or 7 test images; ")
    odds, gaps = figure.axes
    assert [to_hex(bar.get_facecolor()).upper() for bar in gaps.patches] == [
        plot_style.VALIDATION,
        plot_style.WRONG,
        plot_style.WRONG,
    ]
    for x, y in odds.collections[1].get_offsets():
        assert odds.get_xlim()[0] <= x <= odds.get_xlim()[1] and odds.get_ylim()[0] <= y <= odds.get_ylim()[1]
    assert [label.get_text() for label in odds.get_xticklabels()] == ["50%", "90%", "99.9%", "99.999%", "99.99999%"]
    assert [label.get_text() for label in gaps.get_xticklabels()] == ["> 99.9%"] * 3


def test_models_that_have_learnt_nothing():
    figure = reliability([20] * 3, [0.004, 0.005, 0.3], [0.0, 0.0, 0.1], [0.0, 0.0, 0.01], [0.2, 0.2, 0.3])
    odds = figure.axes[0]
    assert [label.get_text() for label in odds.get_xticklabels()] == ["1%", "10%", "50%", "90%"]
    assert np.isfinite(odds.collections[1].get_offsets()).all()


def test_as_few_images_as_there_can_be():
    odds, gaps = reliability([1, 1], [0.6, 0.7], [0.0, 1.0], [0.0, 0.2], [0.8, 1.0]).axes
    assert [bar.get_height() for bar in gaps.patches] == pytest.approx([-60, 30])
    assert len(odds.collections[1].get_offsets()) == 2


# galleries


def tiles(figure: Figure) -> np.ndarray:
    """The images of a gallery with the white around them: (rows, 8, height, width, 3)."""
    rows = np.stack([image.get_array()[..., :3] for image in figure.axes[0].images])
    return rows.reshape(*rows.shape[:2], 8, -1, 3).swapaxes(1, 2)


def test_a_gallery_has_eight_images_in_a_row_stretched_together():
    images = np.zeros((9, 28, 28, 1), np.float32) + np.arange(-4, 5).reshape(9, 1, 1, 1)
    found = tiles(galleries.samples(images, DIGITS[:9]))
    assert (found.dtype, found.shape[:2]) == (np.uint8, (2, 8))
    for tile, expected in zip(found.reshape(16, *found.shape[2:]), [0, 32, 64, 96, 128, 159, 191, 223], strict=False):
        inside = (tile != 255).all(axis=-1)
        assert inside.sum() == 28 * 28 and (tile[inside] == expected).all()
    assert (found[1] == 255).all()  # the ninth is white, as what has no image is


def test_a_gallery_keeps_colors():
    images = np.zeros((1, 28, 28, 3), np.uint8) + np.array([0, 128, 255], np.uint8)
    for shown, expected in ((images, [0, 128, 255]), (images[..., :2], [128, 128, 128])):
        pixels = tiles(galleries.samples(shown, ["7"]))[0, 0]
        assert np.unique(pixels.reshape(-1, 3), axis=0).tolist() == [expected, [255, 255, 255]]


def test_samples_have_their_labels_and_say_their_range():
    images = np.linspace(-1, 1, 16 * 28 * 28, dtype=np.float32).reshape(16, 28, 28, 1)
    figure = drawn(
        galleries.samples(images, ["Ankle boot", "$1 or $2", "cat + a very long name of a dog"] + ["7"] * 13)
    )
    assert heading(figure) == [
        "Training images as the model sees them",
        "after augmentation and scaling; black is -1, white is 1",
    ]
    assert captions(figure)[:4] == ["Ankle boot", "$1 or $2", "cat + a very long\nname of a dog", "7"]
    assert (len(figure.axes), len(figure.axes[0].images), len(figure.axes[0].collections)) == (1, 2, 0)  # one per row


def test_predictions_are_green_when_right_and_red_when_wrong():
    labels = np.array([4, 4, 2] + [0] * 27)
    predicted = np.array([4, 9, 2] + [0] * 27)
    probabilities = probabilities_of(predicted, [0.987, 0.5, 1.0] + [0.9] * 27)
    figure = drawn(galleries.predictions(random_images(30), labels, probabilities, DIGITS))
    assert heading(figure) == [
        "23 of the first 24 test images predicted correctly",
        "green: correct; red: wrong, true → predicted; below: the probability of the predicted class",
    ]
    assert len(figure.axes) == 1
    assert captions(figure) == ["4\n98.7%", "4 → 9\n50.0%", "2\n100.0%"] + ["0\n90.0%"] * 21
    colors = [plot_style.RIGHT, plot_style.WRONG] + [plot_style.RIGHT] * 22
    assert caption_colors(figure) == colors
    (frames,) = figure.axes[0].collections
    assert [to_hex(color).upper() for color in frames.get_edgecolor()] == colors


def test_long_names_never_hide_what_was_predicted():
    names = ["End of no passing by vehicles over 3.5 metric tons", "Right-of-way at the next intersection"]
    figure = galleries.predictions(random_images(1), np.array([0]), probabilities_of([1], [0.5], 2), names)
    assert captions(drawn(figure)) == [
        "End of no passing\nby vehicles over…\n→ Right-of-way at\nthe next…\n50.0%",
    ]


def test_mistakes_are_sorted_and_at_most_forty():
    number = 83
    confidences = np.random.default_rng(1).permutation(np.linspace(0.2, 0.95, number))
    labels = np.arange(number + 17) % 10  # the last 17 are right
    predicted = np.where(np.arange(number + 17) < number, (labels + 1) % 10, labels)
    probabilities = probabilities_of(predicted, [*confidences, *[0.99] * 17])
    figure = drawn(galleries.mistakes(random_images(number + 17), labels, probabilities, DIGITS))
    assert heading(figure) == [
        "83 of 100 test images predicted wrongly; the most confident first",
        "true → predicted; below: the probability of the predicted class; 40 are shown",
    ]
    surest = sorted(range(number), key=lambda index: -confidences[index])[:40]
    assert captions(figure) == [
        f"{labels[index]} → {(labels[index] + 1) % 10}\n{confidences[index]:.1%}" for index in surest
    ]
    assert caption_colors(figure) == [plot_style.WRONG] * 40
    assert len(figure.axes) == 1


def test_mistakes_show_the_image_their_caption_speaks_of():
    images = np.zeros((4, 2, 2, 1), np.uint8) + np.array([0, 7, 100, 255], np.uint8).reshape(4, 1, 1, 1)
    labels, probabilities = np.array([0, 5, 1, 2]), probabilities_of([1, 5, 2, 3], [0.5, 1, 0.9, 0.7])
    figure = drawn(galleries.mistakes(images, labels, probabilities, DIGITS))
    assert captions(figure) == ["1 → 2\n90.0%", "2 → 3\n70.0%", "0 → 1\n50.0%"]
    mosaic = figure.axes[0].images[0].get_array()
    centers = [text.get_position()[0] for text in figure.axes[0].texts]
    assert [int(mosaic[0, int(center), 0]) for center in centers] == [100, 255, 0]


def test_no_mistakes_is_good_news():
    labels = np.array([3, 1])
    figure = drawn(galleries.mistakes(random_images(2), labels, probabilities_of(labels, [0.9, 0.8]), DIGITS))
    assert heading(figure) == [
        "0 of 2 test images predicted wrongly",
        "The model predicted every test image correctly.",
    ]
    assert figure.axes == []


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width"), [(8, 8), (28, 28), (32, 32), (128, 128), (32, 128), (128, 32), (600, 400)]
)
def test_tiles_keep_their_shape_at_any_size(height, width, channels):
    labels, probabilities = np.zeros(9, int), np.ones((9, 1))
    figure = drawn(
        galleries.predictions(random_images(9, height, width, channels), labels, probabilities, ["automobile"])
    )
    axes = figure.axes[0]
    frame = axes.collections[0].get_paths()[0].get_extents().transformed(axes.transData)
    frame_height = abs(frame.height)  # the vertical axis of an image points down
    assert frame.width / frame_height == pytest.approx(width / height, rel=0.02)
    assert 0.2 < frame_height / figure.dpi <= 1.51
    assert axes.images[0].get_array().shape[1] < 8 * 250
    page = figure.bbox
    for text in axes.texts:
        box = text.get_window_extent()
        assert page.x0 <= box.x0 < box.x1 <= page.x1
        assert page.y0 <= box.y0 < box.y1 <= page.y1


def test_arrays_are_not_changed():
    images = random_images(12)
    labels = np.arange(12) % 10
    probabilities = probabilities_of(np.arange(1, 13) % 10, np.linspace(0.1, 0.9, 12))
    matrix = np.arange(100).reshape(10, 10)
    arrays = [images, labels, probabilities, matrix]
    for array in arrays:
        array.flags.writeable = False
    before = [array.copy() for array in arrays]
    drawn(galleries.samples(images, DIGITS + DIGITS[:2]))
    drawn(galleries.predictions(images, labels, probabilities, DIGITS))
    drawn(galleries.mistakes(images, labels, probabilities, DIGITS))
    drawn(plots.confusion_matrix(matrix, DIGITS))
    assert all(np.array_equal(array, copy) for array, copy in zip(arrays, before, strict=True))


def test_every_classified_image_has_a_row_and_an_unsure_answer_is_red():
    given, seen = [np.zeros((50, 80, 3), np.uint8)] * 2, [np.zeros((28, 28, 1), np.uint8)] * 2
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6]])
    figure = galleries.classified(given, seen, probabilities, ["a.png", "b.png"], ("cat", "dog"), 0.8)
    bars = [axes for axes in figure.axes if axes.patches]
    assert [axes.get_title("left") for axes in bars] == ["cat, 90.0%   (a.png)", "dog, 60.0%: unsure   (b.png)"]
    assert [[bar.get_height() for bar in axes.patches] for axes in bars] == [[0.9, 0.1], [0.4, 0.6]]
    colours = [[to_hex(bar.get_facecolor()).upper() for bar in axes.patches] for axes in bars]
    assert colours == [[plot_style.RIGHT, plot_style.FAINT], [plot_style.FAINT, plot_style.WRONG]]
    assert len(figure.axes) == 6


# Names in any script

TWO_FIGURES = """
import io
import numpy as np
from experiments import galleries, plots
for name in ("猫", "犬 $x"):
    galleries.samples(np.zeros((1, 4, 4, 1)), [name]).savefig(io.BytesIO())
    plots.confusion_matrix(np.eye(2, dtype=int), [name, "b"]).savefig(io.BytesIO())
"""


def test_characters_that_no_font_has_are_mentioned_once():
    words = [sys.executable, "-W", "default", "-c", TWO_FIGURES]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": "src"})
    if any("CJK" in font.name for font in fontManager.ttflist):
        assert done.stderr == ""
    else:
        assert done.stderr == (
            "Some characters are in no font on this machine: figures show boxes. Install a font that has them.\n"
        )


@pytest.fixture
def font(tmp_path):
    """A font of three characters that no other font has, installed for a test."""
    builder = FontBuilder(1000)
    names = [".notdef", "x", "y", "z"]
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({0xF8FF1: "x", 0xF8FF2: "y", 0x20BB7: "z"})
    pen = TTGlyphPen(None)
    for place in ((0, 0), (0, 700), (700, 700), (700, 0)):
        (pen.lineTo if pen.points else pen.moveTo)(place)
    pen.closePath()
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (800, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Three Characters", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "three.ttf")
    fontManager.addfont(tmp_path / "three.ttf")
    yield "Three Characters"
    fontManager.ttflist = [entry for entry in fontManager.ttflist if entry.name != "Three Characters"]


def test_a_name_is_drawn_in_a_font_that_has_its_characters(font, caplog):
    name = "\U00020bb7ab"
    figure = galleries.samples(np.zeros((1, 4, 4, 1)), [name])
    figure.savefig(io.BytesIO())
    (text,) = [text for text in figure.findobj(Text) if text.get_text() == name]
    assert text.get_fontfamily()[-1] == font and len(text.get_fontfamily()) == len(FontProperties().get_family()) + 1
    assert not caplog.records
    heading = figure.texts[0]
    assert heading.get_fontfamily() == FontProperties().get_family()
