"""Groups runs into variants, which differ in more than the seed, and labels each with its distinguishing values."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from experiments.config.configuration import REPLICATE_KEYS
from experiments.config.schema import GROUPS
from experiments.tracking.runs import StoredRun, full_parameters

#: Hashes that runs must share to be compared: of all data, and of the images that the metrics are measured on.
DIGESTS = ("data.sha256", "data.validation_sha256", "data.test_sha256")
_VALIDATION = "data.validation_sha256"
_LONGEST_VALUE = 40  # characters in a label


@dataclass(frozen=True)
class Variant:
    """The runs of one configuration, one per seed and split."""

    label: str  # the distinguishing values as text: key=value key=value
    distinguishing_values: Mapping[str, str]  # key -> value, only where they tell the variant from others
    runs: tuple[StoredRun, ...]  # one per seed, in the order of the seeds

    @property
    def diverged(self) -> int:
        """How many of its runs have diverged."""
        return sum(run.diverged for run in self.runs)

    def mean(self, metric: str) -> float | None:
        """The mean of a metric over the seeds; None if no run has it."""
        values = [run.metrics[metric] for run in self.runs if metric in run.metrics]
        return mean(values) if values else None


def variants_of(runs: Iterable[StoredRun], swept: Collection[str] = ()) -> list[Variant]:
    """Groups runs into variants, separately for different data.

    Args:
        runs: of several runs with one seed and split, the first one counts.
        swept: keys that belong into every label.
    """
    groups: dict[tuple[object, ...], dict[tuple[int, ...], StoredRun]] = {}
    validated: dict[tuple[object, ...], list[str]] = {}
    for run in runs:
        data = (run.tags["variant.id"], *(run.tags.get(name, "") for name in DIGESTS if name != _VALIDATION))
        # Other splits are replicates; other validation images of one split are other data.
        digests = validated.setdefault((data, split(run)), [])
        if (digest := run.tags.get(_VALIDATION, "")) not in digests:
            digests.append(digest)
        key = (int(run.params["seed"]), *split(run))
        groups.setdefault((data, digests.index(digest)), {}).setdefault(key, run)
    seeds = [tuple(group[key] for key in sorted(group)) for group in groups.values()]
    values = _distinguishing_values(_normalized([_all_values(group[0]) for group in seeds]), swept)
    shown = [{key: _short(value) for key, value in each.items()} for each in values]
    labels = _labels(shown, seeds)
    return [Variant(*parts) for parts in zip(labels, shown, seeds, strict=True)]


def swept_keys(jobs: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys whose values differ between the jobs of a sweep."""
    values: dict[str, set[str]] = {}
    for job in jobs:
        for word in job["overrides"]:
            key, _, value = word.lstrip("+").partition("=")
            values.setdefault(key, set()).add(value)
    return [key for key, found in values.items() if len(found) > 1]


def differences(runs: Sequence[StoredRun]) -> list[dict[str, str]]:
    """For each run, the values that tell it from others among `runs` beside seed and split."""
    values = _distinguishing_values(_normalized([_all_values(run) for run in runs]), ())
    # A run that has failed early knows no hash of its data.
    one_data = len({run.tags.get("data.sha256") for run in runs} - {None}) < 2
    return [
        {key: _short(value) for key, value in each.items() if not (key == "data.sha256" and one_data)}
        for each in values
    ]


def beside_others(runs: Iterable[StoredRun]) -> set[str]:
    """The ids of runs during which another one ran on the same machine for more than a second."""
    found: set[str] = set()
    last: dict[str, tuple[float, str]] = {}  # host -> end and id of the run that ends last
    for run in sorted(runs, key=lambda run: run.started):
        host, end = run.tags.get("host", ""), run.started + (run.seconds or 0)
        ended, before = last.get(host, (0.0, ""))
        if min(ended, end) - run.started > 1:
            found |= {before, run.run_id}
        last[host] = max((ended, before), (end, run.run_id))
    return found


