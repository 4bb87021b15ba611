"""Writes a comparison as an HTML page that needs no network, with Plotly for charts and DataTables for tables."""

import base64
import gzip
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader
from plotly.offline import get_plotlyjs

from experiments import images
from experiments.compare import charts, setting, tables
from experiments.compare.parallel_coordinates import parallel_coordinates
from experiments.compare.ranking import Comparison, Row
from experiments.tracking import results, ui, views
from experiments.tracking.runs import history

_MOST_VARIANTS, _MOST_SEEDS = 20, 10  # whose histories and mistakes are read, in about 5 s
_MOST_IMAGES = 48  # per gallery


@dataclass(frozen=True)
class _Mistake:
    """A test image that some variants predict wrongly."""

    index: int  # position in the test set
    image: np.ndarray  # uint8 (height, width, channels)
    label: str
    predicted: str  # the most frequent wrong prediction
    wrong_in: tuple[int, ...]  # ranks of the variants that predict it wrongly with most of their seeds

    @property
    def source(self) -> str:
        """The image as a data URI."""
        return images.data_uri(self.image)


def page(comparison: Comparison) -> str:
    """Renders the page, with the learning curves and mistakes of the first 20 variants, 10 seeds each.

    Raises:
        StoreLost: the store cannot be reached.
    """
    read = [replace(row, runs=row.runs[:_MOST_SEEDS]) for row in comparison.rows[:_MOST_VARIANTS]]
    metrics = charts.curve_metrics(comparison)
    histories = {run.run_id: history(run, *metrics) for row in read for run in row.runs}
    mistakes, compared = _mistakes(read)
    everywhere = [mistake for mistake in mistakes if len(mistake.wrong_in) == compared]
    divided = [mistake for mistake in mistakes if len(mistake.wrong_in) < compared]
    divided.sort(key=lambda mistake: abs(2 * len(mistake.wrong_in) - compared))  # half the variants wrong comes first
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    return environment.get_template("report.html").render(
        comparison=comparison,
        columns=tables.columns(comparison, comparison.rows),
        notes=tables.notes(comparison),
        charts=[*parallel_coordinates(comparison), *charts.charts(comparison, read, histories)],
        templates=charts.templates(),
        gallery={"everywhere": everywhere[:_MOST_IMAGES], "divided": divided[:_MOST_IMAGES]},
        counts={"everywhere": len(everywhere), "divided": len(divided), "variants": compared},
        cut=len(read) < len(comparison.rows) or any(len(row.runs) > _MOST_SEEDS for row in comparison.rows),
        limits={"variants": _MOST_VARIANTS, "seeds": _MOST_SEEDS, "charted": charts.MOST_VARIANTS},
        most_rows=charts.MOST_ROWS,
        run_page=lambda run: ui.page(views.run_link(run)),
        facts=[(name, text) for name, text in setting.facts(comparison) if text],
        settings=setting.shared_settings(comparison),
        sweeps={name: ui.page(link) for name, link in setting.sweep_links(comparison).items()},
        plotly=base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode(),  # a quarter of its size
        datatables=base64.b64encode((files("itables") / "html" / "dt_bundle.js").read_bytes()).decode(),
        datatables_style=(files("itables") / "html" / "dt_bundle.css").read_text(encoding="utf-8"),
    )


def _mistakes(rows: Sequence[Row]) -> tuple[list[_Mistake], int]:
    """The images that some variants predict wrongly, and the number of variants whose mistakes were recorded.

    Variants with another test set than the first one are left out.
    """
    shown: dict[int, tuple[np.ndarray, str]] = {}
    predictions: dict[int, Counter[str]] = defaultdict(Counter)
    wrong_in: dict[int, list[int]] = defaultdict(list)
    compared = 0
    for row in rows:
        if row.runs[0].tags["data.test_sha256"] != rows[0].runs[0].tags["data.test_sha256"]:
            continue
        known = [mistakes for run in row.runs if (mistakes := results.mistakes(run))]
        compared += bool(known)
        seeds: Counter[int] = Counter()
        for mistakes in known:
            for index, image, label, predicted in zip(
                mistakes.index.tolist(), mistakes.image, mistakes.label, mistakes.predicted, strict=True
            ):
                shown[index] = (image, str(label))
                predictions[index][str(predicted)] += 1
                seeds[index] += 1
        for index, count in seeds.items():
            if 2 * count > len(known):
                wrong_in[index].append(row.rank)
    most_frequent_first = sorted(wrong_in, key=lambda index: (-predictions[index].total(), index))
    return [
        _Mistake(index, *shown[index], predictions[index].most_common(1)[0][0], tuple(wrong_in[index]))
        for index in most_frequent_first
    ], compared
