"""What may follow on a command line, for TAB completion of overrides."""

from collections.abc import Sequence

from experiments.config.compose import compose, option_files
from experiments.config.configuration import SELECTABLE, known_keys
from experiments.config.schema import JOB_KEY
from experiments.errors import ExperimentError


def candidates(words: Sequence[str], beginning: str) -> list[str]:
    """Every override that begins so: groups and keys with a `=`, and behind that the options of a group.

    Args:
        words: the whole overrides before it; the groups chosen there decide which keys there are.
        beginning: what is typed of it.
    """
    folder = next((words[index + 1] for index, word in enumerate(words[:-1]) if word == "--config-dir"), None)
    try:
        files = option_files(folder)
        key, equals, _ = beginning.partition("=")
        if key in files and equals:
            found = [f"{key}={file.stem}" for file in files[key]]
        else:
            chosen = [word for word in words if word.partition("=")[0] in SELECTABLE and "," not in word]
            known = compose(chosen, folder)
            if equals:
                found = [f"{key}={text}" for text in ("true", "false") if isinstance(known.value(key), bool)]
            else:
                hidden = ("_target_", JOB_KEY)
                names = {name for name in known_keys(known) if not name.endswith(hidden)}
                inner = {name.rpartition(".")[0] for name in names}
                found = [f"{name}=" for name in sorted({*files, *names} - (inner - files.keys()))]
    except ExperimentError:  # what is typed so far cannot work
        return []
    return [text for text in found if text.startswith(beginning)]


def groups(beginning: str) -> list[str]:
    """The groups whose names begin so."""
    return [group for group in sorted(option_files(None)) if group.startswith(beginning)]
