"""Comparing runs: which are variants of what, how they rank, and what is said of them."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import yaml
from mlflow.entities import Metric, Param
from rich.console import Console

from experiments.compare import charts, tables
from experiments.compare.comparison import Selection, compare_runs, find_runs
from experiments.compare.ranking import NO_DIFFERENCE
from experiments.compare.statistics import Estimate
from experiments.errors import ExperimentError
from experiments.tracking.parent import open_parent
from experiments.tracking.runs import CUT, StoredRun
from experiments.tracking.scores import image_scores


def recorded(number, dropout, seed, accuracy, **tags):
    digests = {name: "d" for name in ("data.sha256", "data.validation_sha256", "data.test_sha256")}
    return StoredRun(
        run_id=f"run-{number}",
        name=f"run {number}",
        status="FINISHED",
        artifact_uri="",
        experiment_id="1",
        params={"model": "conv2", "model.dropout": dropout, "seed": str(seed), "objective": "val_accuracy"},
        tags={"variant.id": dropout, **digests, **tags},
        metrics={"best/val_accuracy": accuracy, "val_accuracy": accuracy, "cost/parameters": 10.0},
        seconds=1.0,
    )


def two_variants():
    good = [recorded(seed, "0.3", seed, 0.95 + 0.001 * seed) for seed in range(3)]
    return good + [recorded(3 + seed, "0", seed, 0.90 + 0.0011 * seed) for seed in range(3)]


def compared(runs, title="mine", metric="", *, swept=(), command="", searched=False, importance=None, **options):
    selection = Selection(title, list(runs), swept, None, command, searched, importance or {})
    return compare_runs(selection, metric, **options)


def test_a_clear_difference_is_a_verdict():
    found = compared(two_variants(), "mine")
    assert [(row.label, row.verdict, len(row.runs)) for row in found.rows] == [
        ("model.dropout=0.3", "best", 3),
        ("model.dropout=0", "worse", 3),
    ]
    assert found.rows[1].difference.value == pytest.approx(-0.0499)
    assert found.notes[0] == "model.dropout=0.3 is better than the other one."
    assert found.best_run.run_id == "run-2"
    assert tables.as_csv(found).splitlines()[1].startswith("1,model.dropout=0.3,0.3,3,0.95")
    assert tables.as_markdown(found, most=1).count("\n| 1 |") == 1
    assert "and 1 more in leaderboard.md" in tables.as_markdown(found, most=1)


@pytest.mark.parametrize(("modes", "best"), [('{"doubt": "min"}', "0"), ('{"doubt": "max"}', "0.3"), ("{}", "0.3")])
def test_the_runs_say_whether_a_higher_or_a_lower_value_of_a_metric_is_better(modes, best):
    def with_doubt(run):
        metrics = {**run.metrics, "best/val_doubt": run.metrics["best/val_accuracy"]}
        return replace(run, metrics=metrics, tags={**run.tags, "metric_modes": modes})

    runs = [with_doubt(run) for run in two_variants()]
    assert compared(runs, "mine", "val_doubt").rows[0].label == f"model.dropout={best}"


def test_what_does_not_count_is_left_out_and_said():
    left_out = [recorded(10, "0", 9, 0.5, pruned="true"), recorded(11, "0", 8, 0.5, reproduces="run-1")]
    found = compared([*left_out, *two_variants()], "mine")
    assert sum(len(row.runs) for row in found.rows) == 6
    assert "Left out: 1 made by reproduce, 1 pruned." in found.notes


def test_variants_with_diverged_seeds_are_rows_without_a_rank_among_the_others():
    def diverged(run):
        return replace(run, status="FAILED", tags={**run.tags, "diverged": "true"}, metrics={})

    some = [recorded(10, "0.1", 0, 0.99), diverged(recorded(11, "0.1", 1, 0))]
    every = [diverged(recorded(12 + seed, "0.2", seed, 0)) for seed in range(3)]
    found = compared([*some, *every, *two_variants()], "mine")
    assert [(row.label, row.verdict) for row in found.rows] == [
        ("model.dropout=0.3", "best"),
        ("model.dropout=0", "worse"),
        ("model.dropout=0.1", "diverged, 1 of 2 seeds"),
        ("model.dropout=0.2", "diverged, 3 of 3 seeds"),
    ]
    assert "Not ranked because runs have diverged: model.dropout=0.1, model.dropout=0.2." in found.notes
    assert (
        tables.as_csv(found).splitlines()[-1].startswith('4,model.dropout=0.2,0.2,3,,,,,,,,,,"diverged, 3 of 3 seeds"')
    )
    assert found.notes[0] == "model.dropout=0.3 is better than the other one."


def test_variants_may_be_equal_within_a_margin():
    runs = [recorded(seed, "0", seed, 0.9 + 0.0001 * seed) for seed in range(5)]
    runs += [recorded(9 + seed, "0.3", seed, 0.9 + 0.00012 * (4 - seed)) for seed in range(5)]
    assert compared(runs, "mine").rows[1].verdict == "no significant difference"
    found = compared(runs, "mine", equal_within=0.001)
    assert found.rows[1].verdict == "equal within 0.001"
    assert found.notes[0] == "model.dropout=0.3 ranks first; equal within 0.001: model.dropout=0."
    assert compared(runs, "mine", equal_within=0.0001).rows[1].verdict == "no significant difference"


def folded(runs, folder):
    """Each run for three folds of 400 images, which a model is wrong on more often the larger its dropout."""
    found = []
    for run in runs:
        for fold in range(3):
            params = {**run.params, "data.folds": "3", "data.fold": str(fold)}
            tags = {**run.tags, "data.validation_sha256": f"fold {fold}"}
            random = np.random.default_rng([int(run.params["seed"]), fold, len(run.params["model.dropout"])])
            right = random.random(400) < (0.9 if run.params["model.dropout"] == "0" else 0.5)
            run_of_fold = replace(run, run_id=f"{run.run_id}-{fold}", params=params, tags=tags)
            found.append(written(run_of_fold, folder, right))
    return found


def test_folds_are_replicates_of_one_variant(tmp_path):
    runs = folded(
        [recorded(seed, dropout, seed % 2, 0) for seed, dropout in enumerate(["0", "0", "0.3", "0.3"])], tmp_path
    )
    found = compared(runs, "mine")
    assert [(row.label, len(row.runs), row.verdict) for row in found.rows] == [
        ("model.dropout=0", 6, "best"),
        ("model.dropout=0.3", 6, "worse"),
    ]
    assert found.rows[1].test == "corrected t, paired by split"
    assert found.rows[0].mean.method == "Wilson over splits"
    means = [np.mean([run.metrics["best/val_accuracy"] for run in row.runs]) for row in found.rows]
    assert (
        "Over all images, each predicted by the model that had not seen it: "
        f"model.dropout=0 {means[0]:.4f}, model.dropout=0.3 {means[1]:.4f}."
    ) in found.notes
    assert any(
        note.startswith("Intervals and tests hold for new images of the same kind, and for training on")
        for note in found.notes
    )
    other = [replace(run, tags={**run.tags, "data.validation_sha256": "x"}) for run in runs[:1]]
    with pytest.raises(ExperimentError, match="on different data"):
        compared([*other, *runs[1:]], "mine")


def test_times_of_jobs_that_ran_beside_others_are_marked_and_not_compared():
    def timed(run, started):
        metrics = {**run.metrics, "cost/train_seconds": 9.0 + started}
        return replace(run, metrics=metrics, tags={**run.tags, "host": "here"}, started=100.0 + started, seconds=10.0)

    def seconds(starts):
        found = compared([timed(run, start) for run, start in zip(two_variants(), starts, strict=True)], "mine")
        table = tables.columns(found, found.rows)
        marks = ["~" in cell for cell in table[-1].cells]
        return marks, found.rows[0].pareto, tables.notes(found)[-1]

    marks, front, _ = seconds([0, 10, 20, 30.5, 41, 51])
    assert (marks, front) == ([False, False], {"parameters", "train_seconds"})
    marks, front, note = seconds([0, 10, 20, 28, 45, 60])
    assert (marks, front) == ([True, True], {"parameters"})
    assert note == "~ Measured while other jobs ran on the same machine: longer than alone, and not compared."


def test_other_data_are_refused_unless_asked_for():
    runs = [*two_variants(), *(recorded(20 + seed, "0", seed, 0.9, **{"data.sha256": "e"}) for seed in range(2))]
    with pytest.raises(ExperimentError, match=r"data\.sha256 is d \(6 runs\), e \(2 runs\)"):
        compared(runs, "mine")
    assert len(compared(runs, "mine", across_data=True).rows) == 3


def test_an_unknown_metric_is_refused_with_the_nearest_name():
    with pytest.raises(ExperimentError, match="Did you mean val_accuracy"):
        compared(two_variants(), "mine", "val_acuracy")


def test_runs_by_different_code_are_pointed_out():
    runs = [recorded(seed, "0", seed, 0.9, **{"code.sha256": f"{seed}" * 8}) for seed in range(2)]
    notes = compared(runs, "mine").notes
    assert (
        "The runs of a variant were made by different versions of the code (code.sha256): conv2 (00000000, 11111111)."
    ) in notes


@pytest.mark.parametrize("place", ["nowhere:/artifacts", "damaged", "empty"])
def test_a_lost_record_of_answers_costs_the_test_and_not_the_table(store, tmp_path, place):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "validation_predictions.npz").write_bytes(b"PK and no more")
    uri = place if ":" in place else (tmp_path / place).as_uri()
    runs = [recorded(1, "0", 0, 0.9), recorded(2, "0.3", 0, 0.8)]
    found = compared([replace(run, artifact_uri=uri) for run in runs], "mine")
    assert [(row.label, row.p, row.verdict) for row in found.rows] == [
        ("model.dropout=0", None, "best"),
        ("model.dropout=0.3", None, "no significant difference"),
    ]
    why = "they have one seed each, and no predictions for the same images"
    assert f"No test is possible for 1 of 1 comparisons with the best: {why}." in found.notes


def with_scores(runs, folder, rates):
    """Runs with recorded scores on 400 validation images, and the accuracies that follow from them."""
    random = np.random.default_rng(0)
    hard = random.random(400) < 0.3
    return [written(run, folder, ~hard | (random.random(400) < rates[run.params["model.dropout"]])) for run in runs]


def written(run, folder, right):
    """A run with its scores as a file; `right` says which images its model predicts correctly."""
    losses = np.where(right, 0.1, 2.0)
    place = folder / run.run_id
    place.mkdir()
    probabilities = np.stack([1 - np.exp(-losses), np.exp(-losses)], axis=1).astype("float32")
    np.save(place / "validation_scores.npy", image_scores(np.ones(len(right), int), probabilities))
    metrics = {"best/val_accuracy": float(right.mean()), "best/val_loss": float(losses.mean())}
    return replace(run, artifact_uri=place.as_uri(), metrics={**run.metrics, **metrics})


def test_single_seeds_say_nothing_of_training_with_new_seeds(tmp_path):
    single = [run for run in two_variants() if run.params["seed"] == "0"]
    found = compared(with_scores(single, tmp_path, {"0.3": 0.9, "0": 0.2}), "mine")
    assert found.rows[1].test == "exact McNemar"
    assert (
        "Intervals and tests hold for new images of the same kind, and for these trained models only."
    ) in found.notes


def test_verdicts_hold_for_new_images_by_the_recorded_scores(tmp_path):
    runs = with_scores(two_variants(), tmp_path, {"0.3": 0.9, "0": 0.2})
    found = compared(runs, "mine")
    assert [(row.label, row.verdict, row.test) for row in found.rows] == [
        ("model.dropout=0.3", "best", ""),
        ("model.dropout=0", "worse", "t over seeds and images, paired by seed"),
    ]
    assert "Intervals and tests hold for new images of the same kind, and for training with new seeds." in found.notes
    assert "95 % confidence intervals: Wilson over seeds and images." in found.notes
    narrow = compared(runs, "mine", these_images=True)
    assert narrow.rows[1].test == "paired t by seed"
    assert (
        "Intervals and tests hold for these images only (--on these-images), and for training with new seeds."
    ) in narrow.notes
    assert compared(runs, "mine", "val_loss").rows[1].test == "t over seeds and images, paired by seed"


def test_scores_that_do_not_give_the_metric_are_not_used(tmp_path):
    """As of an old run whose loss was smoothed."""
    runs = with_scores(two_variants(), tmp_path, {"0.3": 0.9, "0": 0.2})
    runs[0] = replace(runs[0], metrics={**runs[0].metrics, "best/val_accuracy": 0.9})
    found = compared(runs, "mine")
    assert found.rows[1].test == "paired t by seed"
    assert (
        "Intervals and tests of 1 of 2 variants hold for these images only, because the recorded predictions are "
        "missing or do not give best/val_accuracy."
    ) in found.notes


def test_the_images_are_said_to_limit_a_comparison(tmp_path):
    """Where one variant is wrong on images that it will always be wrong on, seeds do not help."""
    runs = two_variants()
    found = []
    for run in runs:
        random = np.random.default_rng(int(run.params["seed"]))
        right = np.arange(400) % 10 != (0 if run.params["model.dropout"] == "0" else 1)
        right[:20] = random.random(20) < (0.9 if run.params["model.dropout"] == "0" else 0.5)
        found.append(written(run, tmp_path, right))
    note = next(note for note in compared(found, "mine").notes if note.startswith("What limits this"))
    assert note == (
        "What limits this are the images: with more seeds the standard error falls from 2.24 to at best 2.22 points; "
        "to show a difference of 2 points between model.dropout=0 and model.dropout=0.3 (80 % power), "
        "about 4,179 validation images would be needed."
    )


def test_the_seeds_are_said_to_limit_a_comparison():
    runs = [recorded(seed, "0", seed, 0.9 + value) for seed, value in enumerate((0.01, 0.02, 0.03))]
    runs += [recorded(9 + seed, "0.3", seed, 0.9 + value) for seed, value in enumerate((0.02, 0.01, 0.02))]
    note = next(note for note in compared(runs, "mine").notes if note.startswith("What limits this"))
    assert note == (
        "What limits this are the seeds: to show a difference of 0.33 points between model.dropout=0 and "
        "model.dropout=0.3 (80 % power), about 94 more per variant are needed."
    )


def test_a_sweep_under_way_is_compared_as_far_as_it_has_come(store):
    """Its list of jobs does not name the runs yet."""
    parent = open_parent("mine", "mine-000000", {}, patience=1)
    jobs = [{"job": job, "overrides": [], "fingerprint": f"f{job}", "run_id": None} for job in range(3)]
    parent.write_jobs(jobs)
    parent.outbox.close("RUNNING", 60)
    made = [in_store(store, parent, run, f"f{job}") for job, run in enumerate(two_variants()[2:4])]
    found = find_runs(["mine"], "")
    assert (found.title, [run.run_id for run in found.runs]) == ("mine-000000", made)
    rows = compared(found.runs, found.title).rows
    assert [(row.label, len(row.runs)) for row in rows] == [("model.dropout=0.3", 1), ("model.dropout=0", 1)]


def in_store(client, parent, run, fingerprint):
    """Writes a finished run of a sweep; its id."""
    tags = {**run.tags, "sweep": parent.name, "fingerprint": fingerprint}
    run_id = client.create_run(parent.experiment_id, tags=tags).info.run_id
    params = [Param(*item) for item in run.params.items()]
    client.log_batch(run_id, [Metric(*item, 0, 0) for item in run.metrics.items()], params)
    client.set_terminated(run_id)
    return run_id


def test_numbers_that_an_older_version_has_spelled_otherwise_are_equal():
    older = [replace(run, params={**run.params, "label_smoothing": "0"}) for run in two_variants()[:3]]
    newer = [replace(run, params={**run.params, "label_smoothing": "0.0"}) for run in two_variants()[3:]]
    assert compared(older + newer, "mine").distinguishing_keys == ("model.dropout",)


def labels(*params, swept=()):
    """The labels of runs with these parameters."""
    runs = [recorded(number, str(number), 0, 0.9) for number in range(len(params))]
    runs = [replace(run, params={"model": "net", "seed": "0", **own}) for run, own in zip(runs, params, strict=True)]
    return sorted(row.label for row in compared(runs, "mine", "val_accuracy", swept=swept).rows)


def test_variants_whose_lists_differ_somewhere_show_where():
    flatten, dense = '{"_target_": "keras.layers.Flatten"}', '{"_target_": "keras.layers.Dense", "units": %d}'
    layers = [{"model.layers": f"[{flatten}, {dense % units}]"} for units in (8, 64)]
    assert labels(*layers) == ["model.layers.1.units=64", "model.layers.1.units=8"]
    nested = [{"model.blocks": f'[{{"sizes": [1, {size}], "on": true}}]'} for size in (2, 3)]
    assert labels(*nested) == ["model.blocks.0.sizes=[1, 2]", "model.blocks.0.sizes=[1, 3]"]
    long = [{"model.filters": str([1000] * 30 + [last])} for last in (1, 2)]
    assert labels(*long) == ["model.filters.30=1", "model.filters.30=2"]
    more = [{"model.layers": f"[{flatten}]"}, {"model.layers": f"[{flatten}, {dense % 8}]"}]
    assert "model.layers.1._target_=keras.layers.Dense model.layers.1.units=8" in labels(*more)
    assert labels({"model.filters": "[8]"}, {"model.filters": "[16]"}) == ["model.filters=[16]", "model.filters=[8]"]


def test_a_list_that_is_too_long_to_be_recorded_whole_is_read_from_the_configuration(tmp_path):
    layers = [{"_target_": "keras.layers.Dense", "units": 8} for _ in range(200)]
    found = []
    for units in (8, 64):
        layers[150]["units"] = units
        place = tmp_path / str(units)
        place.mkdir()
        (place / "config.yaml").write_text(yaml.safe_dump({"model": {"layers": layers}}))
        run = recorded(units, str(units), 0, 0.9)
        params = {"model": "net", "seed": "0", "model.layers": f"{json.dumps(layers)[:5000]}{CUT}"}
        found.append(replace(run, artifact_uri=place.as_uri(), params=params))
    rows = compared(found, "mine", "val_accuracy").rows
    assert [row.label for row in rows] == ["model.layers.150.units=64", "model.layers.150.units=8"]


def test_swept_keys_are_shown_also_where_they_follow_or_do_not_differ():
    params = {"model.dropout": "0.3", "model.filters": "[8]"}
    assert labels(params) == ["net"]
    assert labels(params, swept=["model.dropout"]) == ["model.dropout=0.3"]
    both = [{"model": "a", "model.dropout": "0"}, {"model": "b", "model.dropout": "0.3"}]
    assert labels(*both) == ["model=a", "model=b"]
    assert labels(*both, swept=["model", "model.dropout"]) == ["model=a model.dropout=0", "model=b model.dropout=0.3"]


def test_the_first_part_of_the_table_has_the_verdict():
    console = Console(width=100, record=True, file=io.StringIO())
    tables.print_table(compared(two_variants(), "mine"), console)
    first = console.export_text().strip().splitlines()[0].split()
    assert first == ["rank", "variant", "val_accuracy", "difference", "from", "best", "p", "verdict"]


@pytest.mark.parametrize("width", [80, 100])
def test_the_result_is_in_one_part_and_the_costs_are_in_a_second_one(width):
    label = "model=conv3 model.dropout=0.3 optimizer.learning_rate=0.0003"
    first, second = compared(two_variants()).rows
    interval = Estimate(-0.01, -0.0338, 0.0148)
    rows = (
        replace(first, label=label),
        replace(second, label=label, difference=interval, p=0.438, verdict=NO_DIFFERENCE),
    )
    console = Console(width=width, record=True, file=io.StringIO())
    tables.print_table(replace(compared(two_variants()), rows=rows), console)
    result, costs = ([line.rstrip() for line in part.splitlines()] for part in console.export_text().split("\n\n")[:2])
    assert max(map(len, result + costs)) <= width
    beginning = {
        80: [
            "                                                difference",
            "rank variant               val_accuracy          from best     p verdict",
            "   1 model=conv3                 0.9510                          best",
            "     model.dropout=0.3 [0.9485, 0.9534]",
            "     optimizer.",
            "     learning_rate=",
            "     0.0003",
            "   2 model=conv3                 0.9011            -0.0100 0.438 no significant",
            "     model.dropout=0.3 [0.8983, 0.9038] [-0.0338, +0.0148]       difference",
        ],
        100: [
            "                                                             difference",
            "rank variant                            val_accuracy          from best     p verdict",
            "   1 model=conv3 model.dropout=0.3            0.9510                          best",
            "     optimizer.learning_rate=0.0003 [0.9485, 0.9534]",
            "   2 model=conv3 model.dropout=0.3            0.9011            -0.0100 0.438 no significant",
            "     optimizer.learning_rate=0.0003 [0.8983, 0.9038] [-0.0338, +0.0148]       difference",
        ],
    }[width]
    assert [line for line in result if line][: len(beginning)] == beginning
    assert costs == [
        "rank seeds test parameters MACs seconds",
        "   1     3             10*",
        "   2     3              10",
    ]


@pytest.mark.parametrize("width", [5, 20, 40])
def test_a_very_narrow_console_gets_a_table_too(width):
    console = Console(width=width, record=True, file=io.StringIO())
    tables.print_table(compared(two_variants()), console)
    assert "rank" in console.export_text()


@pytest.mark.parametrize("width", [60, 100, 200])
def test_a_narrow_console_gets_the_table_in_parts_with_every_number_whole(width):
    console = Console(width=width, record=True, file=io.StringIO())
    found = compared(two_variants(), "mine")
    tables.print_table(found, console)
    head, _, _ = console.export_text().partition("model.dropout=0.3 is better")
    assert max(map(len, head.splitlines())) <= width
    words = head.split()
    for column in tables.columns(found, found.rows):
        assert all(word in words for cell in column.cells for word in cell.split())
    assert words.count("rank") == {60: 3, 100: 2, 200: 1}[width]


# Searches


def trials(*values):
    return [recorded(number, value, 0, 0.9 + 0.01 * number) for number, value in enumerate(values)]


def test_no_trial_with_one_seed_is_called_better():
    searched = compared(trials("0.1", "0.2", "0.4"), "mine", searched=True)
    assert [(row.verdict, row.p) for row in searched.rows] == [("best", None), *[("one seed, no verdict", None)] * 2]
    assert searched.notes[0] == ("model.dropout=0.4 ranks first; trials with one seed are not called better or worse.")
    assert "one seed, no verdict" not in [row.verdict for row in compared(two_variants(), "", searched=True).rows]


@pytest.mark.parametrize(("values", "scale"), [(("0.1", "0.2", "0.4"), None), (("0.001", "0.01", "0.1"), "log")])
def test_the_numbers_that_a_search_has_drawn_are_points_on_their_own_scale(values, scale):
    found = {chart.title: chart for chart in charts.charts(compared(trials(*values), "mine"), [], {})}
    figure = found["best/val_accuracy against model.dropout"].figure
    (points,) = figure["data"]
    assert dict(zip(points["x"], points["y"], strict=True)) == {float(v): 0.9 + 0.01 * n for n, v in enumerate(values)}
    assert figure["layout"]["xaxis"].get("type") == scale
    assert "Main effect of model.dropout" not in found


def test_the_importance_of_searched_keys_is_a_sentence_and_a_chart():
    found = compared(trials("0.1", "0.2"), searched=True, importance={"optimizer.learning_rate": 0.8, "model": 0.2})
    assert "Importance of the searched keys (PED-ANOVA): optimizer.learning_rate 0.80, model 0.20." in found.notes
    by_title = {chart.title: chart for chart in charts.charts(found, [], {})}
    (bars,) = by_title["Importance of the searched keys"].figure["data"]
    assert dict(zip(bars["y"], bars["x"], strict=True)) == {"optimizer.learning_rate": 0.8, "model": 0.2}
    assert by_title["best/val_accuracy: difference from best"].caption == "Trials with one seed have no intervals."
    assert "Importance of the searched keys" not in {
        chart.title for chart in charts.charts(compared(trials("1")), [], {})
    }


def test_an_open_comparison_names_the_race_that_decides_it():
    alike = [recorded(n, value, n % 3, 0.9 + 0.001 * (n % 3) + wobble) for n, (value, wobble) in enumerate(
        [("0.1", 0.0), ("0.1", 0.001), ("0.1", 0.0), ("0.2", 0.001), ("0.2", 0.0), ("0.2", 0.0)]
    )]  # fmt: skip
    command = "experiments train -m 'model.dropout=0.1,0.2' 'seed=range(3)' epochs=2"
    assert (
        "To decide it, let a race add seeds, whose verdicts hold at every look: "
        "experiments race model.dropout=0.1,0.2 epochs=2"
    ) in compared(alike, "mine", command=command).notes
    searched = "experiments train -m hydra/sweeper=optuna 'model.dropout=interval(0,1)'"
    for other in (searched, "experiments race model.dropout=0.1,0.2", ""):
        assert not any("race add" in note for note in compared(alike, "mine", command=other).notes)


def test_some_rows_alone_keep_their_intervals_and_tests():
    found = compared(two_variants())
    assert tables.only(found, "1, 2,1").rows == found.rows
    worse = tables.only(found, "2")
    assert (worse.rows, worse.notes) == (found.rows[1:], found.notes)
    for ranks, wrong in (("1,3", "3"), ("0", "0"), ("x", "x"), ("-1", "-1"), ("1,,2", "an empty rank")):
        with pytest.raises(ExperimentError) as refused:
            tables.only(found, ranks)
        assert str(refused.value) == f"--only {ranks}: {wrong} is no rank; ranks are 1 to 2."


def test_the_json_has_all_digits_and_a_fixed_schema():
    found = compared([*two_variants(), recorded(9, "0.5", 0, 0.9, diverged="true")])
    shown = json.loads(json.dumps(tables.as_json(found), allow_nan=False))
    assert set(shown) == {"title", "metric", "mode", "rows", "notes"}
    assert (shown["title"], shown["metric"], shown["mode"]) == ("mine", "best/val_accuracy", "max")
    assert shown["notes"] == tables.notes(found)
    best, worse, diverged = shown["rows"]
    for row in shown["rows"]:
        assert set(row) == {
            "rank", "variant", "values", "seeds", "mean", "difference", "p", "test", "verdict", "test_accuracy",
            "costs", "pareto", "run_ids",
        }  # fmt: skip
    assert best["mean"] == {"value": found.rows[0].mean.value, "low": found.rows[0].mean.low,
                            "high": found.rows[0].mean.high, "method": found.rows[0].mean.method}  # fmt: skip
    assert (best["difference"], best["p"], best["verdict"]) == (None, None, "best")
    assert best["values"] == {"model.dropout": "0.3"}
    assert best["run_ids"] == ["run-0", "run-1", "run-2"]
    assert set(worse["difference"]) == {"value", "low", "high", "method"}
    assert worse["costs"] == {"parameters": 10.0, "macs": None, "train_seconds": None}
    assert (worse["p"], worse["pareto"]) == (found.rows[1].p, [])
    assert diverged["verdict"] == "diverged, 1 of 1 seeds"


def test_the_table_in_latex():
    lines = tables.as_latex(compared(two_variants(), "50 % of a_b")).splitlines()
    begin = lines.index(r"\begin{tabular}{rlrrlrrr}")
    assert lines[0] == r"% \usepackage{booktabs}" and all(line.startswith("% ") for line in lines[:begin])
    assert lines[begin + 1 : begin + 4] == [
        r"\toprule",
        r"rank & variant & seeds & val\_accuracy & verdict & difference from best & p & parameters \\",
        r"\midrule",
    ]
    assert lines[begin + 4].startswith(r"1 & model.dropout=0.3 & 3 & 0.9510 [")
    difference = r"\$-\$0\.0499 \[\$-\$0\.\d+, \$-\$0\.\d+\]"
    assert re.match(rf"2 & model\.dropout=0 & 3 & 0\.90.* & worse & {difference} & ", lines[begin + 5])
    assert lines[begin + 6 :] == [r"\bottomrule", r"\end{tabular}"]


def test_what_is_special_in_latex_is_escaped():
    runs = [recorded(0, r"50%_{a}&b#c$d~e^f\g<h>", 0, 0.9), recorded(1, "x", 0, 0.8)]
    (line,) = (line for line in tables.as_latex(compared(runs)).splitlines() if line.startswith("1 & "))
    assert r"model.dropout=50\%\_\{a\}\&b\#c\$d\textasciitilde{}e\textasciicircum{}f\textbackslash{}g$<$h$>$ & " in line
