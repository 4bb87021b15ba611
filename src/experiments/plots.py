"""The figures of a run: functions that take numbers and return a matplotlib `Figure`.

They write no files and change no global state: no pyplot, no rcParams. All figures have dark gray text on white, and
the color-blind safe colors of Okabe and Ito (https://jfly.uni-koeln.de/color/). Color never carries meaning alone.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from experiments.plot_style import (
    FAINT,
    HEADING,
    INK,
    MARGIN,
    QUIET,
    SMALL_SIZE,
    SMALLEST_SIZE,
    TEXT_SIZE,
    TRAINING,
    VALIDATION,
    WIDTH,
    WRONG,
    epoch_axis,
    epoch_line,
    new_figure,
    remove_frame,
)

MISTAKE_RATES = LinearSegmentedColormap.from_list("mistake_rates", ["#FFFFFF", "#FDE0BC", "#E88B35", "#8F3200"])
RECALLS = LinearSegmentedColormap.from_list("recalls", ["#FFFFFF", "#C9DAE6"])


def curves(history: Mapping[str, Sequence[float]], best_epoch: int, objective: str) -> Figure:
    """Learning curves on training and validation data, with the epoch marked whose weights were kept.

    If the learning rate changes, it is shown in a last panel, on a logarithmic scale if it spans more than a decade.

    Args:
        history: one value per epoch of `learning_rate` and, for the training and as `val_…` for the validation, of
            `accuracy`, `loss` and any other metrics.
        best_epoch: the epoch whose weights were kept, counted from 1.
        objective: the metric by which epochs are compared.
    """
    rates, best = history["learning_rate"], history[objective][best_epoch - 1]
    first = ["accuracy", "loss"]
    metrics = [*first, *sorted(name for name in history if f"val_{name}" in history and name not in first)]
    # The values of all classes share a panel.
    panels = list(dict.fromkeys(name.partition("/")[0] for name in metrics)) + (
        ["learning rate"] if min(rates) < max(rates) else []
    )
    rows = -(-len(panels) // 3)
    height, right = 3.5 + 2.6 * (rows - 1), 1 - MARGIN / WIDTH
    title = f"Epoch {best_epoch} of {len(rates)}: {objective} {best:.4f}"
    figure = new_figure(WIDTH, height, title, "dashed: the epoch whose weights were kept")
    figure.subplots_adjust(0.5 / WIDTH, 0.5 / height, right, 1 - 1.05 / height, wspace=0.24, hspace=0.55)
    widths = [1, 1, 0.7 if rows == 1 else 1][: len(panels)]
    grid = figure.subplots(rows, len(widths), squeeze=False, width_ratios=widths).flat
    axes = dict(zip(panels, grid, strict=False))
    for unused in grid[len(panels) :]:
        unused.set_axis_off()
    for name, panel in axes.items():
        epoch_axis(panel, name, len(rates))
        panel.axvline(best_epoch, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    for name in metrics:
        panel = axes[name.partition("/")[0]]
        lines = [epoch_line(panel, history[name], TRAINING), epoch_line(panel, history[f"val_{name}"], VALIDATION)]
    legend = {"ncols": 2, "frameon": False, "fontsize": TEXT_SIZE, "labelcolor": INK, "borderaxespad": 0}
    figure.legend(
        lines, ["training", "validation"], loc="upper right", bbox_to_anchor=(right, 1 - 0.1 / height), **legend
    )

    chosen = axes[objective.removeprefix("val_").partition("/")[0]]
    chosen.plot(best_epoch, best, "o", color=VALIDATION, markersize=8, markeredgecolor="white", zorder=4)
    # The value is written above the panel, where no curve can cross it.
    above = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center"}
    chosen.annotate(f"{best:.4f}", (best_epoch, 1), (0, 3), color=VALIDATION, fontsize=TEXT_SIZE, **above)
    if "learning rate" in axes:
        panel = axes["learning rate"]
        epoch_line(panel, rates, INK)
        if 0 < 10 * min(rates) < max(rates):
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    return figure


def search_history(trials: Sequence[tuple[int, float, bool]], metric: str, mode: str) -> Figure:
    """The values of all trials of a search, and the best so far.

    Args:
        trials: number, value, and whether it was pruned.
        metric: name of the values.
        mode: `max` or `min`: whether higher or lower values are better.
    """
    whole = [(number, value) for number, value, pruned in trials if not pruned]
    cut = [(number, value) for number, value, pruned in trials if pruned]
    better = max if mode == "max" else min
    best = [(number, better(value for _, value in whole[: end + 1])) for end, (number, _) in enumerate(whole)]
    height, right = 3.5, 1 - MARGIN / WIDTH
    result = f"best {metric}: {best[-1][1]:.4f}" if best else "no trial has a result"
    figure = new_figure(WIDTH, height, f"{len(trials)} trials, {result}", "line: the best so far; crosses: pruned")
    figure.subplots_adjust(0.6 / WIDTH, 0.5 / height, right, 1 - 0.8 / height)
    axes = figure.subplots()
    remove_frame(axes)
    axes.set_xlabel("trial", fontsize=SMALL_SIZE, color=QUIET)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.step(
        [number for number, _ in best], [value for _, value in best], where="post", color=VALIDATION, linewidth=1.6
    )
    for points, marker, color in ((whole, "o", VALIDATION), (cut, "x", TRAINING)):
        axes.scatter([x for x, _ in points], [y for _, y in points], s=26, marker=marker, color=color, zorder=3)
    return figure


def confusion_matrix(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """The confusion matrix: errors in orange, correct predictions in a pale blue that does not distract from them.

    The color of a cell is its share of its row. Counts are written if there is room, zeros never. Beside each row
    stands the recall of its class, above each column the precision, both in percent.

    Args:
        matrix: (classes, classes) integers; rows are the true classes, columns the predicted ones.
        class_names: (classes,) names in the order of the matrix.
    """
    classes, total = len(matrix), int(matrix.sum())
    right = np.eye(classes, dtype=bool)
    rates = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    highest = rates[~right].max(initial=0)

    side = min(max(1 + 0.5 * classes, 3.5), 10)
    cell = 72 * side / classes  # points
    names = [name if len(name) <= 28 else f"{name[:27]}…" for name in class_names]
    name_size = min(TEXT_SIZE, 0.85 * cell)
    longest = 0.6 * name_size * max(map(len, names))  # points: a letter is about 0.6 of its size wide
    level = longest < cell
    left, bottom = 0.45 + longest / 72, 0.5 + (name_size if level else longest) / 72
    width, height = left + side + 6 * MARGIN, bottom + side + HEADING + 4 * MARGIN
    title = f"Accuracy {np.trace(matrix) / max(total, 1):.2%} on {total:,} images"
    figure = new_figure(
        width, height, title, f"orange: errors, by their share of the true class, at most {highest:.1%}"
    )
    axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
    # The power spreads out the small rates, where most errors are. The scale ends at 5 % at least, so that rare errors
    # stay pale.
    shades = np.asarray(PowerNorm(0.6, 0, max(highest, 0.05))(rates))
    axes.imshow(np.where(right[..., None], RECALLS(rates), MISTAKE_RATES(shades)), interpolation="nearest")

    ticks = np.arange(
        0, classes, int(np.ceil(6 / cell))
    )  # names need 6 points each; if there is less, some are left out
    shown = [names[tick] for tick in ticks]
    axes.set_xticks(ticks, shown, rotation=0 if level else 90, parse_math=False)
    axes.set_yticks(ticks, shown, parse_math=False)
    recalls, precisions = (100 * np.diag(matrix) / np.maximum(matrix.sum(axis), 1) for axis in (1, 0))
    beside, above = axes.secondary_yaxis("right"), axes.secondary_xaxis("top")
    beside.set_yticks(ticks, [f"{value:.1f}" for value in recalls[ticks]])
    above.set_xticks(ticks, [f"{value:.1f}" for value in precisions[ticks]], rotation=90 * (3 * name_size > cell))
    beside.set_ylabel("recall, %", fontsize=TEXT_SIZE, color=QUIET)
    above.set_xlabel("precision, %", fontsize=TEXT_SIZE, color=QUIET)
    for side_axes in (axes, beside, above):
        side_axes.tick_params(length=0, labelsize=name_size, labelcolor=INK)
        side_axes.spines[:].set_color(FAINT)
    axes.set_xlabel("predicted", fontsize=TEXT_SIZE, color=QUIET)
    axes.set_ylabel("true", fontsize=TEXT_SIZE, color=QUIET)

    count_size = min(TEXT_SIZE, cell / (0.62 * len(str(matrix.max())) + 0.5))
    if count_size >= SMALLEST_SIZE:
        for row, column in np.argwhere(matrix):
            color = "white" if row != column and shades[row, column] > 0.75 else INK
            count = str(matrix[row, column])
            axes.text(column, row, count, color=color, fontsize=count_size, ha="center", va="center_baseline")
    return figure


def reliability(counts: np.ndarray, confidences: np.ndarray, accuracies: np.ndarray, intervals: np.ndarray) -> Figure:
    """Reliability diagram: accuracy against confidence, in bins of increasing confidence.

    The left panel has log-odds axes, which separate 99 % from 99.9 %. The right panel shows the differences, whose mean
    absolute value is the calibration error.

    Args:
        counts: (bins,) images per bin.
        confidences: (bins,) mean probability of the predicted class, 0 to 1.
        accuracies: (bins,) share of correct predictions, 0 to 1.
        intervals: (2, bins) lower and upper limits of the accuracies.
    """
    error = float(np.average(abs(accuracies - confidences), weights=counts))
    off = (intervals[0] > confidences + 1e-6) | (intervals[1] < confidences - 1e-6)  # float32 probabilities exceed 1
    colors = np.where(off, WRONG, VALIDATION)
    each = " or ".join(f"{count:,}" for count in np.unique(counts))
    height, right = 3.9, 1 - MARGIN / WIDTH
    note = f"{len(counts)} bins of {each} test images; below the line: overconfident; red: outside the 95 % interval"
    figure = new_figure(WIDTH, height, f"Calibration error {error:.4f}", note)
    figure.subplots_adjust(0.72 / WIDTH, 0.52 / height, right, 1 - 0.95 / height, wspace=0.2)
    odds, gaps = figure.subplots(1, 2, width_ratios=[1, 1.2])
    sizes = f"accuracy - confidence, percentage points; mean gap {100 * error:.2f}"
    for axes, title in ((odds, "accuracy against confidence"), (gaps, sizes)):
        axes.set_title(title, loc="left", fontsize=TEXT_SIZE + 1, color=INK, pad=9)
        axes.set_xlabel("confidence", fontsize=SMALL_SIZE, color=QUIET)
        remove_frame(axes)

    low = min(0.4, 0.8 * confidences.min())
    nines = int(np.ceil(-np.log10(np.clip(1 - confidences.max(), 1e-7, 0.1))))
    high = 1 - 10.0 ** -(nines + 0.3)  # a little above the highest confidence; values beyond it are drawn on the edge
    low_shares, high_shares = (0.01, 0.1, 0.5), 1 - 10.0 ** -np.arange(1, nines + 1, 1 if nines < 5 else 2)
    shares = np.array([share for share in (*low_shares, *high_shares) if share > low])
    names, ends = [f"{100 * share:.9g}%" for share in shares], _log_odds(np.array([low, high]))
    odds.set_xticks(_log_odds(shares), names)
    odds.set_yticks([*_log_odds(shares[:-1]), ends[1]], [*names[:-1], "100%"])
    odds.plot(ends, ends, color=TRAINING, linewidth=1, zorder=1)
    places = _log_odds(confidences.clip(low, high))
    odds.vlines(places, *_log_odds(intervals.clip(low, high)), color=colors, linewidth=1, alpha=0.5)
    odds.scatter(places, _log_odds(accuracies.clip(low, high)), s=20, color=colors, zorder=3, clip_on=False)
    odds.set_xlim(*ends)
    odds.set_ylim(*ends)

    order = np.arange(len(counts))
    gaps.axhline(0, color=TRAINING, linewidth=1, zorder=1)
    gaps.bar(order, 100 * (accuracies - confidences), color=colors, width=0.7, zorder=2)
    gaps.vlines(order, *(100 * (intervals - confidences)), color=INK, linewidth=0.8, zorder=3)
    named = np.unique([0, len(order) // 2, len(order) - 1])
    gaps.set_xticks(named, [f"{share:.1%}" if share < 0.9995 else "> 99.9%" for share in confidences[named]])
    return figure


def _log_odds(shares: np.ndarray) -> np.ndarray:
    return np.log(shares / (1 - shares))
