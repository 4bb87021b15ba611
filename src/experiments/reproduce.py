"""Train a recorded run again and check that every number is equal."""

import contextlib
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments import train
from experiments.config import compose
from experiments.config.configuration import Configuration
from experiments.errors import ExperimentError
from experiments.tracking.provenance import provenance, provenance_of, versions
from experiments.tracking.results import model_file, predictions
from experiments.tracking.runs import StoredRun, artifact, experiment_name, find_run, get_run, history
from experiments.tracking.store import check_store, set_store_timeout

#: Tags whose change since a run was recorded would explain different numbers.
_CONDITIONS = (
    "data.sha256", "data.validation_sha256", "data.test_sha256", "code.sha256", "git.commit", "git.dirty",
    "python", "tensorflow", "keras", "mlflow", "host",
)  # fmt: skip
_SHOWN_OF_A_DIGEST = 12  # characters


@dataclass(frozen=True)
class _Verdict:
    """Whether one kind of number is equal in the run and in its reproduction."""

    name: str
    equal: bool | None  # None if there is nothing to compare
    difference: float | None = None  # the largest; None if their lengths differ

    @property
    def words(self) -> str:
        if self.equal is None:
            return "not recorded, so not compared"
        if self.equal:
            return "equal" if not self.difference else f"within {self.difference:.2g}"
        return "different" if self.difference is None else f"differs by up to {self.difference:.2g}"


