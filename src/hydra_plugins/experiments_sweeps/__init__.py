"""What Hydra finds by itself: the sweepers and the launcher `process`; imports nothing heavy."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from pydantic import Field

from experiments.config.earlier import current_keys
from experiments.config.schema import check_value
from experiments.errors import ExperimentError

if TYPE_CHECKING:
    from experiments.sweeps.launcher import Pool

_Count = Annotated[int, Field(ge=1)]
_Combinations = list[dict[str, Any]]


class ProcessLauncher(Launcher):
    """Runs each job in its own process, `n_jobs` at a time; a job that fails or dies never affects the others.

    Args:
        n_jobs: how many at a time; None for as many as GPUs, or without them cores, and memory allow.
        jobs_per_gpu: how many at a time share a GPU, if there are any.
        timeout_minutes: for each job; None for no limit.
        on_error: `continue`, or `stop` to start no further job once one has failed.
    """

    def __init__(self, n_jobs: int | None, timeout_minutes: float | None, on_error: str, jobs_per_gpu: int = 1) -> None:
        self.n_jobs = n_jobs
        self.jobs_per_gpu = jobs_per_gpu
        self.timeout_minutes = timeout_minutes
        self.on_error = on_error

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes what the jobs have in common; refuses values that cannot work."""
        check_value("hydra.launcher.n_jobs", self.n_jobs, _Count | None)
        check_value("hydra.launcher.jobs_per_gpu", self.jobs_per_gpu, _Count)
        check_value("hydra.launcher.timeout_minutes", self.timeout_minutes, Annotated[float, Field(gt=0)] | None)
        check_value("hydra.launcher.on_error", self.on_error, Literal["continue", "stop"])
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs all jobs and returns what each has returned or raised, in their order."""
        from experiments.sweeps import launcher

        return launcher.launch(self.pool(), self.config, job_overrides, initial_job_idx)

    def pool(self) -> "Pool":
        """The processes, for a sweeper that follows jobs as they run."""
        from experiments.sweeps import launcher
        from experiments.sweeps.gpus import usable_gpus

        gpus = usable_gpus()
        return launcher.Pool(
            launcher.SweepTask.of(self),
            n_jobs=self.n_jobs or launcher.usable_slots(on_gpus=len(gpus) * self.jobs_per_gpu),
            gpus=gpus,
            timeout=self.timeout_minutes and self.timeout_minutes * 60,
            stop_on_error=self.on_error == "stop",
        )


class ExperimentSweeper(Sweeper):
    """What the sweepers share."""

    types: ClassVar[Mapping[str, Any]]  # key -> annotation of its value
    params: Mapping[str, Any]
    hydra_context: HydraContext
    task_function: TaskFunction
    config: DictConfig
    launcher: Launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes what the jobs have in common and makes the launcher; refuses values that cannot work."""
        for key, annotation in self.types.items():
            value = check_value(f"hydra.sweeper.{key}", getattr(self, key), annotation)
            setattr(self, key, current_keys(value))
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if config.hydra.launcher.get("n_jobs") == 0:  # joblib would find out when the first job starts
            raise ExperimentError("hydra.launcher.n_jobs=0 is refused: it must be another number.")


class GridSweeper(ExperimentSweeper):
    """Every combination of the swept values, all checked before the first job starts; finished jobs are not run again.

    Args:
        params: key -> values in Hydra's grammar, crossed with each other.
        include: combinations in addition to those, each a mapping of keys to values.
        exclude: combinations to leave out.
        list: what `include` was called in version 0.1.
    """

    types = MappingProxyType({"params": dict[str, Any], "include": _Combinations, "exclude": _Combinations})

    def __init__(self, params: Any, include: Any, exclude: Any, list: Any = None) -> None:
        self.params = params
        self.include = include if list is None else list
        self.exclude = exclude

    def sweep(self, arguments: list[str]) -> None:
        """Runs the sweep that the command line and the configuration describe."""
        from experiments.sweeps import grid

        grid.run(self, arguments)


class RaceSweeper(ExperimentSweeper):
    """Adds seeds to the variants whose comparison with the best one is not settled.

    Args:
        params: key -> values in Hydra's grammar, crossed with each other; without the seeds, which the race chooses.
        include: combinations in addition to those, each a mapping of keys to values.
        exclude: combinations to leave out.
        max_seeds: the largest number of seeds of a variant.
        equal_within: differences of the objective that do not matter; None to look for differences alone.
    """

    types = MappingProxyType({
        "params": dict[str, Any],
        "include": _Combinations,
        "exclude": _Combinations,
        "max_seeds": Annotated[int, Field(ge=4)],
        "equal_within": Annotated[float, Field(gt=0)] | None,
    })  # fmt: skip

    def __init__(self, params: Any, include: Any, exclude: Any, max_seeds: int, equal_within: float | None) -> None:
        self.params = params
        self.include = include
        self.exclude = exclude
        self.max_seeds = max_seeds
        self.equal_within = equal_within

    def sweep(self, arguments: list[str]) -> None:
        """Runs or continues the race that the command line and the configuration describe."""
        from experiments.sweeps import race

        race.run(self, arguments)


class OptunaSweeper(ExperimentSweeper):
    """A search with Optuna, which the same command resumes.

    Args:
        params: key -> where to search, in Hydra's grammar.
        n_trials: how many in total, including those of earlier calls.
        replicates: seeds per trial; the value of a trial is the mean over them.
        n_jobs: how many at a time with a launcher that takes lists; `process` starts one whenever a process is free.
        sampler: configuration of the class of Optuna that chooses the values of a trial.
        pruner: configuration of the class of Optuna that stops unpromising trials: between epochs or, with several
            replicates, between seeds.
    """

    types = MappingProxyType({"params": dict[str, Any], "n_trials": _Count, "replicates": _Count, "n_jobs": _Count})

    def __init__(
        self,
        params: Any,
        n_trials: int,
        n_jobs: int,
        sampler: dict[str, Any],
        pruner: dict[str, Any],
        replicates: int = 1,
    ) -> None:
        self.params = params
        self.n_trials = n_trials
        self.replicates = replicates
        self.n_jobs = n_jobs
        self.sampler = sampler
        self.pruner = pruner

    def sweep(self, arguments: list[str]) -> None:
        """Runs or continues the study that the command line and the configuration describe."""
        from experiments.sweeps import search

        search.run(self, arguments)
