"""What trained models withstand: their accuracy on corrupted test images."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments import galleries
from experiments.compare.names import find_runs_or_run
from experiments.config.compose import compose
from experiments.config.targets import instantiate
from experiments.corruptions import CORRUPTIONS, SIZE, corrupted
from experiments.dataset import Dataset
from experiments.errors import ExperimentError
from experiments.reproduce import configuration_of
from experiments.serving.classifier import Classifier, load
from experiments.tracking.additions import add_results
from experiments.tracking.runs import StoredRun, get_run

PREFIX = "robustness/"
_SEED = 0  # of the corruptions: models are compared on the same images


@dataclass(frozen=True)
class Robustness:
    """The accuracies of one model."""

    name: str  # of the run, or as given by the user
    clean: float  # on the test images as they are
    accuracies: Mapping[str, float]  # corruption -> accuracy

    @property
    def mean(self) -> float:
        """The mean accuracy over the corruptions."""
        return float(np.mean(list(self.accuracies.values())))

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics as they are recorded."""
        means = {"mean": self.mean, "relative": self.mean / self.clean} if self.clean else {"mean": self.mean}
        return {f"{PREFIX}{name}": value for name, value in {**self.accuracies, **means}.items()}


def robustness(name: str, data: Sequence[str] = ()) -> list[Robustness]:
    """Measures the accuracy of models on corrupted test images, records it on their runs, and prints a table.

    Args:
        name: a model as `predict` takes it, or a sweep for all of its finished runs.
        data: an option of `data` and its overrides, for a model whose run is not known or whose data are elsewhere.

    Raises:
        ExperimentError: there is no such model, it takes other images than gray ones of 28 x 28 pixels, or the test
            images are not those of its run.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False)
    loaded: dict[str, Dataset] = {}
    found = []
    for classifier in _classifiers(name):
        if classifier.image_shape != (SIZE, SIZE, 1):
            taken = " x ".join(map(str, classifier.image_shape))
            raise ExperimentError(
                f"{classifier.name} takes images of {taken} values; the corruptions are made for gray images of "
                f"{SIZE} x {SIZE} pixels."
            )
        key = classifier.run.tags.get("data.test_sha256", "") if classifier.run else ""
        if key not in loaded:
            loaded[key] = _data(classifier, data)
        found.append(_measured(classifier, loaded[key], progress=console.is_terminal))
    console.print(_table(found[0]) if len(found) == 1 else _summary(found))
    return found


def _classifiers(name: str) -> list[Classifier]:
    if name.endswith(".keras") or name.startswith(("models:/", "runs:/")):
        return [load(name)]
    runs = [run for run in find_runs_or_run(name) if run.finished]
    if not runs:
        raise ExperimentError(f"{name}: there is no finished run.")
    return [load(run.run_id) for run in runs]


def _data(classifier: Classifier, given: Sequence[str]) -> Dataset:
    """The data whose test images are corrupted: those given, or those of the model's run."""
    run = classifier.run
    if run is None and not given:
        raise ExperimentError(
            f"{classifier.name}: the run that trained it is not known, nor its data.",
            advice="Choose test images, as in --data mnist_5k.",
        )
    if run and "members" in run.tags:  # an ensemble, whose members are all on the same data
        run = get_run(run.tags["members"].split()[0])
    configuration = compose([f"data={given[0]}", *given[1:]]) if given else configuration_of(run)  # type: ignore[arg-type]
    data: Dataset = instantiate(configuration.cfg, "data")
    if run and data.test_sha256 != run.tags.get("data.test_sha256"):
        raise ExperimentError(
            f"The test images of {data.name} are not those of {run.run_id} ({run.name}), whose record this extends.",
            advice="Choose its own with --data and overrides, as in: --data mnist data.path=mnist.npz",
        )
    return data


def _measured(classifier: Classifier, data: Dataset, *, progress: bool) -> Robustness:
    name = classifier.run.name if classifier.run else classifier.name
    clean_images = data.test_images[:]
    predicted = classifier.predict(clean_images)
    clean = _accuracy(predicted, data.test_labels)
    shown, probabilities = [clean_images[0]], [predicted[0]]
    accuracies = {}
    for corruption in track(CORRUPTIONS, name, transient=True, disable=not progress):
        images = corrupted(corruption, clean_images, _SEED)
        predicted = classifier.predict(images)
        accuracies[corruption] = _accuracy(predicted, data.test_labels)
        shown.append(images[0])
        probabilities.append(predicted[0])
    measured = Robustness(name, clean, accuracies)
    if classifier.run:
        _record(classifier.run, measured, np.stack(shown), np.stack(probabilities), data)
    return measured


def _accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float((probabilities.argmax(axis=1) == labels).mean())


def _record(run: StoredRun, measured: Robustness, images: np.ndarray, probabilities: np.ndarray, data: Dataset) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "robustness.png")
        figure = galleries.corrupted_image(
            images, ["clean", *CORRUPTIONS], int(data.test_labels[0]), probabilities, data.class_names
        )
        figure.savefig(file)
        add_results(run, measured.metrics, file)


def _table(measured: Robustness) -> Table:
    """The accuracy of one model for every corruption."""
    table = Table("corruption", "accuracy", "relative to clean", box=None, pad_edge=False)
    rows = {"none": measured.clean, **measured.accuracies, "mean of the corruptions": measured.mean}
    for name, accuracy in rows.items():
        table.add_row(name, f"{accuracy:.4f}", f"{accuracy / measured.clean:.4f}" if measured.clean else "")
    return table


def _summary(found: Sequence[Robustness]) -> Table:
    """The means of several models."""
    table = Table("run", "clean", "corrupted", "relative", "worst", box=None, pad_edge=False)
    for each in found:
        worst = min(each.accuracies, key=each.accuracies.__getitem__)
        relative = f"{each.mean / each.clean:.4f}" if each.clean else ""
        table.add_row(
            each.name, f"{each.clean:.4f}", f"{each.mean:.4f}", relative, f"{worst} {each.accuracies[worst]:.4f}"
        )
    return table
