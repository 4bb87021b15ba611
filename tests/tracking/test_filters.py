"""Filters of runs: which part MLflow evaluates, and numbers of parameters."""

import pytest

from experiments.errors import ExperimentError
from experiments.tracking.filters import split
from experiments.tracking.runs import search_runs
from records import record


@pytest.mark.parametrize(
    ("query", "of_mlflow", "numeric"),
    [
        ("", "", []),
        ("epochs > 5", "", [("epochs", ">", 5.0)]),
        ("optimizer.learning_rate>=1e-3", "", [("optimizer.learning_rate", ">=", 0.001)]),
        ("params.`seed` = 3", "", [("seed", "=", 3.0)]),
        ("param.data.limit != -.5 ", "", [("data.limit", "!=", -0.5)]),
        ("seed = '3'", "seed = '3'", []),
        ("metrics.`test/accuracy` > 0.98", "metrics.`test/accuracy` > 0.98", []),
        ("metrics.loss < 1 AND seed < 2 and tags.x = 'a and b'", "metrics.loss < 1 and tags.x = 'a and b'",
         [("seed", "<", 2.0)]),
        ("start_time > 5 and attributes.end_time > 5", "start_time > 5 and attributes.end_time > 5", []),
        ("model.dropout > 0.1 and model.dropout <= 0.3", "",
         [("model.dropout", ">", 0.1), ("model.dropout", "<=", 0.3)]),
    ],
)  # fmt: skip
def test_which_part_of_a_filter_mlflow_evaluates(query, of_mlflow, numeric):
    rest, conditions = split(query)
    assert rest == of_mlflow
    assert [(condition.key, condition.operator, condition.number) for condition in conditions] == numeric


@pytest.fixture
def rates(store):
    """Runs with four learning rates, the last of which sorts otherwise as text."""
    return {
        rate: record(store, params={"optimizer.learning_rate": rate, "data.limit": limit}, metrics={"loss": loss})
        for rate, limit, loss in (("0.01", "null", 1.0), ("0.3", "100", 2.0), ("2.0", "null", 3.0), ("1e-05", "9", 4.0))
    }


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("optimizer.learning_rate > 0.01", ["2.0", "0.3"]),
        ("optimizer.learning_rate <= 0.01", ["1e-05", "0.01"]),
        ("optimizer.learning_rate = 0.00001", ["1e-05"]),
        ("optimizer.learning_rate > 0.01 and metrics.loss < 2.5", ["0.3"]),
        ("data.limit > 10", ["0.3"]),  # null is no number, and no text either
        ("params.`optimizer.learning_rate` != 2", ["1e-05", "0.3", "0.01"]),
    ],
)
def test_numbers_of_parameters_are_compared_as_numbers(rates, query, found):
    names = {run_id: rate for rate, run_id in rates.items()}
    assert [names[run.run_id] for run in search_runs(query)] == found


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            "model > 3",
            "model > 3: model is not a number, it is 'conv2'. Compare it as text, as in: params.`model` = 'conv2'",
        ),
        (
            "seed > 9 and model = 3",
            "model = 3: model is not a number, it is 'conv2'. Compare it as text, as in: params.`model` = 'conv2'",
        ),
        (
            "optimizer.learning_rat > 3",
            "optimizer.learning_rat > 3: no run has the parameter optimizer.learning_rat. "
            "Did you mean optimizer.learning_rate? Allowed: ",
        ),
        ("model = 'conv2' or seed > 3", "MLflow refuses the filter: "),
    ],
)
def test_what_is_no_number_is_refused(rates, query, message):
    with pytest.raises(ExperimentError) as refused:
        search_runs(query)
    assert str(refused.value).startswith(message)
