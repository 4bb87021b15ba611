"""What the MLflow UI shows of a sweep, as far as the store keeps it."""

import json

import pytest

from experiments.tracking.runs import StoredRun, get_run
from experiments.tracking.ui import page
from experiments.tracking.views import View, link, link_to, run_link, tag_name

PARENT = "0123456789abcdef0123456789abcdef"


def view(**changes):
    given = {"sweep": "depth-0a1b2c", "objective": "val_accuracy", "mode": "max", "swept": ["model", "seed"]}
    return View(**{**given, "title": "Best: conv3", **changes})


def state(**changes):
    return json.loads(view(**changes).tag_value())


def stored(variant, **params):
    return StoredRun("id", "name", "FINISHED", "", "1", params, {"variant": variant}, {}, 1.0)


def test_columns_are_what_was_swept_and_the_results():
    found = state()
    assert found["selectedColumns"] == [
        "params.`model`", "metrics.`best/val_accuracy`", "metrics.`test/accuracy`", "metrics.`cost/train_seconds`",
    ]  # fmt: skip
    assert (found["orderByKey"], found["orderByAsc"]) == ("metrics.`best/val_accuracy`", False)
    assert found["searchFilter"] == "tags.sweep = 'depth-0a1b2c' and tags.superseded IS NULL"


def test_the_objective_has_a_direction_and_charts_of_its_own():
    found = state(objective="val_loss", mode="min")
    assert (found["orderByKey"], found["orderByAsc"]) == ("metrics.`best/val_loss`", True)
    charts = [(chart["type"], chart["metricKey"]) for chart in found["compareRunCharts"]]
    assert charts == [("LINE", "val_loss"), ("BAR", "best/val_loss"), ("BAR", "test/accuracy")]
    (section,) = found["compareRunSections"]
    assert {chart["metricSectionId"] for chart in found["compareRunCharts"]} == {section["uuid"]}
    assert section["name"] == "Best: conv3"


def test_runs_are_grouped_where_variants_are_repeated():
    assert state()["groupBy"] is None
    runs = [stored("conv3", model="conv3"), stored("conv2", model="conv2"), stored("conv3", model="conv3")]
    found = state(repeated=True, runs=runs)
    assert found["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "variant"}]
    assert found["groupsExpanded"] == {"tag.variant.conv3": False, "tag.variant.conv2": False}


def test_of_long_names_a_legend_shows_only_what_differs():
    same = "dense_units=[128,64] learning_rate=0.003 epochs=4"
    runs = [stored(f"{name} {same}", **{"model": name, "model.dropout": "0.0"}) for name in ("conv2", "conv3")]
    found = state(repeated=True, runs=runs, swept=["model", "model.dropout", "seed", "data.fold"])
    assert found["groupBy"]["groupByKeys"] == [
        {"mode": "param", "groupByData": "model"},
        {"mode": "param", "groupByData": "model.dropout"},
    ]
    assert list(found["groupsExpanded"]) == [
        f"param.model.{name},param.model.dropout.0.0" for name in ("conv2", "conv3")
    ]
    without = state(repeated=True, runs=runs, swept=["data.path", "seed"])  # which is no parameter
    assert without["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "variant"}]


@pytest.mark.parametrize("count", [1, 50, 51, 1000])
def test_it_fits_into_a_tag(count):
    names = [f"conv3 {'x' * 180} {number}" for number in range(count)]
    ids = [f"{number:032x}" for number in range(count)]
    value = view(repeated=True, runs=[stored(name) for name in names], run_ids=ids).tag_value()
    assert len(value) <= 5000
    query = json.loads(value)["searchFilter"]
    assert query.startswith("attributes.run_id IN ('00" if count <= 50 else "tags.sweep = ")


def test_links_to_views_and_runs(store):
    experiment = store.create_experiment("mine")
    new, old = (store.create_run(experiment, tags={"sweep.name": f"depth-{n}"}).info.run_id for n in (1, 2))
    store.set_experiment_tag(experiment, tag_name(new), view().tag_value())
    begin = f"#/experiments/{experiment}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    assert link(new, experiment) == link_to(get_run(new)) == f"{begin}&viewStateShareKey={new[:8]}"
    assert link_to(get_run(old)) == (  # as an earlier version has recorded it
        f"{begin}&searchFilter=tags.sweep%20%3D%20%27depth-2%27%20and%20tags.superseded%20IS%20NULL"
        "&orderByKey=metrics.%60best%2Fval_accuracy%60&orderByAsc=false"
    )
    assert run_link(get_run(new)) == f"#/experiments/{experiment}/runs/{new}?workflowType=machine_learning"


def test_links_lead_to_the_running_ui_of_this_store(store, tmp_path, monkeypatch):
    monkeypatch.setenv("EXPERIMENTS_HOME", str(tmp_path))
    assert page("#/x") == "http://127.0.0.1:5000/#/x"
    file = tmp_path / "mlruns" / "ui.json"
    file.parent.mkdir()
    uri = f"sqlite:///{tmp_path}/store/mlflow.db"
    for running, expected in (
        ({"url": "http://127.0.0.1:5077", "pid": 1, "store": uri}, 5077),
        ({"url": "http://127.0.0.1:5077", "pid": 1, "store": "sqlite:////elsewhere.db"}, 5000),
        ({"url": "http://127.0.0.1:5077", "pid": 2**22 + 1, "store": uri}, 5000),  # no process has such a number
        ({}, 5000),
    ):
        file.write_text(json.dumps(running))
        assert page("#/x") == f"http://127.0.0.1:{expected}/#/x"
