"""What differs between two runs: configuration, data, code, versions, machine, metrics and predictions."""

import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.compare.names import find_run
from experiments.compare.variants import DIGESTS
from experiments.errors import ExperimentError
from experiments.tracking.provenance import diff_of_commits, provenance_of
from experiments.tracking.results import Predictions, class_names, mistakes, predictions
from experiments.tracking.runs import StoredRun, artifact, full_parameters
from experiments.tracking.store import shown_uri

_VERSIONS = ("python", "tensorflow", "keras", "mlflow")
_MACHINE = {"host": "host", "platform": "platform", "mlflow.user": "user"}
_CODE = ("code.sha256", "git.commit", "git.dirty")
_ENDING = ("reason", "failure", "diverged", "pruned")
_SHOWN_OF_A_DIGEST = 12  # characters
_MOST_DRAWN = 40
_LINES_OF_A_DIFF = 200  # on the console


@dataclass(frozen=True)
class Value:
    """Something that has a value of its own in each of the two runs; None where a run has none."""

    section: str  # configuration, data, code, versions, machine, ending or metrics
    name: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Answers:
    """The test images on which two models answer differently."""

    number: int  # of all test images
    first_right: int  # images that only the first run's model predicts correctly
    second_right: int
    both_wrong: int  # in two ways
    rows: tuple[int, ...]  # their positions

    @property
    def different(self) -> int:
        """How many they are."""
        return len(self.rows)


@dataclass(frozen=True)
class Difference:
    """All that differs between two runs."""

    first: StoredRun
    second: StoredRun
    values: tuple[Value, ...]
    metrics: tuple[Value, ...]
    equal_metrics: int
    answers: Answers | None  # None if their test images differ, or their predictions are not recorded
    commits: str | None  # the diff between their commits; None if that is not known here
    uncommitted: tuple[str, str]  # their uncommitted changes, empty where they are equal


def difference(first_name: str, second_name: str) -> Difference:
    """Finds all that differs between the two runs that a user names.

    Raises:
        ExperimentError: there is no such run in this store, it is a sweep, or both names mean one run.
    """
    first, second = _find_both(first_name, second_name)
    values = [*_values(first, second), *_ending(first, second)]
    differing = tuple(value for value in values if value.first != value.second)
    metrics = [
        Value("metrics", name, first.metrics.get(name), second.metrics.get(name))
        for name in sorted({*first.metrics, *second.metrics})
    ]
    changed = tuple(value for value in metrics if value.first != value.second)
    commits = [run.tags.get("git.commit", "") for run in (first, second)]
    texts = _texts(first, second, "git.diff")
    return Difference(
        first=first,
        second=second,
        values=differing,
        metrics=changed,
        equal_metrics=len(metrics) - len(changed),
        answers=_answers(first, second),
        commits=diff_of_commits(*commits) if all(commits) and commits[0] != commits[1] else None,
        uncommitted=("", "") if texts[0] == texts[1] else texts,
    )


def _find_both(first_name: str, second_name: str) -> tuple[StoredRun, StoredRun]:
    found: list[StoredRun] = []
    for name in (first_name, second_name):
        try:
            found.append(find_run(name))
        except ExperimentError as error:
            if not found:
                raise
            advice = f"{found[0].run_id} is in {shown_uri()}, and both must be in one store."
            raise ExperimentError(str(error), advice=advice) from error
    for run in found:
        if "sweep.name" in run.tags:
            raise ExperimentError(f"{run.run_id} is a sweep.", advice="Name two runs.")
    first, second = found
    if first.run_id == second.run_id:
        raise ExperimentError(f"{first_name} and {second_name} are one run, {first.run_id}.", advice="Name two runs.")
    return first, second


