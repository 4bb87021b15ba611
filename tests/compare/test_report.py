"""The page of a comparison: its numbers, and how it behaves in a real browser."""

import io
import json
import os
import re
import stat
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from unittest.mock import MagicMock

import mlflow
import numpy as np
import pytest
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from playwright.sync_api import expect
from rich.console import Console

from browser import opened_browser
from experiments.compare import charts, comparison, report, tables
from experiments.compare.parallel_coordinates import parallel_coordinates
from experiments.errors import ExperimentError
from experiments.sweeps.sweep import Sweep
from experiments.tracking.runs import StoredRun, get_run, history, search_runs
from experiments.tracking.views import link_to

HOSTILE = "<img src=x onerror=alert(1)>"
#: Model, dropout -> validation accuracy of the seeds 0, 1, 2, number of parameters, test images that each gets wrong.
VARIANTS = {
    ("conv2", "0"): ([0.90, 0.91, 0.92], 100, [[1, 2], [1, 2], [1, 3]]),
    ("conv2", "0.3"): ([0.93, 0.94, 0.96], 100, [[1], [1, 3], [1, 3]]),
    ("conv3", "0"): ([0.94, 0.96, 0.97], 300, [[1], [1], [2]]),
    ("conv3", "0.3"): ([0.97, 0.98, 1.00], 300, [[1], [1], [1]]),
}


def record(client, folder, experiment, model, dropout, seed, accuracy, parameters, wrong, parent=""):
    """A finished run as training would leave it."""
    tags = {
        "variant.id": f"{model}{dropout}",
        "data.sha256": "d",
        "data.validation_sha256": "d",
        "data.test_sha256": "d",
        "code.sha256": "c",
        "sweep": "mine-000000",
        "variant": f"{model} dropout={dropout} epochs=2",
        "git.commit": "0123456789abcdef",
        "git.dirty": "true" if seed else "false",
        "host": "here",
        **({"mlflow.parentRunId": parent} if parent else {}),
    }
    run_id = client.create_run(experiment, run_name=f"{model} {dropout} seed={seed}").info.run_id
    params = {"model": model, "model.dropout": dropout, "seed": str(seed), "objective": "val_accuracy"}
    params["data"] = "mnist_5k"
    epochs = [
        Metric(name, value, 0, epoch)
        for epoch in (1, 2)
        for name, value in (("val_accuracy", accuracy - 0.1 * (2 - epoch)), ("val_loss", 0.5 / epoch))
    ]
    whole = {"best/val_accuracy": accuracy, "test/accuracy": accuracy - 0.01, "cost/parameters": parameters}
    client.log_batch(
        run_id,
        [*epochs, *(Metric(name, value, 0, 0) for name, value in whole.items())],
        [Param(*item) for item in params.items()],
        [RunTag(*item) for item in tags.items()],
    )
    file = folder / "mistakes.npz"
    images = np.stack([np.full((28, 28, 1), 40 * index, np.uint8) for index in wrong])
    names = {"label": np.array(["7"] * len(wrong)), "predicted": np.array(["1"] * len(wrong))}
    np.savez(file, index=np.array(wrong), image=images, **names)
    client.log_artifact(run_id, str(file))
    (folder / "provenance.json").write_text('{"keras": "3.15.1"}')
    client.log_artifact(run_id, str(folder / "provenance.json"))
    profile = json.dumps({"images": 5000, "image_shape": "28 x 28 x 1", "classes": 10})
    sizes = {"training": 400, "validation": 40, "test": 100}
    tags = [InputTag(f"{part}_images", str(size)) for part, size in sizes.items()]
    used = Dataset("mnist_5k", "d", "code", "{}", "{}", profile)
    client.log_inputs(run_id, [DatasetInput(used, tags)])
    client.set_terminated(run_id)
    return run_id


