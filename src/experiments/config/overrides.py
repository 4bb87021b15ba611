"""Parses overrides with Hydra's grammar."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException, InstantiationException

from experiments.config.schema import LIST_GROUPS
from experiments.errors import ExperimentError

_FOLDER_OPTIONS = ("--config-dir", "-cd")
#: A key inside a part that can be a class of Keras, whose YAML need not list every argument.
_OF_PART = re.compile(r"(?:(?:scale|augment|loss|optimizer|callbacks|metrics)\.|model\.layers\.\d+\.)[^=]+=")


# What the user typed


def parse(overrides: Sequence[str], config_loader: ConfigLoader | None = None) -> list[Override]:
    """Parses overrides.

    Args:
        overrides: as on the command line.
        config_loader: Hydra's, to expand `glob(…)`.

    Raises:
        ExperimentError: one that breaks the grammar.
    """
    try:
        parsed = OverridesParser.create(config_loader=config_loader).parse_overrides(list(overrides))
    except HydraException as error:
        culprit = getattr(error, "override", None) or " ".join(overrides)
        raise not_an_override(culprit) from error
    for text, override in zip(overrides, parsed, strict=True):
        if not override.key_or_group:
            raise not_an_override(text)
    return parsed


def absolute_paths(words: Sequence[str]) -> list[str]:
    """Makes the paths in the words of a command line absolute."""
    found = []
    for before, word in zip(["", *words], words, strict=False):
        key, _, value = word.partition("=")
        if before in _FOLDER_OPTIONS:
            word = absolute(word)
        elif key in _FOLDER_OPTIONS and value:
            word = f"{key}={absolute(value)}"
        elif is_data_path(key) or (key in ("init_from", "model.weights") and is_weights_file(value.strip("'\""))):
            (override,) = parse([word])
            if not override.is_sweep_override() and isinstance(path := override.value(), str):
                word = f"{key}={quoted(absolute(path))}" if not os.path.isabs(path) else word
        found.append(word)
    return found


def quoted(text: str) -> str:
    """A text in Hydra's grammar, whatever characters it has."""
    return QuotedString(text, Quote.single).with_quotes()


def is_weights_file(value: object) -> bool:
    """Whether a value is the name of a file with the weights of a model."""
    return isinstance(value, str) and value.endswith((".h5", ".keras"))


def is_data_path(key: str) -> bool:
    """Whether a dotted key is a path of data, which cannot change a result."""
    return key.startswith("data.") and key.endswith("path")


def for_hydra(words: Iterable[str]) -> list[str]:
    """Puts ++ before keys of parts, without which Hydra takes only the arguments that a YAML file lists."""
    return [f"++{word}" if _OF_PART.match(word) else word for word in words]


def as_typed(words: Iterable[str]) -> list[str]:
    """Reverses `for_hydra`."""
    return [word[2:] if word.startswith("++") and _OF_PART.match(word[2:]) else word for word in words]


def pairs(overrides: Sequence[str]) -> Iterator[tuple[str, Override]]:
    """Each override as it was typed, with its parsed form."""
    return zip(overrides, parse(overrides), strict=True)


def not_an_override(text: str) -> ExperimentError:
    """The error for a word that does not follow the grammar."""
    return ExperimentError(
        f"{text}: this is no override.", advice="Write key=value; quote a value with special characters."
    )


def is_choice(override: Override) -> bool:
    """Whether an override chooses an option of a group, rather than changing keys of the chosen one."""
    value = override.value()
    if override.key_or_group in LIST_GROUPS and isinstance(value, list):
        return all(isinstance(name, str) for name in value)
    return isinstance(value, str | dict) or override.is_delete()


def first_line(error: BaseException | None) -> str:
    """The message of a Hydra or OmegaConf exception, without internal details."""
    if isinstance(error, InstantiationException) and error.__cause__:
        return first_line(error.__cause__)
    said = re.sub(r"\w+ raised while (composing config|resolving interpolation):\s", "", str(error))
    plain = said.replace("DictConfig", "a mapping").replace("ListConfig", "a list")
    return plain.partition("\n")[0] or first_line(error and error.__cause__)


def absolute(path: str) -> str:
    """The absolute form of a path, with `~` expanded."""
    return os.path.abspath(os.path.expanduser(path))
