"""MLflow's own UI on a real sweep, in a real browser: what one looks for is there at once."""

import contextlib
import os
import re
import signal
import subprocess
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from playwright.sync_api import expect

from browser import opened_browser
from commands import EXPERIMENTS, experiments, free_port
from experiments import run
from experiments.compare.names import find_sweeps
from experiments.tracking.runs import runs_of
from experiments.tracking.ui import page as page_of
from experiments.tracking.views import link_to
from records import record_sweep

pytestmark = pytest.mark.slow
SWEEP = ["-m", "model.dropout=0,0.3", "seed=0,1", "data.limit=100", "epochs=2", "hydra.launcher.n_jobs=2"]
_LOADS = 60_000  # milliseconds that a page may take


@contextlib.contextmanager
def started_ui():
    """`experiments ui`, with the link that it prints; ends it with Ctrl-C, which leaves no process."""
    port = free_port()
    words = [EXPERIMENTS, "ui", "--port", str(port)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ) as ui:
        lines = iter(ui.stdout.readline, "")
        link = next(line for line in lines if line.startswith("The runs: ")).removeprefix("The runs: ").strip()
        processes = psutil.Process(ui.pid).children(recursive=True)
        try:
            yield SimpleNamespace(link=link, page=f"http://127.0.0.1:{port}/#/", processes=processes)
        finally:
            ui.send_signal(signal.SIGINT)
        assert ui.wait(120) == 130
        _, alive = psutil.wait_procs(processes, timeout=120)
        assert alive == []
        said = ui.stderr.read()
        assert said.endswith("experiments: interrupted\n") and "Traceback" not in said
        assert ":5000/" in page_of("#/")


@pytest.fixture(scope="module")
def browser():
    """One for all tests, because a thread can have only one Playwright."""
    with opened_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def swept(shared_store):
    """A sweep and a diverged run, shown by `experiments ui`."""
    diverged = run(["data.limit=100", "epochs=1", "optimizer=sgd", "optimizer.learning_rate=1e38"])
    done = experiments(*SWEEP)
    assert done.returncode == 0, done.stdout
    with started_ui() as ui:
        experiment = shared_store.get_experiment_by_name("mnist_5k").experiment_id
        children = shared_store.search_runs([experiment], "tags.job != ''")
        (parent,) = shared_store.search_runs([experiment], "tags.`sweep.name` != ''")
        printed = done.stdout.rpartition("/#/")[2].strip()
        yield SimpleNamespace(
            link=ui.link,
            sweep=ui.page + printed,
            runs=f"{ui.page}experiments/{experiment}/runs",
            parent=parent.info,
            children=sorted((child.info for child in children), key=lambda info: info.run_name),
            variants={child.data.tags["variant"] for child in children},
            diverged=diverged,
            processes=ui.processes,
        )


@pytest.fixture
def page(browser):
    """A page of its own in the browser."""
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    context.set_default_timeout(_LOADS)
    yield context.new_page()
    context.close()


def shown(page, address):
    page.goto(address, timeout=_LOADS)
    return page


def test_it_listens_to_this_machine_alone(swept):
    connections = [connection for process in swept.processes for connection in process.net_connections()]
    assert {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}


def test_names_of_jobs_differ_only_in_what_is_varied(swept):
    names = [child.run_name for child in swept.children]
    assert names == [f"dropout={dropout} seed={seed}" for dropout in (0, 0.3) for seed in (0, 1)]


def test_links_lead_to_the_view_of_the_newest_sweep_where_the_ui_runs(swept):
    assert swept.link == swept.sweep  # that of the sweep's end, too
    assert len(swept.link) < 130
    assert swept.link == page_of(f"#/{swept.link.partition('/#/')[2]}")  # and that of a sweep that ends now