@pytest.fixture(scope="module")
def compared(shared_store, tmp_path_factory):
    """Four variants of three seeds, compared, and their page."""
    folder = tmp_path_factory.mktemp("compared")
    experiment = shared_store.create_experiment("digits", artifact_location=str(folder / "artifacts"))
    parent = shared_store.create_run(experiment, run_name="mine", tags={"sweep.name": "mine-000000"}).info.run_id
    ids = {}
    for (model, dropout), (accuracies, parameters, wrong) in VARIANTS.items():
        for seed, (accuracy, mistakes) in enumerate(zip(accuracies, wrong, strict=True)):
            key = model, dropout, seed
            ids[key] = record(shared_store, folder, experiment, *key, accuracy, parameters, mistakes, parent)
    found = comparison.compare_runs(comparison.Selection(HOSTILE, search_runs("")))
    file = folder / "page.html"
    tables.write_file(report.page(found), str(file))
    return SimpleNamespace(comparison=found, file=file, ids=ids, experiment=experiment, parent=parent)


@pytest.fixture(scope="module")
def browser():
    with opened_browser() as opened:
        yield opened


@pytest.fixture
def opened(browser, compared):
    """Opens the page from its file; nothing may go wrong in it, and nothing may leave it."""
    contexts, wrong = [], []

    def open_page(width=1600, theme="light"):
        context = browser.new_context(viewport={"width": width, "height": 1000}, color_scheme=theme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or wrong.append(request.url))
        page.goto(compared.file.as_uri())
        expect(page.locator("html[data-ready]")).to_be_attached(timeout=60_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def column(page, number):
    return page.locator(f"#variants tbody tr td:nth-child({number})")


def chart_titled(comparison, title, read=(), histories=None):
    found = charts.charts(comparison, read, histories or {})
    return next(chart.figure for chart in found if chart.title.startswith(title))


# The numbers of the charts


def test_a_main_effect_is_the_mean_over_all_else_with_its_interval_over_seeds(compared):
    figure = chart_titled(compared.comparison, "Main effect of model.dropout")
    single, means = figure["data"]
    assert means["x"] == ["0", "0.3"]
    # Seed by seed, dropout 0: (0.90 + 0.94) / 2 = 0.92, 0.935, 0.945; dropout 0.3: 0.95, 0.96, 0.98.
    assert means["y"] == pytest.approx([0.93333333, 0.96333333])
    half = 4.30265273 * np.std([0.92, 0.935, 0.945], ddof=1) / np.sqrt(3)  # t of 2 degrees of freedom at 97.5 %
    assert means["error_y"]["array"][0] == pytest.approx(half)
    assert means["error_y"]["arrayminus"][0] == pytest.approx(half)
    assert sorted(single["y"]) == pytest.approx([0.91, 0.94333333, 0.95666667, 0.98333333])


def test_curves_are_means_with_bands_over_the_seeds(compared):
    first = compared.comparison.rows[0]
    histories = {run.run_id: history(run, "val_accuracy", "val_loss") for run in first.runs}
    band, line = chart_titled(compared.comparison, "val_accuracy by epoch", [first], histories)["data"]
    assert line["x"] == [1, 2]
    assert line["y"] == pytest.approx([0.88333333, 0.98333333])
    assert band["y"] == pytest.approx([0.90, 1.00, 0.97, 0.87])  # the highest seeds, and back along the lowest


def test_the_pareto_front_joins_what_no_other_variant_beats(compared):
    front, *points = chart_titled(compared.comparison, "best/val_accuracy against parameters")["data"]
    assert (front["x"], front["y"]) == ([100, 300], pytest.approx([0.94333333, 0.98333333]))
    assert [point["marker"]["symbol"] for point in points] == ["diamond", "circle", "diamond", "circle"]


def test_intervals_and_differences_are_those_of_the_table(compared):
    rows = compared.comparison.rows
    means = chart_titled(compared.comparison, "best/val_accuracy of every variant")["data"]
    assert [trace["x"][0] + trace["error_x"]["array"][0] for trace in means] == pytest.approx(
        [r.mean.high for r in rows]
    )
    differences = chart_titled(compared.comparison, "best/val_accuracy: difference")["data"]
    assert [trace["x"][0] for trace in differences] == pytest.approx([row.difference.value for row in rows[1:]])


def test_many_variants_are_cut_in_charts_and_not_in_the_table(compared):
    row = compared.comparison.rows[1]
    rows = tuple(replace(row, rank=rank, pareto=frozenset()) for rank in range(1, 101))
    many = replace(compared.comparison, rows=rows, distinguishing_keys=())
    assert len(chart_titled(many, "best/val_accuracy of every variant")["data"]) == 60
    text = report.page(many)
    assert text.count("data-rank=") == 100
    assert "Learning curves and mistakes are shown for the first 20 variants, 10 seeds each;" in text


def searched(number, rates="0.0001 0.03 0.002", mode="max"):
    """The comparison of a search with so many trials of a learning rate, a model and a batch size."""
    digests = dict.fromkeys(("data.sha256", "data.validation_sha256", "data.test_sha256"), "d")
    modes = {"metric_modes": json.dumps({"accuracy": mode})}
    found = []
    for trial in range(number):
        own = {"optimizer.learning_rate": rates.split()[trial % 3], "model": f"conv{2 + trial % 2}"}
        own |= {"batch_size": str(32 * (1 + trial // 2 % 2)), "model.dropout": f"{trial / 100}"}
        params = {**own, "seed": "0", "objective": "val_accuracy"}
        metrics = {"best/val_accuracy": 0.9 + trial / 1000, "cost/parameters": 100.0 * (trial % 4)}
        tags = {"variant.id": str(trial), **digests, **modes}
        found.append(StoredRun(str(trial), "name", "FINISHED", "", "1", params, tags, metrics, 1.0))
    space = {"batch_size": "choice(32, 64)", "model": "choice(conv2, conv3)", "model.dropout": "numbers from 0 to 1",
             "optimizer.learning_rate": "numbers from 0.0001 to 0.1, log"}  # fmt: skip
    selection = comparison.Selection("search", found, [*space], None, "", True, {}, space)
    return comparison.compare_runs(selection)


def test_parallel_coordinates_have_an_axis_for_each_searched_key_and_the_objective():
    (chart,) = parallel_coordinates(searched(4))
    (lines,) = chart.figure["data"]
    batch, model, dropout, rate, accuracy = lines["dimensions"]
    assert lines["meta"] == [1, 2, 3, 4]  # the best is the last trial
    assert (batch["label"], batch["ticktext"], batch["values"]) == ("batch_size", ["32", "64"], [1, 1, 0, 0])
    assert (model["label"], model["ticktext"], model["values"]) == ("model", ["conv2", "conv3"], [1, 0, 1, 0])
    assert (dropout["label"], dropout["values"], dropout["range"]) == ("dropout", [0.03, 0.02, 0.01, 0.0], [0, 0.03])
    assert "tickvals" not in dropout
    assert rate["label"] == "learning_rate"
    assert rate["values"] == pytest.approx(np.log10([0.0001, 0.002, 0.03, 0.0001]))
    assert rate["ticktext"] == ["0.0001", "0.0002", "0.0005", "0.001", "0.002", "0.005", "0.01", "0.02"]
    assert rate["tickvals"] == pytest.approx(np.log10([float(text) for text in rate["ticktext"]]))
    assert (accuracy["label"], accuracy["values"]) == ("val_accuracy", pytest.approx([0.903, 0.902, 0.901, 0.9]))
    assert lines["line"]["color"] == accuracy["values"] and not lines["line"]["reversescale"]
    assert chart.min_width == 5 * 115


def test_parallel_coordinates_of_other_directions_scales_and_records():
    (lines,) = parallel_coordinates(searched(4, rates="0.0011 0.0019 0.0012", mode="min"))[0].figure["data"]
    assert lines["line"]["reversescale"]
    assert lines["dimensions"][3]["ticktext"] == ["0.0011", "0.0019"]  # without a round number in between
    old = searched(4)
    (lines,) = parallel_coordinates(replace(old, space=dict.fromkeys(old.space, "")))[0].figure["data"]
    batch, model, _, rate, _ = lines["dimensions"]
    assert "ticktext" not in batch and model["ticktext"] == ["conv2", "conv3"]
    assert rate["values"][0] == -4.0  # two decades
    assert parallel_coordinates(replace(old, space={})) == parallel_coordinates(searched(1)) == []


def test_60_variants_stay_readable():
    many = searched(60)
    assert "Of 60 variants, the first 20 that the filter selects are shown." in charts.charts(many, [], {})[0].caption
    curves = {run.run_id: {"val_accuracy": [0.1, 0.2]} for row in many.rows for run in row.runs}
    lines = chart_titled(many, "val_accuracy by epoch", many.rows[:20], curves)["data"]
    assert [line["showlegend"] for line in lines] == [True] * 10 + [False] * 10
    assert len({line["line"]["color"] for line in lines}) == 11  # all others are grey
    _, *points = chart_titled(many, "best/val_accuracy against parameters")["data"]
    labelled = [int(point["text"][0]) for point in points if point["text"][0]]
    # 5 to 8 have as many parameters as these and would overlap them, 9 and 10 are far enough below.
    assert labelled == [1, 2, 3, 4, 9, 10]


def test_it_says_what_it_speaks_of(compared):
    text = compared.file.read_text()
    assert len(text) < 4_000_000
    view = link_to(get_run(compared.parent)).replace("&", "&amp;")
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text.partition("<details>")[0], re.DOTALL))
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert facts.pop("Trained").startswith(today) and facts.pop("Versions") == "Keras 3.15.1"
    assert facts == {
        "Data": "mnist_5k: 5,000 images of 28 x 28 x 1 in 10 classes, of which 400 for training, 40 for validation, "
        "100 for test",
        "Fixed": "epochs=2",
        "Commit": "0123456789, with changes that were not committed",
        "Machine": "here",
        "In MLflow": f'<a href="http://127.0.0.1:5000/{view}">mine</a>',
    }
    settings = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text.partition("<details>")[2].partition("</details>")[0])
    assert settings == [("data", "mnist_5k"), ("objective", "val_accuracy")]


@pytest.mark.slow
def test_a_tracking_server_is_read_likewise_and_linked_to(server, tmp_path):
    client = mlflow.MlflowClient(server.uri)
    experiment = client.create_experiment("digits")
    for seed, accuracy in enumerate([0.9, 0.8]):
        ids = [
            record(client, tmp_path, experiment, model, "0", seed, accuracy, 100, [5]) for model in ("conv2", "conv3")
        ]
    found = comparison.compare_runs(comparison.Selection("mine", search_runs("params.seed = '1'")))
    assert [row.label for row in found.rows] == ["model=conv2", "model=conv3"]
    text = report.page(found)
    assert f'href="{server.uri}/#/experiments/{experiment}/runs/{ids[0]}?workflowType=machine_learning"' in text
    assert "1 image that all 2 variants get wrong" in text


# The page in a browser


@pytest.mark.slow
def test_the_table_is_sorted_by_mouse_and_by_keyboard(opened):
    page = opened()
    expect(column(page, 1)).to_have_text(["1", "2", "3", "4"])
    header = page.locator("#variants th", has_text="parameters")
    header.click()
    expect(column(page, 9)).to_have_text([re.compile(rf"^{number}\W?$") for number in (100, 100, 300, 300)])
    page.locator("#variants th", has_text="rank").focus()
    page.locator("#variants th", has_text="rank").get_by_role("button").focus()
    page.keyboard.press("Enter")
    expect(column(page, 1)).to_have_text(["1", "2", "3", "4"])
    page.keyboard.press("Enter")
    expect(column(page, 1)).to_have_text(["4", "3", "2", "1"])


@pytest.mark.slow
def test_the_filter_chooses_in_the_table_and_in_the_charts(opened):
    page = opened()
    page.get_by_role("searchbox").first.focus()
    page.keyboard.type("dropout=0.3")
    expect(page.locator("#variants tbody tr")).to_have_count(2)
    expect(column(page, 2)).to_have_text(["model=conv3 model.dropout=0.3", "model=conv2 model.dropout=0.3"])
    visible = (
        "[...document.querySelectorAll('.chart')].map(d => d.data.filter(t => t.visible !== false && t.meta).length)"
    )
    # Means, differences, and curves with their bands.
    page.wait_for_function(f"String({visible}.slice(0, 4)) === '2,1,4,4'")
    # The rows of the others are gone, with their names.
    rows = "(d => [d.data.filter(t => t.visible).map(t => t.y[0]), d.layout.annotations.length, d.layout.height])"
    page.wait_for_function(f"String({rows}(document.querySelector('.chart'))) === '0,1,2,168'")
    page.get_by_role("searchbox").first.fill("")
    page.wait_for_function(f"String({rows}(document.querySelector('.chart'))) === '0,1,2,3,4,256'")
    page.get_by_role("searchbox").first.fill("nothing")
    expect(page.locator("#variants tbody")).to_have_text("No match")


@pytest.mark.slow
def test_the_theme_follows_the_system_and_the_button(opened):
    page = opened(theme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    chart = "document.querySelector('.chart')._fullLayout.paper_bgcolor"
    page.wait_for_function(f"{ground} === 'rgb(22, 25, 29)' && {chart} === '#16191d'")
    button = page.get_by_role("button", name="Light", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Dark", exact=True)).to_be_focused()
    page.wait_for_function(f"{ground} === 'rgb(255, 255, 255)' && {chart} === '#fff'")


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_nothing_is_wider_than_the_window(opened, width, theme):
    page = opened(width, theme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    widths = page.evaluate("[...document.querySelectorAll('.chart svg.main-svg')].map(s => s.getBoundingClientRect())")
    hint = page.get_by_text("Scroll the table sideways for more columns.")
    expect(hint).to_be_visible(visible=width == 400)
    assert len(widths) >= 7 and all(box["right"] <= width and box["width"] > 300 for box in widths)


@pytest.mark.slow
def test_mistakes_of_all_and_of_some_variants(opened):
    page = opened()
    assert page.locator("h3", has_text="that").all_inner_texts() == [
        "1 image that all 4 variants get wrong",
        "2 images that only some variants get wrong",
    ]
    # Of three seeds two must be wrong: 2 is for conv2 without dropout, 3 for conv2 with it.
    assert page.locator("#everywhere li").all_inner_texts() == ["7, predicted as 1; no. 1"]
    assert page.locator("#divided li").all_inner_texts() == [
        "7, predicted as 1; no. 2; wrong in 4",
        "7, predicted as 1; no. 3; wrong in 3",
    ]
    sizes = page.evaluate("[...document.querySelectorAll('.gallery img')].map(i => [i.naturalWidth, i.naturalHeight])")
    assert sizes == [[28, 28]] * 3


@pytest.mark.slow
def test_every_run_has_its_link_and_the_command_to_reproduce_it(opened, compared):
    page = opened()
    rows = page.locator("#runs tbody tr")
    expect(rows).to_have_count(12)
    run_id = compared.ids["conv3", "0.3", 0]
    row = rows.filter(has_text=run_id)
    assert row.locator("code").inner_text() == f"experiments reproduce {run_id}"
    link = f"http://127.0.0.1:5000/#/experiments/{compared.experiment}/runs/{run_id}?workflowType=machine_learning"
    assert row.get_by_role("link").get_attribute("href") == link


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1000])
def test_a_search_of_60_variants_is_filtered_and_stays_within_the_window(compared, browser, tmp_path, width):
    known = compared.comparison.rows[0].runs[:1]  # whose histories and mistakes can be read
    many = searched(60)
    many = replace(many, rows=tuple(replace(row, runs=known) for row in many.rows))
    file = tmp_path / "search.html"
    file.write_text(report.page(many))
    assert file.stat().st_size < 4_000_000
    with browser.new_context(viewport={"width": width, "height": 1000}) as context:
        page, wrong = context.new_page(), []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(file.as_uri())
        expect(page.locator("html[data-ready]")).to_be_attached(timeout=60_000)
        lines, rows = (page.locator(".chart").nth(place) for place in (0, 1))
        expect(lines.locator(".axis-title")).to_have_text(
            ["batch_size", "model", "dropout", "learning_rate", "val_accuracy"]
        )
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert lines.bounding_box()["width"] >= 5 * 115
        names = rows.locator(".annotation-text")
        of_lines = "lines.data[0].line.color.length, lines.data[0].dimensions.map(axis => axis.values.length)"
        of_rows = "rows.data.filter(row => row.visible !== false).length, rows.layout.height"
        counts = f"(([lines, rows]) => String([{of_lines}, {of_rows}]))(document.querySelectorAll('.chart'))"
        for words, found in (("", 60), ("model=conv2", 30), ("dropout=0.01", 1), ("nothing", 0), ("", 60)):
            page.get_by_role("searchbox").first.fill(words)
            shown = min(found, 20)
            page.wait_for_function(f"{counts} === '{','.join([str(found)] * 6)},{shown},{44 * shown + 80}'")
            expect(names).to_have_count(shown)
        first = names.first.bounding_box()
        second = names.nth(1).bounding_box()
        assert first["y"] + first["height"] <= second["y"]
    assert wrong == []


@pytest.mark.slow
def test_words_of_users_are_shown_and_not_run(opened):
    page = opened()
    assert page.title() == HOSTILE
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.locator("img[src=x]").count() == 0


@pytest.mark.slow
def test_it_prints_light_and_whole(opened, tmp_path):
    page = opened(theme="dark")
    page.evaluate("addEventListener('beforeprint', () => window.printed = document.documentElement.className)")
    assert page.pdf(path=tmp_path / "page.pdf").startswith(b"%PDF")
    assert page.evaluate("window.printed") == ""
    assert page.evaluate("document.documentElement.className") == "dark"


def test_a_page_that_cannot_be_made_costs_a_sweep_nothing_else(compared, monkeypatch, compose):
    def broken(comparison):
        raise TypeError("cannot draw this")

    class Finished(Sweep):
        def comparison(self):
            return compared.comparison

    monkeypatch.setattr(report, "page", broken)
    parent, display = MagicMock(), MagicMock()
    parent.name, display.console = "mine", Console(file=io.StringIO())
    Finished(parent, [], compose(), display, "").close("FINISHED", {}, patience=0, page=True)
    again = "Later: experiments compare mine --html FILE"
    assert display.print.call_args_list[0].args == (f"Without report.html: TypeError: cannot draw this {again}",)
    kept = [call.args[0] for call in parent.outbox.put_file.call_args_list]
    assert kept == ["leaderboard.csv", "leaderboard.md"]
    parent.close.assert_called_once_with("FINISHED", 0)


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "page.html").mkdir()
    with pytest.raises(ExperimentError, match=r"page\.html cannot be written: Is a directory\."):
        tables.write_file("text", str(tmp_path / "page.html"))
    assert [file.name for file in tmp_path.rglob("*")] == ["page.html"]


def test_a_device_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    tables.write_file("rank,variant\n", str(pipe))
    assert os.read(reader, 100) == b"rank,variant\n"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
