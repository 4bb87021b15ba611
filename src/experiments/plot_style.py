"""Colors, sizes and page of the figures; see `plots`."""

import functools
import logging
import warnings
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.lines import Line2D
from matplotlib.text import Text

_log = logging.getLogger("experiments")

INK, QUIET, FAINT = "#333333", "#707070", "#E6E6E6"
TRAINING, VALIDATION = "#9AA3AB", "#0072B2"
RIGHT, WRONG = "#008066", "#D0301C"

# Lengths are in inches, text sizes in points (1/72 inch). At this resolution, a tile of one inch shows each pixel of an
# MNIST image as exactly 4 by 4 pixels.
DOTS_PER_INCH = 112
WIDTH, MARGIN, HEADING = 9.4, 0.14, 0.62
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE, SMALLEST_SIZE = 12, 9, 8, 5


class _Figure(Figure):
    """A figure whose texts may be in any script that a font on this machine has."""

    def savefig(self, *arguments: Any, **options: Any) -> None:
        """Saves the figure; characters that no font has are drawn as boxes."""
        texts = [text for text in self.findobj(Text) if isinstance(text, Text) and not text.get_text().isascii()]
        families = _families(frozenset("".join(text.get_text() for text in texts)))
        for text in texts:
            text.set_fontfamily(families)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
            super().savefig(*arguments, **options)


@functools.cache
def _families(characters: frozenset[str]) -> list[str]:
    """The default font, and one more for each script that it does not have."""
    default = FontProperties()
    families = [*default.get_family()]
    missing = {ord(character) for character in characters if character.isprintable()}
    missing -= set(get_font(findfont(default)).get_charmap())
    plain = [font for font in fontManager.ttflist if (font.style, font.weight) == ("normal", 400)]
    for font in sorted(plain, key=lambda font: font.name) if missing else ():
        if font.name.startswith("Last Resort"):  # of matplotlib, has a box for every character
            continue
        if found := missing & set(get_font(font.fname).get_charmap()):
            families.append(font.name)
            missing -= found
    if missing:
        _warn_of_boxes()
    return families


@functools.cache
def _warn_of_boxes() -> None:
    """Says once what is drawn as boxes, and why."""
    _log.warning("Some characters are in no font on this machine: figures show boxes. Install a font that has them.")


def remove_frame(axes: Axes) -> None:
    """Replaces the frame of a panel with faint horizontal grid lines."""
    axes.tick_params(length=0, labelsize=SMALL_SIZE, labelcolor=QUIET)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def new_figure(width: float, height: float, title: str, note: str) -> Figure:
    """Creates a white figure of a size in inches, with its heading at the top left."""
    figure = _Figure((width, height), dpi=DOTS_PER_INCH, facecolor="white")
    figure.text(MARGIN / width, 1 - 0.12 / height, title, fontsize=TITLE_SIZE, color=INK, va="top")
    figure.text(MARGIN / width, 1 - 0.36 / height, note, fontsize=SMALL_SIZE, color=QUIET, va="top")
    return figure


def epoch_axis(axes: Axes, title: str, epochs: int) -> None:
    """Sets the title of a panel, and its axis of whole epochs from 1 to `epochs`."""
    axes.set_title(title, loc="left", fontsize=TEXT_SIZE + 1, color=INK, pad=17)
    axes.set_xlabel("epoch", fontsize=SMALL_SIZE, color=QUIET)
    step = next(step for step in (1, 5, 10, 20, 50, 100, 200, 500, epochs) if epochs <= 8 * step)
    axes.set_xticks(sorted({1, *range(step, epochs + 1, step)}))
    room = max(0.5, 0.03 * epochs)
    axes.set_xlim(1 - room, epochs + room)
    remove_frame(axes)


def epoch_line(axes: Axes, values: Sequence[float], color: str) -> Line2D:
    """Plots one value per epoch, with markers for up to 20 epochs, so that a single epoch is visible, too."""
    marker = "o" if len(values) <= 20 else ""
    return axes.plot(range(1, len(values) + 1), values, color=color, linewidth=1.8, marker=marker, markersize=3.5)[0]