def test_the_view_of_a_sweep_has_its_charts_first_grouped_by_variants_with_names(swept, page):
    shown(page, swept.sweep)
    expect(page.get_by_text("4 matching runs")).to_be_visible(timeout=_LOADS)
    expect(page.get_by_text("Sort: best/val_accuracy")).to_be_visible()
    expect(page.get_by_text("Group by: variant")).to_be_visible()
    own = page.get_by_role("figure").first  # a section of charts
    expect(own).to_contain_text(re.compile(r"^(First|Best), p[=<][\d.e-]+: dropout=0(\.3)?.*\(4\)"))
    titles = ("val_accuracy", "val_loss", "best/val_accuracy", "test/accuracy")
    for title in titles:
        expect(page.get_by_text(title, exact=True).first).to_be_attached()
    for section, charts in (("best", 2), ("cost", 4), ("test", 4)):
        expect(page.get_by_role("figure").filter(has_text=re.compile(rf"^{section}\s*\({charts}\)"))).to_be_attached()
    assert swept.variants == {"conv2 limit=100 epochs=2", "conv2 dropout=0.3 limit=100 epochs=2"}
    for variant in swept.variants:
        expect(page.get_by_text(f"{variant} (val_accuracy)", exact=True).first).to_be_attached()  # in the legend


def test_the_table_of_a_sweep_has_what_was_swept_and_the_results(swept, page):
    shown(page, swept.sweep.replace("&compareRunsMode=CHART", "&compareRunsMode="))
    expect(page.get_by_text("4 matching runs")).to_be_visible(timeout=_LOADS)
    headers = page.get_by_role("columnheader")
    for column in ("best/val_accuracy", "test/accuracy", "cost/train_seconds", "model.dropout"):
        expect(headers.filter(has_text=re.compile(rf"^{re.escape(column)}$"))).to_have_count(1)
    expect(page.get_by_role("row").filter(has_text="Group: ")).to_have_count(2)
    expect(page.get_by_role("link", name=re.compile("^dropout="))).to_have_count(0)  # folded


def test_the_sweep_stands_in_the_table_and_opens_on_its_jobs(swept, page):
    shown(page, f"{swept.runs}?workflowType=machine_learning&searchFilter=&compareRunsMode=")
    parent = page.get_by_role("row").filter(has_text=swept.parent.run_name)
    expect(parent).to_be_visible(timeout=_LOADS)
    names = page.get_by_role("link", name=re.compile("^dropout="))
    expect(names).to_have_count(0)
    parent.get_by_role("button").first.click()
    expect(names).to_have_count(4)


def test_the_page_of_a_sweep_has_the_result_the_table_and_the_report(swept, page):
    shown(page, f"{swept.runs}/{swept.parent.run_id}")
    expect(page.get_by_text("4 jobs: 4 finished")).to_be_visible(timeout=_LOADS)
    assert (
        page.get_by_role("link", name="Runs and charts").get_attribute("href") == "#/" + swept.sweep.partition("/#/")[2]
    )
    for metric in ("sweep/jobs", "sweep/finished", "sweep/best_val_accuracy", "sweep/best_test_accuracy"):
        expect(page.get_by_text(metric, exact=True)).to_be_visible()
    expect(page.locator("strong", has_text=re.compile(r" (ranks first|is better)"))).to_be_visible()
    table = page.get_by_role("table").filter(has_text="variant")
    expect(table.locator("tbody tr")).to_have_count(2)
    shown(page, f"{swept.runs}/{swept.parent.run_id}/artifacts/report.html")
    report = page.frame_locator("iframe")
    expect(report.locator("#variants tbody tr")).to_have_count(2, timeout=_LOADS)
    expect(report.locator(".chart .main-svg").first).to_be_visible()


def test_the_page_of_a_job_has_its_summary_its_data_and_its_model(swept, page):
    child = swept.children[0]
    shown(page, f"{swept.runs}/{child.run_id}")
    expect(page.get_by_text("Test accuracy", exact=False).first).to_be_visible(timeout=_LOADS)
    expect(page.get_by_role("link", name=swept.parent.run_name)).to_be_visible()
    expect(page.get_by_text(re.compile(r"^mnist_5k \(")).first).to_be_visible()
    expect(page.get_by_role("link", name="model", exact=True).first).to_be_visible()


