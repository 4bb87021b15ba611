"""Reading runs back: how they are named, and what their files say."""

import json

import pytest
from mlflow.entities import Param

from experiments.config.compose import compose
from experiments.errors import ExperimentError
from experiments.tracking.results import class_names
from experiments.tracking.runs import earlier_runs, find_run
from experiments.training.evaluation import Evaluation


def test_a_run_is_named_by_its_id_a_unique_prefix_or_as_the_last(store):
    experiment = store.create_experiment("mine")
    ids = [store.create_run(experiment, start_time=number, run_name="mine").info.run_id for number in (1, 2, 3)]
    store.create_run(experiment, start_time=4, tags={"sweep.name": "no run but a sweep"})
    assert find_run("last").run_id == ids[2]
    for name in (ids[0], ids[0][:31], f"runs:/{ids[0][:31]}", f"runs:/{ids[0]}/model"):
        assert find_run(name).run_id == ids[0]


def test_a_prefix_of_several_runs_is_refused_with_their_ids(store):
    experiment = store.create_experiment("mine")
    by_digit = {}
    while True:  # at the most 17 times
        run_id = store.create_run(experiment).info.run_id
        if run_id[0] in by_digit:
            break
        by_digit[run_id[0]] = run_id
    ids = ", ".join(sorted([by_digit[run_id[0]], run_id]))
    with pytest.raises(ExperimentError) as refused:
        find_run(run_id[0])
    assert str(refused.value) == (
        f"{run_id[0]}: the ids of 2 runs begin with this. Allowed: {ids}. Type more characters."
    )


@pytest.mark.parametrize("names", [("a", "b", "c"), ("accuracy", "b", "c"), ("a", "b", "accuracy")])
def test_a_class_may_be_called_accuracy(store, tmp_path, names):
    import numpy as np

    report = Evaluation(np.array([0, 1, 2, 2]), np.eye(3, dtype="float32")[[0, 1, 2, 1]]).report_values(names)
    (tmp_path / "classification_report.json").write_text(json.dumps(report))
    run_id = store.create_run(store.create_experiment("mine")).info.run_id
    store.log_artifact(run_id, str(tmp_path / "classification_report.json"))
    assert class_names(find_run(run_id)) == names


def test_runs_are_found_by_the_hash_of_their_variant_whichever_version_has_recorded_them(store):
    configuration = compose(["model=conv3", "seed=4"])
    experiment = store.create_experiment("mnist_5k")
    names = {"variant": "conv3", "variant.id": configuration.variant}
    made = []
    for tags, seed in (
        ({"variant": configuration.variant}, "4"),  # until version 0.1 the hash had this name
        (names, "4"),
        (names, "5"),
        ({"variant": "conv3", "variant.id": "0123456789abcdef"}, "4"),
    ):
        run_id = store.create_run(experiment, tags=tags, start_time=len(made) + 1).info.run_id
        store.log_batch(run_id, params=[Param("seed", seed), Param("data.split_seed", "0"), Param("data.fold", "null")])
        made.append(run_id)
    found = earlier_runs(configuration)
    assert [run.run_id for run in found] == [made[1], made[0]]
    assert {run.tags["variant.id"] for run in found} == {configuration.variant}
