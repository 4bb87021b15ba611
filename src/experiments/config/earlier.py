"""Translates keys of earlier versions, so that old commands, YAML files and recorded runs keep working."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

#: Key of an earlier version -> its name today; None for one that has no meaning any more.
RENAMED: dict[str, str | None] = {
    "label_smoothing": "loss.label_smoothing",
    "objective.metric": "objective",
    "objective.mode": None,  # follows from the metric
    "tracking.patience": "tracking.store_timeout",
    "hydra.sweeper.list": "hydra.sweeper.include",
}
#: Keys that came later, with the value that means what was done before; it leaves the hash of a variant as it was.
ADDED: dict[str, Any] = {
    "data.resize": "stretch",
    "keep": "best",
    "init_from": None,
    "freeze": [],
    "unfreeze_at_epoch": None,
    "head_learning_rate": None,
    "class_weight": "none",
}
#: What version 0.1 did without recording it as a parameter.
_IMPLIED = {
    "loss": "categorical_crossentropy",
    "loss._target_": "keras.losses.CategoricalCrossentropy",
    "metrics": "[]",
}
_WORD = re.compile(r"([+~]*)([^=]*)(.*)", re.DOTALL)
_ABSENT = object()


def current_words(words: Iterable[str]) -> list[str]:
    """Translates the overrides of a command line to the current keys."""
    parts = [match.groups() for match in map(_WORD.fullmatch, words) if match]
    named = [(sign, RENAMED.get(key, key), rest) for sign, key, rest in parts]
    return [f"{sign}{key}{rest}" for sign, key, rest in named if key is not None]


def current_keys(values: Any) -> Any:
    """Translates a flat mapping of dotted keys, or a list of them, to the current keys."""
    if isinstance(values, list):
        return [current_keys(each) for each in values]
    if not isinstance(values, Mapping):
        return values
    named = [(RENAMED.get(key, key), value) for key, value in values.items()]
    return {key: value for key, value in named if key is not None}


def current_parameters(parameters: Mapping[str, str]) -> dict[str, str]:
    """Translates the parameters of a recorded run to the current keys."""
    before = {key: value if isinstance(value, str) else json.dumps(value) for key, value in ADDED.items()}
    added = {key: text for key, text in before.items() if "." not in key and "optimizer" in parameters}
    return added | (_IMPLIED if "label_smoothing" in parameters else {}) | current_keys(parameters)


def current_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Translates the tags of a recorded run: `variant` was the hash that is `variant.id` today."""
    return {"variant.id": tags["variant"], **tags} if "variant" in tags else dict(tags)


def current_values(values: Any, overridden: Collection[str] = ()) -> Any:
    """Translates the unresolved values of a configuration to the current keys.

    Args:
        values: plain values; not changed.
        overridden: keys of today that the command line sets, and so an old key in a file does not.
    """
    values = _with_current_references(values)
    for old, new in RENAMED.items():
        *path, last = old.split(".")
        section = _section(values, path)
        value = section.pop(last, _ABSENT) if section else _ABSENT
        if value is not _ABSENT and new is not None and new not in overridden:
            *path, last = new.split(".")
            _section(values, path, make=True)[last] = value
    for key, before in ADDED.items():
        if "." not in key:  # those inside a group have it as the default of their function
            values.setdefault(key, before)
    if "_target_" not in values.get("loss", {"_target_": ""}):
        values["loss"]["_target_"] = _IMPLIED["loss._target_"]
    return values


def _section(values: Any, path: list[str], *, make: bool = False) -> Any:
    """The mapping at `path`; None if there is none and it is not to be made."""
    for name in path:
        if make:
            values.setdefault(name, {})
        values = values.get(name) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else None


def _with_current_references(node: Any) -> Any:
    """A copy with references such as ${objective.metric} renamed; what refers to a key without meaning is left out."""
    if isinstance(node, dict):
        renamed = {key: _with_current_references(value) for key, value in node.items()}
        return {key: value for key, value in renamed.items() if value is not _ABSENT}
    if isinstance(node, list):
        return [_with_current_references(value) for value in node]
    if isinstance(node, str) and "${" in node:
        for old, new in RENAMED.items():
            if f"${{{old}}}" in node:
                return _ABSENT if new is None else node.replace(f"${{{old}}}", f"${{{new}}}")
    return node