def _values(first: StoredRun, second: StoredRun) -> Iterator[Value]:
    params = full_parameters(first), full_parameters(second)
    for key in sorted({*params[0], *params[1]}):
        pair = params[0].get(key), params[1].get(key)
        if not _equal_numbers(*pair):  # version 0.1 has recorded 0.0 as 0 in some runs
            yield Value("configuration", key, *pair)
    tags = provenance_of(first), provenance_of(second)
    environments = [_packages(text) for text in _texts(first, second, "environment.txt")]
    for section, names in (("data", DIGESTS), ("code", _CODE)):
        yield from _both_known(section, dict.fromkeys(names), *tags)
    diffs = _texts(first, second, "git.diff")
    if diffs[0] != diffs[1]:
        yield Value("code", "git.diff", *map(_digest, diffs))
    yield from _both_known("versions", dict.fromkeys(_VERSIONS), *tags)
    if all(environments):
        for name in sorted({*environments[0], *environments[1]} - {*_VERSIONS}):
            yield Value("versions", name, environments[0].get(name), environments[1].get(name))
    yield from _both_known("machine", _MACHINE, *tags)


def _equal_numbers(first: str | None, second: str | None) -> bool:
    try:
        return float(first or "") == float(second or "")
    except ValueError:
        return False


def _digest(text: str) -> str | None:
    return sha256(text.encode()).hexdigest()[:_SHOWN_OF_A_DIGEST] if text else None


def _both_known(
    section: str, names: Mapping[str, str | None], first: Mapping[str, str], second: Mapping[str, str]
) -> Iterator[Value]:
    """Values that both runs have recorded; that a run has not recorded one is no difference."""
    for key, name in names.items():
        if key in first and key in second:
            yield Value(section, name or key, first[key], second[key])


def _ending(first: StoredRun, second: StoredRun) -> Iterator[Value]:
    yield Value("ending", "status", first.status, second.status)
    for name in _ENDING:
        yield Value("ending", name, first.tags.get(name), second.tags.get(name))


def _packages(environment: str) -> dict[str, str]:
    """Name -> version of the packages in an environment.txt."""
    lines = re.findall(r"^(?:# )?([^=\s]+)==(\S+)", environment, re.MULTILINE)
    return {name.lower(): version for name, version in lines}


def _texts(first: StoredRun, second: StoredRun, name: str) -> tuple[str, str]:
    return _text(first, name), _text(second, name)