def reproduce(run: str, tolerance: float = 0.0) -> bool:
    """Trains the configuration of a run again, as a new run, and prints which numbers are equal.

    Args:
        run: its id or a unique prefix of it, or `last`.
        tolerance: the largest difference that counts as equal.

    Returns:
        Whether every metric of every epoch (except `epoch_seconds`), all weights and all predictions are equal.

    Raises:
        ExperimentError: there is no such run, or it cannot be trained again here.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False)
    check_store()
    original = find_run(run)
    configuration = configuration_of(original)
    _print_conditions(console, original, {**provenance(), **versions(), **train.identify(configuration)})
    epochs = len(history(original).get("loss", ()))
    unfinished = not original.finished and not original.diverged
    result = train.run(
        configuration, should_stop=lambda epoch, _: unfinished and epoch >= epochs, reproduces=original.run_id
    )
    # After hours of training, a moment's outage is no answer.
    set_store_timeout(configuration.cfg.tracking.store_timeout)
    again = get_run(result.run_id)
    if again.status == "RUNNING":
        raise ExperimentError(f"The store does not have all of {again.run_id} yet.", advice="Try: experiments sync")
    rows = _compare(original, again, result.history, tolerance)
    console.print(_table(rows))
    equal = all(row.equal is not False for row in rows)
    verdict = "Equal: every recorded number of" if equal else "Different: not every number of"
    console.print(f"{verdict} {original.run_id} was reproduced by {again.run_id}.")
    return equal


def configuration_of(run: StoredRun) -> Configuration:
    """The recorded configuration of a run, checked like any untrusted input."""
    if "sweep.name" in run.tags:
        raise ExperimentError(f"{run.run_id} is a sweep.", advice="Name one of its runs.")
    if "members" in run.tags:
        advice = f"Combine the same runs again with: {run.tags['command']}"
        raise ExperimentError(f"{run.run_id} ({run.name}) is an ensemble, which was not trained.", advice=advice)
    if run.status == "RUNNING":
        raise ExperimentError(f"{run.run_id} ({run.name}) is still running.")
    with tempfile.TemporaryDirectory() as folder:
        file = artifact(run, "config.yaml", Path(folder)) if "fingerprint" in run.tags else None
        if file is None:
            raise ExperimentError(f"{run.run_id} ({run.name}) was not recorded by this project.")
        text = file.read_text(encoding="utf-8")
    if not run.diverged and not history(run):
        raise ExperimentError(
            f"{run.run_id} ({run.name}) recorded no numbers to compare: {run.tags.get('failure', '')}"
        )
    typed: list[str] = []
    with contextlib.suppress(ValueError):  # a command that somebody has changed
        typed = [word for word in shlex.split(run.tags.get("command", ""))[2:] if "=" in word]
    try:
        restored = compose.restored(text, typed, run.tags.get("experiment"), run.params)
    except ExperimentError as error:
        raise ExperimentError(f"{run.run_id} has a configuration that this version does not accept: {error}") from error
    restored.cfg.tracking.experiment = experiment_name(run)
    return restored


def _print_conditions(console: Console, original: StoredRun, now: Mapping[str, object]) -> None:
    table = Table("condition", "then", "now", box=None, pad_edge=False)
    then = provenance_of(original)
    for name in _CONDITIONS:
        before, today = then.get(name, "not recorded"), str(now.get(name, "not known"))
        shown = _SHOWN_OF_A_DIGEST if name.endswith(("sha256", "commit")) else None
        if before != today:
            table.add_row(name, before[:shown], today[:shown])
    if table.row_count:
        console.print("Changed since the run was recorded, so numbers may differ:")
        console.print(table)
    else:
        console.print("Data, code, versions and machine are the same as when the run was recorded.")


def _compare(
    original: StoredRun, again: StoredRun, trained: Mapping[str, Sequence[float]], tolerance: float
) -> list[_Verdict]:
    then, now = history(original), history(again)
    names = sorted({*trained} - {"epoch_seconds"})
    rows = [
        _compare_values(name, np.array(then.get(name, ())), np.array(now.get(name, ())), tolerance) for name in names
    ]
    if original.diverged or again.diverged:
        same = original.tags.get("diverged_epoch") == again.tags.get("diverged_epoch")
        return [*rows, _Verdict("diverged", same)]
    for kind, arrays in (("weights", _all_weights), ("predictions", _all_probabilities)):
        digest = original.tags.get(f"{kind}.sha256")
        if digest is None:  # the run was killed before it had any
            rows.append(_Verdict(kind, None))
        elif digest == again.tags.get(f"{kind}.sha256"):
            rows.append(_Verdict(kind, True))
        else:
            # That they differ is known; by how much, only where both were recorded.
            before, today = arrays(original), arrays(again)
            missing = tolerance > 0 and not (before.size and today.size)
            rows.append(_Verdict(kind, None) if missing else _compare_values(kind, before, today, tolerance))
    return rows


def _compare_values(name: str, then: np.ndarray, now: np.ndarray, tolerance: float) -> _Verdict:
    if then.shape != now.shape or not then.size:
        return _Verdict(name, False)
    # Epochs' metrics are float32; version 0.1 has recorded them in more digits.
    difference = float(np.abs(then.astype("float32") - now.astype("float32")).max())
    return _Verdict(name, difference <= tolerance, difference)


def _all_probabilities(run: StoredRun) -> np.ndarray:
    """All recorded probabilities in one array, empty if there are none."""
    parts = [predictions(run, part) for part in ("validation", "test")]
    return np.concatenate([np.empty(0), *(part.probabilities.ravel() for part in parts if part)])


def _all_weights(run: StoredRun) -> np.ndarray:
    """All weights of the logged model in one array, empty if none was logged."""
    import keras

    with tempfile.TemporaryDirectory() as folder:
        file = model_file(run, Path(folder))
        try:
            weights = keras.saving.load_model(file, safe_mode=True).get_weights() if file else []
        except Exception as error:  # a model that is damaged or holds code makes Keras raise almost anything
            print(f"The model of {run.run_id} cannot be compared: {type(error).__name__}")
            weights = []
    return np.concatenate([np.empty(0), *(weight.ravel() for weight in weights)])


def _table(rows: list[_Verdict]) -> Table:
    table = Table("number", "verdict", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row.name, row.words)
    return table
