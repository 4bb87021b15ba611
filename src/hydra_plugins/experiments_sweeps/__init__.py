"""What Hydra finds by itself: the sweepers `grid` and `optuna` and the launcher `process`; imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import MISSING, DictConfig, OmegaConf

from experiments.errors import ExperimentError


class ProcessLauncher(Launcher):
    """Runs every job in a process of its own, `n_jobs` at a time; one that fails costs the others nothing.

    Args:
        n_jobs: how many at once; null for as many as cores and memory allow.
        timeout_minutes: for one job; null for any time.
        on_error: `continue`, or `stop` to start no further job after one that failed.
    """

    def __init__(self, n_jobs: int | None, timeout_minutes: float | None, on_error: str) -> None:
        self.n_jobs = n_jobs
        self.timeout_minutes = timeout_minutes
        self.on_error = on_error

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Takes what the jobs have in common; refuses values that cannot work."""
        if self.n_jobs is not None and self.n_jobs < 1:
            raise _refused(
                "launcher.n_jobs", self.n_jobs, "a whole number of at least 1, or null for what the machine allows"
            )
        if self.timeout_minutes is not None and self.timeout_minutes <= 0:
            raise _refused("launcher.timeout_minutes", self.timeout_minutes, "a number above 0, or null for any time")
        if self.on_error not in ("continue", "stop"):
            raise _refused("launcher.on_error", self.on_error, "continue or stop")
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs all jobs and returns what each has returned or raised, in their order."""
        from experiments.sweeps import launcher

        return launcher.launch(self.pool(), self.config, job_overrides, initial_job_idx)

    def pool(self) -> Any:
        """The processes, for a sweeper that follows jobs as they run."""
        from experiments.sweeps import launcher

        return launcher.Pool(
            launcher.Work.of(self),
            n_jobs=self.n_jobs or launcher.usable_slots(),
            timeout=self.timeout_minutes and self.timeout_minutes * 60,
            stop_on_error=self.on_error == "stop",
        )


class _OurSweeper(Sweeper):
    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if config.hydra.launcher.get("n_jobs") == 0:  # joblib would find out when the first job starts
            raise _refused("launcher.n_jobs", 0, "another number")


class GridSweeper(_OurSweeper):
    """Every combination of the swept values, checked before the first starts; what is finished is not run again.

    Args:
        params: key -> values in Hydra's grammar, crossed with each other.
        list: combinations beside those, each a mapping of keys to values.
        exclude: combinations that are left out.
    """

    def __init__(self, params: Any, list: Any, exclude: Any) -> None:
        self.params = _plain(params)
        self.list = _plain(list)
        self.exclude = _plain(exclude)

    def sweep(self, arguments: list[str]) -> Any:
        """Runs the sweep that the command line and the configuration describe."""
        from experiments.sweeps import grid

        return grid.run(self, arguments)


class OptunaSweeper(_OurSweeper):
    """A search by Optuna, which the same command continues.

    Args:
        params: key -> where to search, in Hydra's grammar.
        n_trials: how many in all, those of earlier calls among them.
        n_jobs: how many at once under a launcher that takes lists; `process` starts one whenever a process is free.
        sampler: class of Optuna that chooses trials, with its arguments.
        pruner: class of Optuna that stops hopeless ones, with its arguments.
    """

    def __init__(self, params: Any, n_trials: int, n_jobs: int, sampler: Any, pruner: Any) -> None:
        self.params = _plain(params)
        self.n_trials = n_trials
        self.n_jobs = n_jobs
        self.sampler = sampler
        self.pruner = pruner

    def sweep(self, arguments: list[str]) -> Any:
        """Runs or continues the study that the command line and the configuration describe."""
        for key in ("n_trials", "n_jobs"):
            if getattr(self, key) < 1:
                raise _refused(f"sweeper.{key}", getattr(self, key), "a whole number of at least 1")
        from experiments.sweeps import search

        return search.run(self, arguments)


def _plain(values: Any) -> Any:
    return OmegaConf.to_container(values) if OmegaConf.is_config(values) else values


def _refused(key: str, value: object, must_be: str) -> ExperimentError:
    return ExperimentError(f"hydra.{key}={value} is refused: it must be {must_be}.")


@dataclass
class _ProcessLauncher:
    _target_: str = "hydra_plugins.experiments_sweeps.ProcessLauncher"
    n_jobs: int | None = None
    timeout_minutes: float | None = None
    on_error: str = "continue"


_Combinations = list[dict[str, Any]]


@dataclass
class _GridSweeper:
    _target_: str = "hydra_plugins.experiments_sweeps.GridSweeper"
    params: dict[str, Any] = field(default_factory=dict)
    list: _Combinations = field(default_factory=list)
    exclude: _Combinations = field(default_factory=lambda: [])


@dataclass
class _OptunaSweeper:
    defaults: list[Any] = field(default_factory=lambda: [{"sampler": "tpe"}, {"pruner": "none"}])
    _target_: str = "hydra_plugins.experiments_sweeps.OptunaSweeper"
    _recursive_: bool = False  # the sampler is made when the study is known
    params: dict[str, Any] = field(default_factory=dict)
    n_trials: int = 20
    n_jobs: int = 2
    sampler: Any = MISSING
    pruner: Any = MISSING


_SAMPLERS = {
    "tpe": {"_target_": "optuna.samplers.TPESampler", "seed": None, "n_startup_trials": 10, "multivariate": False},
    "random": {"_target_": "optuna.samplers.RandomSampler", "seed": None},
    "cmaes": {
        "_target_": "optuna.samplers.CmaEsSampler",
        "seed": None,
        "n_startup_trials": 1,
        "warn_independent_sampling": False,
    },
}
_PRUNERS = {
    "none": {"_target_": "optuna.pruners.NopPruner"},
    "median": {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 5, "n_warmup_steps": 0},
    "hyperband": {
        "_target_": "optuna.pruners.HyperbandPruner",
        "min_resource": 1,
        "max_resource": "${epochs}",
        "reduction_factor": 3,
    },
}

_options = ConfigStore.instance()
_options.store(group="hydra/launcher", name="process", node=_ProcessLauncher, provider="experiments")
_options.store(group="hydra/sweeper", name="grid", node=_GridSweeper, provider="experiments")
_options.store(group="hydra/sweeper", name="optuna", node=_OptunaSweeper, provider="experiments")
for _name, _node in _SAMPLERS.items():
    _options.store(group="hydra/sweeper/sampler", name=_name, node=_node, provider="experiments")
for _name, _node in _PRUNERS.items():
    _options.store(group="hydra/sweeper/pruner", name=_name, node=_node, provider="experiments")
