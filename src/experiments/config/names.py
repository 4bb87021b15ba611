"""What a person calls a variant and a run: by the model, and by what differs from its default."""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from experiments.config.compose import chosen_options, default_choices
from experiments.config.configuration import PIN, REPLICATE_KEYS, Configuration, flatten
from experiments.config.schema import GROUPS
from experiments.errors import ExperimentError

_ORDER = ("model", *(group for group in GROUPS if group != "model"))
_LONGEST_VALUE, _LONGEST_VARIANT, _LONGEST_RUN = 40, 200, 80  # characters


@dataclass(frozen=True)
class Names:
    """What a person calls a run and its variant."""

    # The model, and every choice and value that differs from its default, without seed, split and fold, as in
    # `conv3 dropout=0.3`. What had to be cut ends with the first characters of `Configuration.variant`.
    variant: str
    run: str  # what differs, and the seed: at most 80 characters


def names(configuration: Configuration, swept: Collection[str] = ()) -> Names:
    """What a run and its variant are called.

    Args:
        configuration: of the run.
        swept: keys that differ between the jobs of its sweep; without them, what differs from the defaults is named.
    """
    differences, known = _differences(configuration)
    fixed = [word for key, word in differences.items() if key not in REPLICATE_KEYS]
    ending = f" [{configuration.variant[:6]}]"
    variant = _fitted(fixed, _LONGEST_VARIANT - len(ending), _LONGEST_VALUE)
    seed = f" seed={configuration.cfg.seed}"
    words = _in_words(configuration, set(swept) - {"seed"}) or differences
    fitted = [_fitted(words.values(), _LONGEST_RUN - len(seed), longest) for longest in (_LONGEST_VALUE, 20, 12, 6)]
    run = next((name for name in fitted if not name.endswith(" …")), fitted[2])
    return Names(variant if known and variant == " ".join(fixed) else variant + ending, run + seed)


def _fitted(words: Iterable[str], room: int, longest_value: int) -> str:
    """Words with values of that many characters, as far as they have room."""
    parts = [word.partition("=") for word in words]
    texts = [key + sign + _cut(value, longest_value) for key, sign, value in parts]
    kept = list(texts)
    while len(" ".join(kept)) > (room if len(kept) == len(texts) else room - 2) and len(kept) > 1:
        kept.pop()
    return _cut(" ".join(kept), room) + ("" if len(kept) == len(texts) else " …")


def _differences(configuration: Configuration) -> tuple[dict[str, str], bool]:
    """The keys that differ from their defaults, in words, and whether all are known."""
    defaults = default_choices()
    chosen = {group for group, choice in configuration.choices.items() if choice != defaults.get(group)}
    try:
        default = chosen_options(configuration)
    except ExperimentError:  # an option of a folder that is not given any more
        return _in_words(configuration, {"model", *chosen}), False
    own, before = configuration.identity, default.identity
    root = {key for key, value in own.items() if key not in GROUPS and value != before.get(key)}
    cfg = cast(DictConfig, OmegaConf.merge(default.cfg, {key: own[key] for key in root}))
    before = dict(flatten(replace(default, cfg=cfg).identity))  # with all that refers to those
    changed = {key for key, value in flatten(own) if key not in before or before[key] != value}
    return _in_words(configuration, {"model", *chosen, *root, *changed} - {"seed"}), True


def _in_words(configuration: Configuration, keys: Iterable[str]) -> dict[str, str]:
    """Each key with a text such as `dropout=0.3`, in an order that is always the same."""
    every = [*GROUPS, *(key for key, _ in flatten(configuration.identity))]
    return {key: _word(configuration, key, every) for key in sorted(keys, key=_place)}


def _place(key: str) -> tuple[int, str]:
    group = key.partition(".")[0]
    return (_ORDER.index(group) if group in _ORDER else len(_ORDER), key)


def _word(configuration: Configuration, key: str, every: Sequence[str]) -> str:
    value = _value(configuration, key)
    if key == "model":
        return str(value)
    parts = key.split(".")
    endings = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
    clear = (end for end in endings if sum(f".{other}".endswith(f".{end}") for other in every) < 2)
    return f"{next(clear, key)}={_text(value)}"


def _value(configuration: Configuration, key: str) -> Any:
    if key == "experiment":
        return configuration.experiment
    if key in configuration.choices:
        return configuration.choices[key]
    value = OmegaConf.select(configuration.cfg, key)
    value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    return value.partition(PIN)[0] if key == "init_from" and isinstance(value, str) else value


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
