"""Figures that show images: functions that take arrays and return a matplotlib `Figure`; see `plots`."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.plot_style import (
    FAINT,
    HEADING,
    INK,
    MARGIN,
    RIGHT,
    SMALL_SIZE,
    TEXT_SIZE,
    WIDTH,
    WRONG,
    new_figure,
)
from experiments.stored_images import Images

TILE, TILE_GAP, LINE = 1.0, 0.14, 0.145
COLUMNS, CAPTION_CHARACTERS = 8, 17
PREDICTIONS_SHOWN, MISTAKES_SHOWN = 24, 40


def samples(images: np.ndarray, labels: Sequence[str]) -> Figure:
    """Training images as the model sees them, after augmentation and scaling, with their labels.

    Args:
        images: (images, height, width, channels) of any range; the lowest value is shown black, the highest white.
        labels: (images,) names of their classes.
    """
    darkest, brightest = float(images.min()), float(images.max())
    note = f"after augmentation and scaling; black is {darkest:.3g}, white is {brightest:.3g}"
    return _gallery("Training images as the model sees them", note, images, [_wrap(label) for label in labels])


def predictions(images: Images, labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]) -> Figure:
    """The first test images with the predicted class and its probability, correct ones in green and wrong ones in red.

    Args:
        images: (images, height, width, channels); the first 24 are shown.
        labels: (images,) true classes, as positions in `class_names`.
        probabilities: (images, classes), 0 to 1.
        class_names: (classes,) names.
    """
    first = slice(PREDICTIONS_SHOWN)
    right = labels[first] == probabilities[first].argmax(axis=1)
    title = f"{right.sum()} of the first {len(right)} test images predicted correctly"
    note = "green: correct; red: wrong, true → predicted; below: the probability of the predicted class"
    captions = _captions(labels[first], probabilities[first], class_names)
    return _gallery(title, note, images[first], captions, np.where(right, RIGHT, WRONG).tolist())


def mistakes(images: Images, labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]) -> Figure:
    """The wrongly predicted test images, the most confident first, at most 40; arguments as for `predictions`."""
    wrong = np.flatnonzero(labels != probabilities.argmax(axis=1))
    title = f"{len(wrong):,} of {len(labels):,} test images predicted wrongly"
    if len(wrong) == 0:
        return new_figure(WIDTH, HEADING, title, "The model predicted every test image correctly.")
    shown = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:MISTAKES_SHOWN]
    note = "true → predicted; below: the probability of the predicted class"
    if len(shown) < len(wrong):
        note += f"; {len(shown)} are shown"
    captions = _captions(labels[shown], probabilities[shown], class_names)
    return _gallery(f"{title}; the most confident first", note, images[shown], captions, [WRONG] * len(shown))


def disagreements(
    images: np.ndarray,
    labels: np.ndarray,
    guesses: tuple[np.ndarray, np.ndarray],
    class_names: Sequence[str],
    number: int,
) -> Figure:
    """Test images on which two models answer differently, with the true class and both answers.

    Args:
        images: (images, height, width, channels).
        labels: (images,) true classes, as positions in `class_names`.
        guesses: the classes that the first and the second model predict, (images,) each.
        class_names: (classes,) names.
        number: of all such images, of which the first may be shown.
    """
    captions = [
        "\n".join(_wrap(text) for text in (class_names[label], f"1: {class_names[one]}", f"2: {class_names[other]}"))
        for label, one, other in zip(labels, *guesses, strict=True)
    ]
    note = "true class; below: what the first and the second model answer"
    if len(images) < number:
        note += f"; {len(images)} are shown"
    return _gallery(f"{number:,} test images on which the two models answer differently", note, images, captions)


def corrupted_image(
    images: np.ndarray, names: Sequence[str], label: int, probabilities: np.ndarray, class_names: Sequence[str]
) -> Figure:
    """One test image, clean and with every corruption, and what the model predicts for each.

    Args:
        images: (images, height, width, channels).
        names: (images,) of the corruptions.
        label: its true class, as a position in `class_names`.
        probabilities: (images, classes), 0 to 1.
        class_names: (classes,) names.
    """
    predicted = probabilities.argmax(axis=1)
    right = predicted == label
    title = f"{right.sum()} of {len(right)} versions of one test image predicted correctly: {class_names[label]}"
    note = "below: corruption, predicted class and its probability; green: correct, red: wrong"
    captions = [
        f"{_wrap(name.replace('_', ' '))}\n{_wrap(class_names[guess])} {row.max():.1%}"
        for name, guess, row in zip(names, predicted, probabilities, strict=True)
    ]
    return _gallery(title, note, images, captions, np.where(right, RIGHT, WRONG).tolist())


def _captions(labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """The caption of each image: `class` or `true → predicted`, and the probability below."""
    captions = []
    for label, guess, probability in zip(labels, probabilities.argmax(axis=1), probabilities.max(axis=1), strict=True):
        names = [_wrap(class_names[label])]
        if guess != label:
            names.append(_wrap(f"→ {class_names[guess]}"))
        separator = " " if len(" ".join(names)) <= CAPTION_CHARACTERS else "\n"
        captions.append(f"{separator.join(names)}\n{probability:.1%}")
    return captions


def _wrap(name: str) -> str:
    """Wraps a long name into at most two lines that fit under a tile."""
    return textwrap.fill(name, CAPTION_CHARACTERS, max_lines=2, placeholder="…")


def _gallery(title: str, note: str, images: np.ndarray, captions: Sequence[str], colors: Sequence[str] = ()) -> Figure:
    """Rows of eight images with captions; `colors`, one per image, are those of frame and text."""
    step = max(1, max(images.shape[1:3]) // 100)  # more pixels than the figure has only cost time
    images = images[:, ::step, ::step]
    height, width = images.shape[1:3]
    scale = max(width, height / 1.5) / TILE  # pixels per inch: a tile is at most one inch wide and 1.5 inches high
    lines = 1 + max(caption.count("\n") for caption in captions)
    below, beside = int(np.ceil(scale * (0.1 + LINE * lines))), round(scale * (TILE + TILE_GAP)) - width
    mosaic = _mosaic(images, below, beside)

    high, wide = mosaic.shape[0] / scale, mosaic.shape[1] / scale
    page_height, page_width = high + HEADING, wide + MARGIN
    figure = new_figure(page_width, page_height, title, note)
    axes = figure.add_axes((MARGIN / 2 / page_width, 0, wide / page_width, high / page_height))
    # Resizing takes much memory: less for a row at a time, and with an alpha channel, for which it is done in float32.
    for top in range(0, len(mosaic), height + below):
        tiles = mosaic[top : top + height + below]
        place = -0.5, tiles.shape[1] - 0.5, top + len(tiles) - 0.5, top - 0.5
        axes.imshow(np.dstack([tiles, np.full_like(tiles[..., :1], 255)]), aspect="auto", extent=place)
    axes.set(ylim=(len(mosaic) - 0.5, -0.5))
    axes.set_axis_off()
    frames = []
    for index, (caption, color) in enumerate(zip(captions, colors or [INK] * len(captions), strict=True)):
        row, column = divmod(index, COLUMNS)
        x, y = column * (width + beside) + beside // 2 - 0.5, row * (height + below) - 0.5
        frames.append(Rectangle((x, y), width, height))
        middle, under = x + width / 2, y + height + 0.05 * scale
        axes.text(middle, under, caption, color=color, fontsize=SMALL_SIZE, ha="center", va="top", parse_math=False)
    if colors:
        axes.add_collection(PatchCollection(frames, facecolor="none", edgecolor=colors, linewidth=2, clip_on=False))
    return figure


def _mosaic(images: np.ndarray, below: int, beside: int) -> np.ndarray:
    """Arranges images in rows of eight on white, as one array; separate axes would take ten times as long to draw.

    The lowest value of all becomes black, the highest white. Images that are not RGB are shown as the gray mean of
    their channels.

    Args:
        images: (images, height, width, channels) of any type; not changed.
        below: white pixels below each image.
        beside: white pixels to its left and right together.

    Returns:
        (rows * (height + below), 8 * (width + beside), 3), uint8.
    """
    number, height, width, channels = images.shape
    low, high = float(images.min()), float(images.max())
    stretched = (images.astype(np.float32) - low) * (255 / (high - low or 1))
    colors = stretched if channels == 3 else stretched.mean(axis=-1, keepdims=True)
    rows, left = -(-number // COLUMNS), beside // 2
    tiles = np.full((rows * COLUMNS, height + below, width + beside, 3), 255, np.uint8)
    tiles[:number, :height, left : left + width] = colors.round()
    grid = tiles.reshape(rows, COLUMNS, *tiles.shape[1:])
    return grid.swapaxes(1, 2).reshape(rows * (height + below), COLUMNS * (width + beside), 3)


def classified(
    given: Sequence[np.ndarray],
    seen: Sequence[np.ndarray],
    probabilities: np.ndarray,
    captions: Sequence[str],
    class_names: Sequence[str],
    unsure: float,
) -> Figure:
    """One row per image: the image as given, the model input, and the probabilities as bars.

    Args:
        given: images of shape (height, width, channels), of any size.
        seen: their model inputs, of shape (height, width, channels).
        probabilities: (images, classes); of more than 10 classes the most probable are shown.
        captions: one per image.
        class_names: (classes,) names.
        unsure: a prediction with a lower probability is marked as unsure.
    """
    height = HEADING + len(given) * (TILE + 0.45)
    figure = new_figure(WIDTH, height, f"{len(given)} images", "image, model input, probabilities")
    bars = WIDTH - 2 * TILE - 5 * MARGIN
    for place, (image, pixels, row) in enumerate(zip(given, seen, probabilities, strict=True)):
        bottom = height - HEADING - (place + 1) * (TILE + 0.45) + 0.3
        for left, picture in ((MARGIN, image), (2 * MARGIN + TILE, pixels)):
            panel = figure.add_axes((left / WIDTH, bottom / height, TILE / WIDTH, TILE / height), anchor="C")
            panel.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_color(FAINT)
        shown = np.sort(np.argsort(-row, kind="stable")[:10])
        first = int(row.argmax())
        bar_colors = [FAINT if name != first else RIGHT if row[first] >= unsure else WRONG for name in shown]
        place_of_bars = ((4 * MARGIN + 2 * TILE) / WIDTH, bottom / height, bars / WIDTH, (TILE - 0.2) / height)
        panel = figure.add_axes(place_of_bars)
        panel.bar(range(len(shown)), row[shown], color=bar_colors)
        panel.set(ylim=(0, 1), yticks=[])
        panel.set_xticks(range(len(shown)), [class_names[name][:12] for name in shown], parse_math=False)
        panel.tick_params(length=0, labelsize=SMALL_SIZE, labelcolor=INK)
        panel.spines[["top", "left", "right"]].set_visible(False)
        verdict = f"{class_names[first]}, {row[first]:.1%}" + ("" if row[first] >= unsure else ": unsure")
        text = f"{verdict}   ({textwrap.shorten(captions[place], 60, placeholder='…')})"
        panel.set_title(text, fontsize=TEXT_SIZE, color=INK, loc="left", pad=2, parse_math=False)
    return figure
