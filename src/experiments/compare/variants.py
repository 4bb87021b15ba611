"""Runs that differ in nothing but the seed are one variant; what tells the variants from each other is their label."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from experiments.config.schema import GROUPS
from experiments.tracking.runs import StoredRun

#: What runs must have in common to be compared: all data, and the images that the metrics are measured on.
DIGESTS = ("data.sha256", "data.validation_sha256", "data.test_sha256")
_LONGEST_VALUE = 40  # characters in a label


@dataclass(frozen=True)
class Variant:
    """A configuration with all its seeds."""

    label: str  # what tells it from the others, as words key=value
    differing: Mapping[str, str]  # the same as key -> value; a key that it lacks, or that says nothing, is absent
    runs: tuple[StoredRun, ...]  # one a seed, by seed

    def mean(self, metric: str) -> float | None:
        """The mean of a metric over the seeds, None where no run has it."""
        values = [run.metrics[metric] for run in self.runs if metric in run.metrics]
        return mean(values) if values else None


def variants_of(runs: Iterable[StoredRun]) -> list[Variant]:
    """The variants among runs, those on other data apart; of several runs of a seed the first one counts."""
    groups: dict[tuple[str, ...], dict[int, StoredRun]] = {}
    for run in runs:
        key = (run.tags["variant"], *(run.tags.get(name, "") for name in DIGESTS))
        groups.setdefault(key, {}).setdefault(int(run.params["seed"]), run)
    seeds = [tuple(group[seed] for seed in sorted(group)) for group in groups.values()]
    differing = _differing(_one_spelling([_described(group[0]) for group in seeds]))
    labels = _labels(differing, seeds)
    return [Variant(*parts) for parts in zip(labels, differing, seeds, strict=True)]


def _described(run: StoredRun) -> dict[str, str]:
    """All that can tell a variant from others."""
    more = {"experiment": run.tags.get("experiment", "none"), "data.sha256": run.tags.get("data.sha256", "")[:8]}
    return {**more, **{key: _short(value) for key, value in run.params.items() if key != "seed"}}


def _one_spelling(described: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The same with one text for one number: version 0.1 has recorded 0.0 as 0, too."""
    texts: dict[tuple[str, float | str], str] = {}
    for words in described:
        for key, value in words.items():
            first = texts.setdefault((key, _number(value)), value)
            texts[key, _number(value)] = max(first, value, key=len)
    return [{key: texts[key, _number(value)] for key, value in words.items()} for words in described]


def _number(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def _differing(described: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """For each variant the keys that tell it from others, without those that follow from a choice.

    Two nets differ in `model`, and so in `model.filters`; that key says something more only where it takes several
    values beside one and the same choice of `model`.
    """
    values: dict[str, set[str | None]] = {}
    for key in dict.fromkeys(key for words in described for key in words):
        values[key] = {words.get(key) for words in described}
    open_keys = [key for key in values if len(values[key]) > 1]
    choices = [key for key in ("experiment", *GROUPS) if key in open_keys]
    beside: dict[tuple[str, str | None, str], set[str | None]] = {}
    for words in described:
        for choice in choices:
            for key in open_keys:
                beside.setdefault((choice, words.get(choice), key), set()).add(words.get(key))
    return [
        {
            key: words[key]
            for key in [*choices, *sorted(set(open_keys) - set(choices))]
            if key in words
            and all(
                len(beside[choice, words.get(choice), key]) > 1
                for choice in choices
                if key != choice and (choice == "experiment" or key.startswith(f"{choice}."))
            )
        }
        for words in described
    ]


def _labels(differing: Sequence[Mapping[str, str]], seeds: Sequence[Sequence[StoredRun]]) -> list[str]:
    """One label a variant, each of them once."""
    labels = [" ".join(f"{key}={value}" for key, value in words.items()) for words in differing]
    labels = [label or runs[0].params.get("model", runs[0].name) for label, runs in zip(labels, seeds, strict=True)]
    counts = Counter(labels)
    return [
        f"{label} [{runs[0].tags['variant'][:6]}]" if counts[label] > 1 else label
        for label, runs in zip(labels, seeds, strict=True)
    ]


def _short(value: str) -> str:
    """A value as it stands in a label: numbers with four digits, long texts cut."""
    number = _number(value)
    if isinstance(number, str):
        return value if len(value) <= _LONGEST_VALUE else f"{value[: _LONGEST_VALUE - 1]}…"
    return value if len(value) <= 6 else f"{number:.4g}"
