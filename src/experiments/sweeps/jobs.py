"""The jobs of a sweep: every combination that was asked for, composed and checked."""

import contextlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override

from experiments.config.compose import checked, compose_unchecked
from experiments.config.configuration import Configuration, Plan
from experiments.config.identity import digest
from experiments.config.overrides import parse
from experiments.errors import ExperimentError
from experiments.tracking.runs import StoredRun

MOST_JOBS = 1000
_YAML = {"True": "true", "False": "false"}  # what Hydra makes of the truth values of a sweep


class State(StrEnum):
    """How far a job has come, in the order in which `counts` shows them."""

    FINISHED = "finished"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    FAILED = "failed"
    KILLED = "killed"
    ELSEWHERE = "running elsewhere"
    NOT_RECORDED = "not recorded"
    NOT_STARTED = "not started"
    WAITING = "waiting"
    RUNNING = "running"


@dataclass
class Job:
    """One job of a sweep, with its state and its run."""

    number: int  # in the whole list
    overrides: tuple[str, ...]  # that compose its configuration
    swept_values: Mapping[str, str]  # swept key -> value
    configuration: Configuration
    distinguishing_values: Mapping[str, str] = field(default_factory=dict)  # swept values that differ between the jobs
    plan: Plan | None = None
    duplicate_of: "Job | None" = None  # an earlier job of the list with the same fingerprint
    state: State = State.WAITING
    reason: str = ""  # of a failure
    run: StoredRun | None = None
    states_before: Mapping[str, object] = field(default_factory=dict)  # run id -> attempt of runs with its fingerprint
    trial: int | None = None  # number in the study of a search
    earlier: bool = False  # ended in an earlier call of the same command

    def set_plan(self, plan: Plan) -> None:
        """Sets the plan; from then on the configuration has the hash of the weights that the job starts from."""
        self.plan = plan
        self.configuration = self.configuration.pinned(plan.init_from)

    @property
    def label(self) -> str:
        """The swept values that distinguish it from the other jobs."""
        words = [f"{key}={value}" for key, value in self.distinguishing_values.items()]
        return " ".join(words) or self.configuration.choices["model"]

    @property
    def result(self) -> str:
        """Identifies its variant on its data: equal for jobs that differ in their seeds only."""
        return f"{self.configuration.variant} {self.plan.data_sha256 if self.plan else ''}"

    @property
    def fingerprint(self) -> str:
        """The fingerprint of its run; empty for a job that could not be planned."""
        return self.plan.fingerprint if self.plan else ""

    @property
    def objective(self) -> float | None:
        """The value of the objective in the best epoch; None without a result."""
        name = f"best/{self.configuration.cfg.objective}"
        return self.run.metrics.get(name) if self.run and self.state in (State.FINISHED, State.PRUNED) else None

    def copy_result_of_duplicate(self) -> None:
        """Takes over state and run of the job that it is a duplicate of, if it is one."""
        if self.duplicate_of:
            self.state, self.run, self.reason = self.duplicate_of.state, self.duplicate_of.run, self.duplicate_of.reason


def combinations(
    arguments: Sequence[str],
    params: Mapping[str, Any],
    listed: Sequence[Mapping[str, Any]],
    config_loader: ConfigLoader,
) -> list[tuple[tuple[str, ...], dict[str, str]]]:
    """The overrides of every job, and its swept values.

    What the command line sweeps is crossed with the combinations of the configuration: those of `params`, and each
    entry of `listed`. A key on the command line wins.

    Raises:
        ExperimentError: a sweep without jobs, or with too many.
    """
    parsed = parse(arguments, config_loader)
    fixed = tuple(text for text, part in zip(arguments, parsed, strict=True) if not part.is_sweep_override())
    typed = {part.key_or_group for part in parsed}
    swept = _values([part for part in parsed if part.is_sweep_override()])
    if key := next((key for key in ("sweep", "sweep.name") if key in swept), None):
        raise ExperimentError(f"{key}= names one sweep, and cannot be swept.", advice="Start them one after another.")
    found: list[tuple[tuple[str, ...], dict[str, str]]] = []
    for block in [*([params] if params or not listed else []), *listed]:
        texts = [f"{key}={as_text(value)}" for key, value in block.items() if key not in typed]
        values = _values(parse(texts, config_loader)) | swept
        if len(found) + math.prod(map(len, values.values())) > MOST_JOBS:
            raise ExperimentError(
                f"The sweep has more than {MOST_JOBS:,} jobs.",
                advice="Sweep less, or search with hydra/sweeper=optuna.",
            )
        for combination in itertools.product(*values.values()):
            chosen = dict(zip(values, combination, strict=True))
            found.append(((*fixed, *(f"{key}={value}" for key, value in chosen.items())), chosen))
    if not found:
        raise ExperimentError("The sweep has no job: a key is swept over no value.")
    return found