def test_pictures_are_shown(swept, page):
    shown(page, f"{swept.runs}/{swept.children[0].run_id}/artifacts/figures/reliability.png")
    picture = page.locator("img[src^='blob:'], img[src*='reliability']").first
    expect(picture).to_be_visible(timeout=_LOADS)
    picture.evaluate("image => image.decode()")  # waits until it is loaded
    assert picture.evaluate("image => image.naturalWidth") > 500


def test_a_diverged_run_says_so(swept, page):
    shown(page, f"{swept.runs}/{swept.diverged.run_id}")
    expect(page.get_by_text("diverged_epoch").first).to_be_visible(timeout=_LOADS)


def test_a_store_of_200_runs_opens_on_which_variant_is_best_how_sure_and_what_it_was_set_to(store, page):
    noise = np.random.default_rng(0)

    def searched(number):
        rate, dropout = 10 ** noise.uniform(-4, -1), noise.uniform(0, 0.5)
        return {"optimizer.learning_rate": f"{rate:.3g}", "model.dropout": f"{dropout:.2g}"}

    def around(*means):
        return lambda number, seed: means[number % len(means)] + noise.normal(0, 0.001)

    space = {"model.dropout": "numbers from 0 to 0.5", "optimizer.learning_rate": "numbers from 0.0001 to 0.1, log"}
    trials = [searched(number) for number in range(60)]
    search = record_sweep(store, "search-000001", trials, around(0.9, 0.92, 0.94), space=space)
    rates = [{"optimizer.learning_rate": rate} for rate in ("0.0003", "0.001", "0.003", "0.01")]
    record_sweep(store, "rates-000002", rates, around(0.95, 0.95), seeds=10)
    dropouts = [{"model.dropout": f"{number / 40}"} for number in range(20)]
    record_sweep(store, "dropouts-000003", dropouts, around(0.9), seeds=2)
    depths = [{"model": model, "model.dropout": dropout} for model in ("conv2", "conv3")
              for dropout in ("0.0", "0.1", "0.2", "0.3", "0.4")]  # fmt: skip
    means = (0.90, 0.91, 0.92, 0.91, 0.90, 0.93, 0.94, 0.96, 0.94, 0.93)
    depth = record_sweep(store, "depth-000004", depths, around(*means), seeds=6)
    with started_ui() as ui:
        # No click.
        assert ui.link == ui.page.removesuffix("#/") + link_to(depth)
        shown(page, ui.link)
        expect(page.get_by_text("60 matching runs")).to_be_visible(timeout=_LOADS)
        answer = page.get_by_role("figure").first
        expect(answer).to_contain_text(re.compile(r"^Best, p<0\.001: conv3 dropout=0\.2\s*\(4\)"))
        for text in ("Sort: best/val_accuracy", "Group by: variant"):
            expect(page.get_by_text(text)).to_be_visible()
        expect(page.get_by_text("conv3 dropout=0.2 (val_accuracy)", exact=True).first).to_be_attached()
        shown(page, ui.link.replace("&compareRunsMode=CHART", "&compareRunsMode="))
        headers = page.get_by_role("columnheader")
        for column in ("model", "model.dropout", "best/val_accuracy", "test/accuracy", "cost/train_seconds"):
            expect(headers.filter(has_text=re.compile(rf"^{re.escape(column)}$"))).to_have_count(1)
        expect(page.get_by_role("row").filter(has_text="Group: ").first).to_contain_text("conv3 dropout=0.2")
        # The search is one link further; its best trial has one seed, so nothing is said to be better.
        shown(page, ui.page.removesuffix("#/") + link_to(search))
        expect(page.get_by_text("60 matching runs")).to_be_visible(timeout=_LOADS)
        expect(page.get_by_role("figure").first).to_contain_text(re.compile(r"^First: learning_rate=\S+ dropout=\S+"))


def test_a_store_of_the_first_version_opens_on_the_runs_of_its_newest_sweep(recorded_store, page):
    (parent,) = find_sweeps([])
    with started_ui() as ui:
        assert ui.link == ui.page.removesuffix("#/") + link_to(parent)
        shown(page, ui.link)
        expect(page.get_by_text(f"{len(runs_of(parent))} matching runs")).to_be_visible(timeout=_LOADS)
        expect(page.get_by_text("Sort: best/val_accuracy")).to_be_visible()
