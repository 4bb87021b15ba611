"""The best combination of trained models, chosen on their validation images; nothing is trained."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments import artifacts
from experiments.compare.comparison import Selection, compare_runs
from experiments.compare.names import find_all_runs
from experiments.compare.ranking import BEST, WORSE
from experiments.compare.variants import DIGESTS
from experiments.config.configuration import digest
from experiments.errors import ExperimentError
from experiments.serving.classifier import load
from experiments.tracking.results import class_names, predictions
from experiments.tracking.run import open_run
from experiments.tracking.runs import StoredRun, experiment_name, full_parameters, get_run
from experiments.training.evaluation import Evaluation
from experiments.training.macs import count_macs

MODEL = "ensemble"  # in the parameter `model`, where other runs have their choice
_READERS = 8  # files that are read at the same time


@dataclass(frozen=True, eq=False)
class Member:
    """A run that may be chosen, and its model's predictions."""

    run: StoredRun
    validation: Evaluation
    test: Evaluation


def ensemble(names: Sequence[str], size: int = 5) -> StoredRun | None:
    """Combines trained runs, records the combination as a run with a model, and prints what it gains.

    Args:
        names: sweeps and runs to choose from.
        size: the largest number of members, each counted as often as it was chosen.

    Returns:
        The new run; None if no combination is better on the validation images than one of the runs alone.

    Raises:
        ExperimentError: there are fewer than two runs, they are on different data, or one lacks predictions or a model.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False)
    candidates = _candidates(names)
    labels = candidates[0].validation.labels
    chosen = select(np.stack([each.validation.probabilities for each in candidates]), labels, size)
    images = f"{len(labels):,} validation images"
    if len(chosen) == 1:
        alone = candidates[chosen[0]].run
        console.print(f"On the {images}, no combination is better than {alone.name} ({alone.run_id}) alone.")
        return None
    counts = {candidates[place]: count for place, count in Counter(chosen).most_common()}
    console.print(f"Chosen from {len(candidates)} runs on {images}:")
    console.print(_members_table(counts))
    run = get_run(_record(counts, candidates[chosen[0]], f"experiments ensemble {' '.join(names)} --size {size}"))
    console.print(_gains_table(run, candidates[chosen[0]].run))
    console.print("The members were chosen on the validation images, which flatters their combination; the test images")
    console.print(f"were not used. Recorded as {run.name} ({run.run_id})")
    return run


def select(probabilities: np.ndarray, labels: np.ndarray, size: int) -> list[int]:
    """Chooses models greedily with replacement (Caruana et al. 2004, https://doi.org/10.1145/1015330.1015432).

    The models whose mean probabilities are right most often are chosen; among equally good ones those of the smallest
    cross-entropy. The first model is the best one, and the combination is never worse than it.

    Args:
        probabilities: float32 (models, images, classes).
        labels: int64 (images,), the true classes.
        size: the largest number of models.

    Returns:
        Their indices in the order of choice; an index that comes twice has twice the weight.
    """
    images = np.arange(len(labels))

    def score(mean: np.ndarray) -> tuple[float, float]:
        likelihoods = mean[images, labels].clip(min=np.finfo(np.float32).tiny)
        return float((mean.argmax(axis=1) == labels).mean()), float(np.log(likelihoods).mean())

    chosen: list[int] = []
    kept, best, total = 0, (-1.0, 0.0), np.zeros(probabilities.shape[1:])
    for number in range(1, size + 1):
        scores = [score((total + each) / number) for each in probabilities]
        chosen.append(max(range(len(scores)), key=scores.__getitem__))
        total += probabilities[chosen[-1]]
        if scores[chosen[-1]] > best:
            kept, best = number, scores[chosen[-1]]
    return chosen[:kept]


def combined(models: Sequence[tuple[keras.Model, int]]) -> keras.Model:
    """One model that outputs the mean probabilities of several, each with a weight; it has Keras's own layers only."""
    pixels = keras.Input(models[0][0].input_shape[1:])
    outputs = []
    for number, (model, weight) in enumerate(models, start=1):
        member = keras.Model(model.inputs[0], model.outputs[0], name=f"member_{number}")
        outputs += [member(pixels)] * weight
    return keras.Model(pixels, keras.layers.Average()(outputs), name=MODEL)


def _candidates(names: Sequence[str]) -> list[Member]:
    runs = sorted((run for run in find_all_runs(names) if run.finished), key=lambda run: (run.started, run.run_id))
    if len(runs) < 2:
        raise ExperimentError(
            f"An ensemble needs at least two finished runs; {' '.join(names)} names {len(runs)}.",
            advice="Name a sweep, or several runs.",
        )
    for run in runs:
        for name in DIGESTS:
            if run.tags.get(name) != runs[0].tags.get(name):
                raise ExperimentError(
                    f"{run.run_id} ({run.name}) is on other data than {runs[0].run_id} ({runs[0].name}): their {name} "
                    "differs, and an ensemble is chosen on the same images.",
                )
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(_member, runs))