def split(run: StoredRun) -> tuple[int, int]:
    """What divides the images of a run into those to train on and those to validate on: split seed and fold, or -1."""
    fold = run.params.get("data.fold", "null")
    return int(run.params.get("data.split_seed", 0)), -1 if fold == "null" else int(fold)


def _all_values(run: StoredRun) -> dict[str, str]:
    """Everything in which variants can differ, as key -> value."""
    more = {"experiment": run.tags.get("experiment", "none"), "data.sha256": run.tags.get("data.sha256", "")[:8]}
    params = full_parameters(run)
    return more | {
        leaf: text for key in params if key not in REPLICATE_KEYS for leaf, text in _leaves(key, params[key])
    }


def _leaves(key: str, value: str) -> Iterator[tuple[str, str]]:
    """A value by its key, or the parts of a list that is no plain one, as in model.layers.1.units."""
    if value.startswith(("[", "{")):
        try:
            parsed = json.loads(value)
        except ValueError:  # a text of the user
            parsed = value
        if _is_nested(parsed) or (isinstance(parsed, list) and len(value) > _LONGEST_VALUE):
            for part, each in parsed.items() if isinstance(parsed, dict) else enumerate(parsed):
                yield from _leaves(f"{key}.{part}", each if isinstance(each, str) else json.dumps(each))
            return
    yield key, value


def _is_nested(value: Any) -> bool:
    return bool(value) and (
        isinstance(value, dict) or (isinstance(value, list) and any(isinstance(each, dict | list) for each in value))
    )


def _normalized(variants: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Writes equal numbers in the same way; version 0.1 recorded 0.0 as 0 in some runs."""
    texts: dict[tuple[str, float | str], str] = {}
    for values in variants:
        for key, value in values.items():
            first = texts.setdefault((key, _number(value)), value)
            texts[key, _number(value)] = max(first, value, key=len)
    return [{key: texts[key, _number(value)] for key, value in values.items()} for values in variants]


def _number(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def _distinguishing_values(variants: Sequence[Mapping[str, str]], swept: Collection[str]) -> list[dict[str, str]]:
    """For each variant the swept values, and those that tell it from others, without those that follow from a choice.

    Two models differ in `model`, and therefore in `model.filters`, too. That key is listed only if it is swept or takes
    several values for one choice of `model`.
    """
    taken: dict[str, set[str | None]] = {}
    for key in dict.fromkeys(key for values in variants for key in values):
        taken[key] = {values.get(key) for values in variants}
    varying = [key for key in taken if len(taken[key]) > 1 or key in swept]
    choices = [key for key in ("experiment", *GROUPS) if key in varying]
    taken_with: dict[tuple[str, str | None, str], set[str | None]] = {}
    for values in variants:
        for choice in choices:
            for key in varying:
                taken_with.setdefault((choice, values.get(choice), key), set()).add(values.get(key))
    return [
        {
            key: values[key]
            for key in [*choices, *sorted(set(varying) - set(choices))]
            if key in values
            and (
                key in swept
                or all(
                    len(taken_with[choice, values.get(choice), key]) > 1
                    for choice in choices
                    if key != choice and (choice == "experiment" or key.startswith(f"{choice}."))
                )
            )
        }
        for values in variants
    ]


def _labels(variants: Sequence[Mapping[str, str]], seeds: Sequence[Sequence[StoredRun]]) -> list[str]:
    """A unique label for each variant."""
    labels = [" ".join(f"{key}={value}" for key, value in values.items()) for values in variants]
    labels = [label or runs[0].params.get("model", runs[0].name) for label, runs in zip(labels, seeds, strict=True)]
    counts = Counter(labels)
    return [
        f"{label} [{runs[0].tags['variant.id'][:6]}]" if counts[label] > 1 else label
        for label, runs in zip(labels, seeds, strict=True)
    ]


def _short(value: str) -> str:
    """A value as written in a label: numbers with four digits, long texts shortened."""
    number = _number(value)
    if isinstance(number, str):
        return value if len(value) <= _LONGEST_VALUE else f"{value[: _LONGEST_VALUE - 1]}…"
    return value if len(value) <= 6 else f"{number:.4g}"
