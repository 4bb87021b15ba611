"""A race between the configuration of a recorded run and a change of it, for scripts that keep what is better."""

import re
import shlex
from collections.abc import Sequence

from experiments.compare.names import find_run
from experiments.compare.sequential import Standing
from experiments.config.compose import compose
from experiments.config.configuration import NO_IDENTITY
from experiments.errors import ExperimentError
from experiments.sweeps.jobs import include_override
from experiments.sweeps.race import Result

BETTER, NOT_BETTER, UNDECIDED = 0, 1, 3
_LOST = (Standing.WORSE, Standing.FAILED)


def words_of(run: str, change: Sequence[str]) -> list[str]:
    """The words of a race between a run as it was and with a change.

    Args:
        run: names the recorded run.
        change: overrides; those that cannot change a result, such as `tracking.` and `hydra.`, are for both.

    Raises:
        ExperimentError: there is no such run, it cannot be repeated, or there is no change or one of the data.
    """
    recorded = find_run(run)
    command = shlex.split(recorded.tags.get("command", ""))
    if command[:2] != ["experiments", "train"]:
        raise ExperimentError(f"{recorded.name}: it was not trained by a command that could be repeated with a change.")
    of_both = [word for word in change if re.split(r"[./=]", word)[0] in ("hydra", *NO_IDENTITY)]
    typed = [word for word in change if word not in of_both]
    if wrong := next((word for word in typed if "=" not in word), None):
        raise ExperimentError(f"{wrong} is no value of a key.", advice="Give overrides, as in model.dropout=0.3.")
    changed = dict(word.split("=", 1) for word in typed)
    if not changed:
        raise ExperimentError("There is no change to race.", advice="Give overrides, as in model.dropout=0.3.")
    if data := next((key for key in changed if key == "data" or key.startswith("data.")), None):
        raise ExperimentError(f"{data} changes the data, so nothing could be compared with {recorded.name}.")
    folder = command[command.index("--config-dir") + 1] if "--config-dir" in command else None
    words = [word for word in command[2:] if "=" in word and not word.startswith(("hydra", "tracking.", "sweep="))]
    before = dict(word.split("=", 1) for word in words if word != folder)
    if compose([f"{key}={value}" for key, value in before.items()], folder).variant != recorded.tags.get("variant.id"):
        raise ExperimentError(f"{recorded.name}: its command has another configuration today, so it cannot be raced.")
    unchanged = [f"{key}={value}" for key, value in before.items() if key not in changed]
    entries = [{key: before[key] for key in changed if key in before}, changed]
    return [
        *(["--config-dir", folder] if folder else []),
        *unchanged,
        *of_both,
        include_override(entries),
    ]


def status(result: Result) -> int:
    """The exit status: whether the change, the second variant, is better than the run."""
    before, changed = sorted(result.variants, key=lambda entry: entry["number"])
    if before["standing"] == Standing.WORSE:
        return BETTER
    if Standing.EQUAL in (before["standing"], changed["standing"]) or changed["standing"] in _LOST:
        return NOT_BETTER
    return UNDECIDED
