"""The Hydra application behind `experiments train`: a single run, or the jobs of a sweep."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from experiments import quiet_import
from experiments.config.compose import CONF_DIR, check_command, current_job
from experiments.config.configuration import Configuration
from experiments.config.earlier import current_words
from experiments.config.names import names
from experiments.config.overrides import first_line, for_hydra
from experiments.errors import ExperimentError, JobsFailed
from experiments.library_internals import hydra_argument_parser


def run(arguments: tuple[str, ...]) -> int:
    """Runs `experiments train`; returns the exit status.

    Args:
        arguments: overrides and options of Hydra.

    Raises:
        ExperimentError: something in them is impossible.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of Hydra's own printer
    arguments = tuple(current_words(arguments))
    sys.argv = ["experiments train", *for_hydra(arguments)]  # where hydra.main reads them
    options = hydra_argument_parser().parse_args(arguments)
    for option in ("config_name", "config_path", "experimental_rerun"):
        if getattr(options, option):  # they would run what nothing has checked
            raise ExperimentError(f"--{option.replace('_', '-')} is not for this command.", advice="Use --config-dir.")
    if not (options.help or options.hydra_help or options.shell_completion):
        check_command(options.overrides, options.config_dir, multirun=options.multirun)
    # A job of a sweep may have another working directory.
    config_dir = os.path.abspath(options.config_dir) if options.config_dir else None
    refused: list[ExperimentError] = []
    statuses: list[str] = []

    def task(cfg: DictConfig) -> Any:
        is_job = HydraConfig.get().mode is RunMode.MULTIRUN
        if sys.stdout.isatty() and not is_job:
            print("Loading TensorFlow …", flush=True)
        with quiet_import():
            from experiments import train
        if is_job:
            return _run_job(current_job(cfg, config_dir))
        try:
            configuration = current_job(cfg, options.config_dir)
            if cfg.dry_run:
                parameters = train.plan(configuration).num_parameters
                print(f"{names(configuration).run}: {parameters:,} parameters; can be trained, nothing is recorded")
                return None
            result = train.run(configuration)
        except ExperimentError as error:
            refused.append(error)  # raised here, it would reach the user through Hydra's own report
            return None
        statuses.append(result.status)
        return result.objective

    try:
        hydra.main(config_path=str(CONF_DIR), config_name="config", version_base="1.3")(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise ExperimentError(first_line(error)) from error
    except JobsFailed:
        return 1
    if refused:
        raise refused[0]
    return 0 if set(statuses) <= {"FINISHED"} else 1


def _run_job(configuration: Configuration) -> Any:
    """Trains a job of a sweep and returns its objective, or with `dry_run=true` its plan."""
    from experiments import train
    from experiments.sweeps import display
    from experiments.sweeps.sweep import job_output
    from experiments.tracking.output import redirect_output

    cfg = configuration.cfg
    if cfg.dry_run:
        return train.plan(configuration)
    job = cfg.tracking.job
    if not job:  # of a sweeper that is not ours
        return train.run(configuration).objective
    with _as_job_failure(), redirect_output(job_output(job.sweep, job.number)) as console:
        report_epoch = display.epoch_reporter(configuration, console)
        sweeper = HydraConfig.get().sweeper
        if job.trial is None or sweeper.get("replicates", 1) > 1:  # then it is pruned between its seeds
            return train.run(configuration, on_epoch=report_epoch).objective
        from experiments.sweeps import study

        should_prune = study.pruning_check(job.sweep, job.trial, sweeper.pruner, configuration.cfg.objective)
        return train.run(configuration, on_epoch=report_epoch, should_stop=should_prune).objective


@contextlib.contextmanager
def _as_job_failure() -> Iterator[None]:
    """Turns whatever ends a job into an error that its launcher can read, and that does not end the launcher."""
    from experiments.tracking.endings import Ending, JobDied

    try:
        yield
    except ExperimentError:
        raise
    except (Exception, SystemExit) as error:
        # In words: to read TensorFlow's errors, the launching process would have to import it.
        ending = Ending.of(error)
        if ending.reason == "signal":
            raise
        raise JobDied(ending) from None
