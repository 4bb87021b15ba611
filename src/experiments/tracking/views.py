"""Views of sweeps in the MLflow UI: which runs and columns it shows, how they are sorted and grouped, and the charts.

MLflow keeps a view as a tag of the experiment, and opens it by a link that names the tag.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from experiments.config.configuration import REPLICATE_KEYS
from experiments.tracking.runs import StoredRun
from experiments.tracking.store import call_store, open_store

_KIND = "workflowType=machine_learning"  # without it MLflow shows its pages for language models around this one
_TAG = "mlflow.sharedViewState."
_MOST_RUNS = 50  # in a filter by their ids
_MOST_COLLAPSED = 1500  # characters of the names of groups; MLflow takes 5,000 for all
_LONGEST_NAME = 40  # characters of the name of a variant, of which a legend shows the beginning
_LINE = {
    "lineSmoothness": 0, "scaleType": "linear", "xAxisKey": "step", "xAxisScaleType": "linear", "yAxisKey": "metric",
    "selectedXAxisMetricKey": "", "range": {},
}  # fmt: skip


@dataclass(frozen=True)
class View:
    """What the MLflow UI shows of a sweep.

    The table has a column for each swept key, the objective, the test accuracy and the duration, the best first; the
    charts begin with the objective and the loss by epoch.
    """

    sweep: str  # its name
    objective: str  # a validation metric, such as val_accuracy
    mode: str  # of the objective, `max` or `min`
    swept: Sequence[str]  # keys that differ between the runs
    title: str  # of the first charts
    repeated: bool = False  # whether variants have several runs each, to group them by
    runs: Sequence[StoredRun] = ()  # those that are known, the best first
    run_ids: Sequence[str] = ()  # of the runs, if they are not all its own

    def tag_value(self) -> str:
        """The view as MLflow keeps it."""
        best = f"best/{self.objective}"
        results = dict.fromkeys((best, "test/accuracy", "cost/train_seconds"))
        columns = [f"params.`{key}`" for key in self.swept if key != "seed"]
        state = {
            "searchFilter": runs_query(self.sweep, self.run_ids),
            "orderByKey": f"metrics.`{best}`",
            "orderByAsc": self.mode == "min",
            "selectedColumns": [*columns, *(f"metrics.`{name}`" for name in results)],
            "groupBy": None,
            "runsHiddenMode": "FIRST_20_RUNS",
            "compareRunCharts": [
                *(_chart("LINE", name) for name in dict.fromkeys((self.objective, "val_loss"))),
                *(_chart("BAR", name) for name in (best, "test/accuracy")),
            ],
            "compareRunSections": [{"uuid": "sweep", "name": self.title, "display": True, "isReordered": True}],
            "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
            "isAccordionReordered": True,  # or the sections would be sorted by their names
        }
        if self.repeated:
            keys = self._group_keys()
            by = [{"mode": mode, "groupByData": key} for mode, key in keys]
            state["groupBy"] = {"aggregateFunction": "average", "groupByKeys": by}
            state["groupsExpanded"] = dict.fromkeys(_that_fit(_group(run, keys) for run in self.runs), False)
        return json.dumps(state, separators=(",", ":"), ensure_ascii=False)

    def _group_keys(self) -> list[tuple[str, str]]:
        """What the runs are grouped by: their variants, or where these have long names the values that differ."""
        swept = [key for key in self.swept if key not in REPLICATE_KEYS]
        long = any(len(run.tags["variant"]) > _LONGEST_NAME for run in self.runs)
        known = bool(swept) and all(key in run.params for run in self.runs for key in swept)
        return [("param", key) for key in swept] if long and known else [("tag", "variant")]


def _group(run: StoredRun, keys: Sequence[tuple[str, str]]) -> str:
    """The name that MLflow gives to the group of a run."""
    return ",".join(f"{mode}.{key}.{(run.params if mode == 'param' else run.tags)[key]}" for mode, key in keys)


def _that_fit(names: Iterable[str]) -> Iterator[str]:
    room = _MOST_COLLAPSED
    for name in dict.fromkeys(names):
        room -= len(name)
        if room > 0:
            yield name


def _chart(kind: str, metric: str) -> dict[str, Any]:
    place = {"uuid": f"{kind}-{metric}", "metricSectionId": "sweep", "deleted": False, "isGenerated": True}
    return {"type": kind, "metricKey": metric, "runsCountToCompare": 20, **place, **(_LINE if kind == "LINE" else {})}


def runs_query(sweep: str, run_ids: Sequence[str] = ()) -> str:
    """The filter that finds the runs of a sweep; by their ids where those are given and not too many."""
    if 0 < len(run_ids) <= _MOST_RUNS:
        return f"attributes.run_id IN ({', '.join(repr(run_id) for run_id in run_ids)})"
    return f"tags.sweep = '{sweep}' and tags.superseded IS NULL"


def tag_name(parent_id: str) -> str:
    """The name of the tag that keeps the view of a sweep, by the id of the sweep's run."""
    return f"{_TAG}{parent_id[:8]}"


def link(parent_id: str, experiment_id: str) -> str:
    """The link to the view of a sweep, without host and port."""
    return f"{_page(experiment_id)}&viewStateShareKey={tag_name(parent_id).removeprefix(_TAG)}"


def link_to(parent: StoredRun) -> str:
    """The link to the view of a recorded sweep, or to its sorted runs if an earlier version has recorded it."""
    experiment = call_store(open_store().get_experiment, parent.experiment_id)
    if tag_name(parent.run_id) in experiment.tags:
        return link(parent.run_id, parent.experiment_id)
    return sorted_link(parent.experiment_id, runs_query(parent.tags["sweep.name"]))


def sorted_link(experiment_id: str, query: str = "") -> str:
    """The link to runs of an experiment, the most accurate first, without host and port."""
    found = f"&searchFilter={quote(query, safe='')}" if query else ""
    return f"{_page(experiment_id)}{found}&orderByKey=metrics.%60best%2Fval_accuracy%60&orderByAsc=false"


def run_link(run: StoredRun) -> str:
    """The link to the page of a run, without host and port."""
    return f"#/experiments/{run.experiment_id}/runs/{run.run_id}?{_KIND}"


def _page(experiment_id: str) -> str:
    return f"#/experiments/{experiment_id}/runs?{_KIND}&compareRunsMode=CHART"