def _values(overrides: Iterable[Override]) -> dict[str, list[str]]:
    """Key -> every value it takes, as text."""
    values = {}
    for part in overrides:
        if part.is_sweep_override() and not part.is_discrete_sweep():
            raise ExperimentError(
                f"{part.input_line}: a grid needs single values.",
                advice="Write them out, as in 0.1,0.2, or search with hydra/sweeper=optuna.",
            )
        swept = part.is_sweep_override()
        values[part.get_key_element()] = (
            list(part.sweep_string_iterator()) if swept else [part.get_value_element_as_str()]
        )
    return values


def as_text(value: Any) -> str:
    """A value of YAML in Hydra's grammar, in which a text stands as it is."""
    return value if isinstance(value, str) else _inner_text(value)


def _inner_text(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_inner_text(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_inner_text, value))}]"
    return json.dumps(value, ensure_ascii=False)


def include_override(entries: Iterable[Mapping[str, str]]) -> str:
    """The override that lists combinations of values, each as it is typed, for a grid or a race."""
    listed = (
        ",".join(f"{key}:{json.dumps(value, ensure_ascii=False)}" for key, value in entry.items()) for entry in entries
    )
    return f"hydra.sweeper.include=[{','.join(f'{{{entry}}}' for entry in listed)}]"


def compose_jobs(
    found: Sequence[tuple[tuple[str, ...], dict[str, str]]],
    excluded: Sequence[Mapping[str, Any]],
    config_dir: str | None,
) -> Iterator[Job]:
    """Composes and checks every job; leaves out those that match an exclusion.

    Raises:
        ExperimentError: a job that cannot work, by its number and values, or an exclusion that names an unknown key.
    """
    number = 0
    unknown: dict[str, ExperimentError] = {key: ExperimentError("") for exclusion in excluded for key in exclusion}
    for overrides, swept_values in found:
        with in_job(number, swept_values):
            configuration = compose_unchecked(overrides, config_dir)
        values = {}
        for key in {key for exclusion in excluded for key in exclusion}:
            try:
                values[key] = configuration.value(key)
                unknown.pop(key, None)
            except ExperimentError as error:  # another job may have it
                if key in unknown:
                    unknown[key] = error
        if any(_matches(values, exclusion) for exclusion in excluded):
            continue
        with in_job(number, swept_values):
            checked(configuration)
        yield Job(number, overrides, swept_values, configuration)
        number += 1
    if unknown:
        raise next(iter(unknown.values()))


def _matches(values: Mapping[str, Any], exclusion: Mapping[str, Any]) -> bool:
    return all(key in values and values[key] == _as_choice(key, value) for key, value in exclusion.items())


def _as_choice(key: str, value: Any) -> Any:
    """A value as a configuration has it: that of `callbacks` is the sorted text of its list."""
    return f"[{','.join(sorted(value))}]" if key == "callbacks" and isinstance(value, list) else value


@contextlib.contextmanager
def in_job(number: int, swept_values: Mapping[str, str]) -> Iterator[None]:
    """Adds the number and the values of a job to the message of an error."""
    try:
        yield
    except ExperimentError as error:
        values = " ".join(f"{key}={value}" for key, value in swept_values.items())
        raise ExperimentError(f"Job {number} ({values}): {error}" if values else str(error)) from error


def find_differences(jobs: Sequence[Job]) -> None:
    """Finds for each job the swept values that differ between the jobs."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.swept_values))
    varied = [key for key in keys if len({job.swept_values.get(key) for job in jobs}) > 1] or keys[:1]
    for job in jobs:
        values = {key: job.swept_values[key] for key in varied if key in job.swept_values}
        job.distinguishing_values = {key: _YAML.get(value, value) for key, value in values.items()}


def sweep_name(jobs: Sequence[Job], choice: str | None, arguments: Sequence[str], identity: Any) -> str:
    """Its `sweep.name`, the choice of `sweep=` or the first swept override; and six hex digits of what makes it."""
    given = jobs[0].configuration.cfg.sweep.name if jobs else None
    swept = [text for text in arguments if jobs and text.partition("=")[0] in jobs[0].swept_values]
    head = str(given or choice or next(iter([*swept, *arguments]), "sweep"))
    # MLflow's filters cannot quote quotes, and take these others for wildcards.
    plain = re.sub(r"""[`%'"\\]""", "", head)
    return f"{plain[:80]}-{digest(identity)[:6]}"


def apply_result(job: Job, run: StoredRun | None) -> None:
    """Sets state, run and reason of `job` from its run."""
    if run is None:
        return
    job.run = run
    job.reason = run.tags.get("failure", "")
    if run.status == "FINISHED":
        job.state = State.PRUNED if "pruned" in run.tags else State.FINISHED
    elif run.diverged:
        job.state = State.DIVERGED
    else:
        job.state = State.KILLED if run.status == "KILLED" else State.FAILED


def counts(jobs: Sequence[Job]) -> str:
    """How many jobs are in each state."""
    found = Counter(job.state for job in jobs)
    head = f"{len(jobs):,} {'job' if len(jobs) == 1 else 'jobs'}"
    return f"{head}: {', '.join(f'{found[state]} {state}' for state in State if found[state])}"