def _text(run: StoredRun, name: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = artifact(run, name, Path(folder))
        return file.read_text(encoding="utf-8") if file else ""


def _answers(first: StoredRun, second: StoredRun) -> Answers | None:
    digest = first.tags.get("data.test_sha256")
    if digest is None or digest != second.tags.get("data.test_sha256"):
        return None
    said = predictions(first, "test"), predictions(second, "test")
    if said[0] is None or said[1] is None or said[0].probabilities.shape != said[1].probabilities.shape:
        return None
    guesses, labels = [each.probabilities.argmax(axis=1) for each in said if each], said[0].labels
    differ = guesses[0] != guesses[1]
    right = [guess == labels for guess in guesses]
    return Answers(
        number=len(labels),
        first_right=int((right[0] & differ).sum()),
        second_right=int((right[1] & differ).sum()),
        both_wrong=int((differ & ~right[0] & ~right[1]).sum()),
        rows=tuple(map(int, np.flatnonzero(differ))),
    )


def draw(found: Difference, file: Path) -> None:
    """Draws the test images on which the two models answer differently, at most 40 of those that were recorded.

    Of two different answers one is wrong, so the image is among the mistakes of a run, of which 500 are recorded.

    Raises:
        ExperimentError: there is none, or the file cannot be written.
    """
    said = predictions(found.first, "test"), predictions(found.second, "test")
    if not found.answers or not found.answers.rows or said[0] is None or said[1] is None:
        raise ExperimentError("There is no test image to draw on which the two are known to answer differently.")
    images = {**_images(found.first, said[0]), **_images(found.second, said[1])}
    rows = [row for row in found.answers.rows if row in images][:_MOST_DRAWN]
    if not rows:
        raise ExperimentError("The images on which the two answer differently are not among the recorded mistakes.")
    from experiments import galleries  # imports matplotlib, which nothing else here needs

    first, second = (each.probabilities[rows].argmax(axis=1) for each in said if each)
    names = class_names(found.first) or [str(label) for label in range(said[0].probabilities.shape[1])]
    pictures = np.stack([images[row] for row in rows])
    figure = galleries.disagreements(pictures, said[0].labels[rows], (first, second), names, found.answers.different)
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:
        raise ExperimentError(f"{file} cannot be written: {error}.") from error


def _images(run: StoredRun, said: Predictions) -> dict[int, np.ndarray]:
    """Position among the test images -> image, of the recorded mistakes of a run, the most confident first."""
    recorded = mistakes(run)
    if recorded is None:
        return {}
    wrong = np.flatnonzero(said.probabilities.argmax(axis=1) != said.labels)
    order = wrong[np.argsort(-said.probabilities[wrong].max(axis=1), kind="stable")]
    return dict(zip(map(int, order), recorded.image, strict=False))


def as_json(found: Difference) -> dict[str, Any]:
    """The differences as an object of the JSON output."""
    return {
        "runs": [{"run_id": run.run_id, "name": run.name} for run in (found.first, found.second)],
        "differences": [asdict(value) for value in found.values],
        "metrics": [{key: value for key, value in asdict(each).items() if key != "section"} for each in found.metrics],
        "equal_metrics": found.equal_metrics,
        "test_images": None
        if found.answers is None
        else {
            "number": found.answers.number,
            "different": found.answers.different,
            "first_right": found.answers.first_right,
            "second_right": found.answers.second_right,
            "both_wrong": found.answers.both_wrong,
        },
        "diff": {"commits": found.commits, "uncommitted": list(found.uncommitted)},
    }


def print_difference(found: Difference, console: Console) -> None:
    """Prints the differences, section by section, and the diff of the code."""
    for name, run in (("first", found.first), ("second", found.second)):
        console.print(f"{name:6}  {run.run_id}  {run.name}", soft_wrap=True)
    for section in dict.fromkeys(value.section for value in (*found.values, *found.metrics)):
        table = Table(box=None, pad_edge=False)
        table.add_column(section, overflow="fold")
        for name in ("first", "second"):
            table.add_column(name, overflow="fold", justify="right" if section == "metrics" else "left")
        for value in (*found.values, *found.metrics):
            if value.section == section:
                table.add_row(value.name, *(_shown(value.name, each) for each in (value.first, value.second)))
        console.print()
        console.print(table)
    console.print()
    for sentence in _sentences(found):
        console.print(sentence, soft_wrap=True)
    uncommitted = zip(("first", "second"), found.uncommitted, strict=True)
    texts = {f"Uncommitted changes of the {name} run:": text for name, text in uncommitted}
    for title, text in {"Changes between the commits:": found.commits, **texts}.items():
        if text:
            lines = text.splitlines()
            console.print(f"\n{title}", soft_wrap=True)
            console.print("\n".join(lines[:_LINES_OF_A_DIFF]), soft_wrap=True)
            if len(lines) > _LINES_OF_A_DIFF:
                console.print(f"{len(lines) - _LINES_OF_A_DIFF:,} more lines; --json has all of them.")


def _sentences(found: Difference) -> Iterator[str]:
    if not found.values:
        yield "Configuration, data, code, versions and machine are the same."
    if found.equal_metrics:
        yield f"Equal metrics: {found.equal_metrics}."
    commits = [value for value in found.values if value.name == "git.commit"]
    if commits and found.commits is None:
        yield "The commits are not both in this checkout, so what changed between them cannot be shown."
    answers = found.answers
    if answers is None:
        yield "Their answers for test images cannot be compared: the images differ, or predictions are not recorded."
    elif answers.rows:
        yield (
            f"They answer differently on {answers.different:,} of {answers.number:,} test images: the first alone is "
            f"right on {answers.first_right:,}, the second alone on {answers.second_right:,}, neither on "
            f"{answers.both_wrong:,}."
        )
    else:
        yield f"They answer the same on all {answers.number:,} test images."


def _shown(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)[:_SHOWN_OF_A_DIGEST] if name.endswith(("sha256", "commit")) else str(value)
