"""Digits that no net was trained on: typed, and drawn with strokes, on all kinds of paper."""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONTS = sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("DejaVuSans*.ttf"))
FONTS += sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("STIXGeneral*.ttf"))
FONTS = [font for font in FONTS if "Display" not in font.name]
#: Paper and ink.
LOOKS = (("white", "black"), ("black", "white"), ("#e8d8b0", "#203080"), ("#303840", "#e0d020"))
#: Strokes of every digit, as points in a box of 1 by 1.
STROKES = {
    0: [[(0.5, 0), (0.15, 0.2), (0.1, 0.6), (0.3, 0.95), (0.6, 1), (0.85, 0.75), (0.85, 0.3), (0.5, 0)]],
    1: [[(0.55, 0), (0.45, 1)]],
    2: [[(0.15, 0.25), (0.35, 0.02), (0.7, 0.05), (0.8, 0.3), (0.5, 0.65), (0.1, 1), (0.9, 0.97)]],
    3: [[(0.2, 0.08), (0.6, 0), (0.8, 0.2), (0.45, 0.45), (0.8, 0.65), (0.75, 0.92), (0.4, 1), (0.15, 0.9)]],
    4: [[(0.25, 0), (0.15, 0.55), (0.85, 0.55)], [(0.7, 0.2), (0.65, 1)]],
    5: [[(0.85, 0), (0.3, 0), (0.22, 0.42), (0.6, 0.4), (0.82, 0.65), (0.7, 0.93), (0.4, 1), (0.15, 0.92)]],
    6: [[(0.7, 0), (0.35, 0.35), (0.2, 0.7), (0.4, 1), (0.7, 0.95), (0.75, 0.65), (0.5, 0.52), (0.24, 0.72)]],
    7: [[(0.1, 0.03), (0.9, 0), (0.4, 1)]],
    8: [[(0.5, 0.45), (0.25, 0.2), (0.5, 0), (0.75, 0.2), (0.5, 0.45)],
        [(0.5, 0.45), (0.2, 0.75), (0.5, 1), (0.8, 0.75), (0.5, 0.45)]],
    9: [[(0.75, 0.3), (0.45, 0.48), (0.25, 0.25), (0.5, 0), (0.78, 0.15), (0.75, 0.4), (0.6, 1)]],
}  # fmt: skip


def typed(font, digit, paper, ink, *, size, canvas, place):
    """A digit in a font, its box at `place` in the canvas (0 to 1 across and down)."""
    image = Image.new("RGBA" if paper is None else "RGB", canvas, paper or (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)
    type_face = ImageFont.truetype(str(font), size)
    left, top, right, bottom = pen.textbbox((0, 0), str(digit), font=type_face)
    corner = [place[0] * (canvas[0] - right + left) - left, place[1] * (canvas[1] - bottom + top) - top]
    pen.text(corner, str(digit), font=type_face, fill=ink)
    return image


def drawn(digit, paper, ink, *, size, canvas, place, width):
    """A digit of strokes so many pixels wide."""
    image = Image.new("RGBA" if paper is None else "RGB", canvas, paper or (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)
    across, down = 0.7 * size, size
    corner = [place[0] * (canvas[0] - across - 2 * width) + width, place[1] * (canvas[1] - down - 2 * width) + width]
    for stroke in STROKES[digit]:
        points = [(corner[0] + x * across, corner[1] + y * down) for x, y in stroke]
        pen.line(points, fill=ink, width=width, joint="curve")
        for x, y in points:
            pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=ink)
    return image


def collection():
    """200 images and their labels, typed and drawn in turn: light, dark and transparent paper, any size and place."""
    rng = np.random.default_rng(0)
    images, labels = [], []
    for number in range(100):
        paper, ink = LOOKS[number % len(LOOKS)]
        if number % 10 == 9:
            paper, ink = None, ("black", "white")[number // 10 % 2]
        size = int(rng.choice([24, 60, 150, 240]))
        canvas = (int(size * rng.uniform(1.3, 3)), int(size * rng.uniform(1.5, 3)))
        font = FONTS[int(rng.integers(len(FONTS)))]
        place = rng.uniform(0, 1, 2)
        images.append(typed(font, number % 10, paper, ink, size=size, canvas=canvas, place=place))
        width = max(2, round(size * rng.uniform(0.06, 0.14)))
        images.append(drawn(number // 10, paper, ink, size=size, canvas=canvas, place=place, width=width))
        labels += [number % 10, number // 10]
    return images, np.array(labels)