def _member(run: StoredRun) -> Member:
    validation, test = predictions(run, "validation"), predictions(run, "test")
    if validation is None or test is None:
        raise ExperimentError(f"{run.run_id} ({run.name}) has no recorded predictions.", advice="Leave it out.")
    return Member(run, *(Evaluation(part.labels, part.probabilities) for part in (validation, test)))


def _mean(parts: Sequence[tuple[Evaluation, int]]) -> Evaluation:
    probabilities = np.average([part.probabilities for part, _ in parts], axis=0, weights=[count for _, count in parts])
    return Evaluation(parts[0][0].labels, probabilities.astype(np.float32))


def _record(counts: dict[Member, int], best: Member, command: str) -> str:
    """Records an ensemble as a run, and returns its id."""
    model = combined([(load(member.run.run_id).model, count) for member, count in counts.items()])
    validation = _mean([(member.validation, count) for member, count in counts.items()])
    test = _mean([(member.test, count) for member, count in counts.items()])
    names, size = class_names(best.run), sum(counts.values())
    members = [member.run.run_id for member, count in counts.items() for _ in range(count)]
    parameters = [full_parameters(member.run) for member in counts]
    common = {key: value for key, value in parameters[0].items() if all(each.get(key) == value for each in parameters)}
    of_runs = ("metric_modes", *DIGESTS)
    with open_run(
        experiment=experiment_name(best.run),
        name=f"{MODEL} of {size}",
        params={**common, "seed": "0", "model": MODEL, "ensemble.size": str(size)},
        tags={
            **{name: best.run.tags[name] for name in of_runs if name in best.run.tags},
            "variant": f"{MODEL} of {size}",
            "variant.id": digest(members)[:16],
            "members": " ".join(members),
            "command": command,
        },
        files={},
        patience=120,
    ) as record:
        artifacts.write_predictions(record, validation, test, names)
        record.log_model(model, image_shape=model.input_shape[1:], class_names=names, step=0)
        record.log_metrics(_metrics(model, validation, test, list(counts)))
        record.set_tags({"mlflow.note.content": _note(counts, test)})
        return record.id


def _metrics(
    model: keras.Model, validation: Evaluation, test: Evaluation, members: Sequence[Member]
) -> dict[str, float]:
    macs = count_macs(model)
    chosen_on = validation.metrics()
    return {
        **{f"best/val_{name}": chosen_on[name] for name in ("accuracy", "loss")},
        **{f"test/{name}": value for name, value in test.metrics().items()},
        "cost/train_seconds": sum(member.run.metrics.get("cost/train_seconds", 0.0) for member in members),
        "cost/parameters": model.count_params(),
        **({} if macs is None else {"cost/macs": macs}),
    }


def _note(counts: dict[Member, int], test: Evaluation) -> str:
    low, high = test.accuracy_interval
    lines = [f"- {count} x {member.run.name} ({member.run.run_id})" for member, count in counts.items()]
    accuracy = test.metrics()["accuracy"]
    return "\n".join(
        [f"**Test accuracy {accuracy:.2%}** (95 % confidence interval {low:.2%} to {high:.2%}) of the mean of", *lines]
    )


def _members_table(counts: dict[Member, int]) -> Table:
    table = Table("weight", "run", "validation accuracy", "test accuracy", box=None, pad_edge=False)
    for member, count in counts.items():
        accuracies = [f"{part.metrics()['accuracy']:.4f}" for part in (member.validation, member.test)]
        table.add_row(str(count), f"{member.run.name} ({member.run.run_id[:8]})", *accuracies)
    return table


def _gains_table(run: StoredRun, best: StoredRun) -> Table:
    """What an ensemble gains over its best member, on validation and test images."""
    table = Table("accuracy", MODEL, "best member", "gain", "95 % interval", "verdict", box=None, pad_edge=False)
    for images, metric in (("validation", "best/val_accuracy"), ("test", "test/accuracy")):
        rows = compare_runs(Selection("", [run, best]), metric).rows
        ours = next(row for row in rows if row.runs[0].run_id == run.run_id)
        loser = next(row for row in rows if row.verdict != BEST)
        sign = 1 if loser is ours else -1
        gain = loser.difference
        ends = (
            [] if gain is None or gain.low is None or gain.high is None else sorted([sign * gain.low, sign * gain.high])
        )
        verdict = "better" if loser is not ours and loser.verdict == WORSE else loser.verdict
        table.add_row(
            images,
            f"{run.metrics[metric]:.4f}",
            f"{best.metrics[metric]:.4f}",
            f"{run.metrics[metric] - best.metrics[metric]:+.4f}",
            f"[{ends[0]:+.4f}, {ends[1]:+.4f}]" if ends else "",
            verdict,
        )
    return table
