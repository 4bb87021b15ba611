"""What a comparison speaks of: data, images, the settings that its runs share, commit, date and versions."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from experiments.compare.ranking import Comparison
from experiments.tracking.provenance import images_of, provenance_of
from experiments.tracking.runs import StoredRun, get_run
from experiments.tracking.store import StoreRefused
from experiments.tracking.views import link_to

_VERSIONS = {"python": "Python", "tensorflow": "TensorFlow", "keras": "Keras", "mlflow": "MLflow"}
_MOST_NAMED = 5  # commits, machines or sweeps
_SHOWN_OF_A_COMMIT = 10  # characters


def facts(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Names and values of what its runs have in common; what differs is listed, what nobody has recorded left out."""
    runs = [run for row in comparison.rows for run in row.runs]
    images = images_of(comparison.best_run)
    data = ", ".join(dict.fromkeys(run.params["data"] for run in runs if "data" in run.params))
    yield "Data", f"{data}: {images}" if images else data
    shared = [set(run.tags.get("variant", "").split(" ")) for run in runs]
    yield (
        "Fixed",
        " ".join(word for word in runs[0].tags.get("variant", "").split(" ") if all(word in s for s in shared)),
    )
    found = provenance_of(comparison.best_run)
    dirty = any(run.tags.get("git.dirty") == "true" for run in runs)
    commits = _named([run.tags.get("git.commit", "")[:_SHOWN_OF_A_COMMIT] for run in runs])
    yield "Commit", f"{commits}, with changes that were not committed" if commits and dirty else commits
    dates = sorted(f"{datetime.fromtimestamp(run.started, UTC):%Y-%m-%d %H:%M}" for run in runs)
    yield "Trained", f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))} UTC"
    yield "Versions", ", ".join(f"{name} {found[key]}" for key, name in _VERSIONS.items() if key in found)
    yield "Machine", _named([run.tags.get("host", "") for run in runs])


def shared_settings(comparison: Comparison) -> dict[str, str]:
    """The parameters that all runs have with the same value."""
    first, *others = [run.params for row in comparison.rows for run in row.runs]
    return {
        key: value
        for key, value in sorted(first.items())
        if not key.endswith("_target_") and all(params.get(key) == value for params in others)
    }


def sweep_links(comparison: Comparison) -> dict[str, str]:
    """The names of the sweeps that its runs were trained for, with links to their views without host and port."""
    ids = dict.fromkeys(run.parent for row in comparison.rows for run in row.runs if run.parent)
    found: list[StoredRun] = []
    for run_id in list(ids)[:_MOST_NAMED]:
        try:
            found.append(get_run(run_id))
        except StoreRefused:  # it was deleted
            continue
    return {parent.name: link_to(parent) for parent in found}


def _named(values: Sequence[str]) -> str:
    known = [value for value in dict.fromkeys(values) if value]
    rest = f" and {len(known) - _MOST_NAMED} more" if len(known) > _MOST_NAMED else ""
    return ", ".join(known[:_MOST_NAMED]) + rest
