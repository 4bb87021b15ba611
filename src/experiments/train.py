"""The composition root: a configuration becomes one tracked run."""

import contextlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from experiments import artifacts
from experiments.config.compose import CHECKOUT
from experiments.config.configuration import Configuration, Plan
from experiments.config.identity import code_sha256, read_own_code
from experiments.config.schema import epoch_metrics
from experiments.config.targets import typed
from experiments.dataset import Dataset
from experiments.errors import ExperimentError
from experiments.tracking.locks import close_stale_runs, lock
from experiments.tracking.output import console_log
from experiments.tracking.provenance import environment, uncommitted
from experiments.tracking.run import TAGS, Run, open_run
from experiments.tracking.runs import StoredRun, earlier_runs
from experiments.tracking.store import check_store, run_folder, set_store_timeout, shown_uri
from experiments.training import checkpoints
from experiments.training.batches import training_batches
from experiments.training.build import Components, build, build_part
from experiments.training.callbacks import Diverged, EpochFunction
from experiments.training.checkpoints import Checkpoint
from experiments.training.evaluation import evaluate, measure
from experiments.training.fit import Recipe, TrainingResult, fit
from experiments.training.macs import count_macs
from experiments.training.runtime import forget_models, start_runtime

_log = logging.getLogger("experiments")
_OWN_CODE = read_own_code()  # as it was when it was imported


@dataclass(frozen=True)
class RunResult:
    """What a run measured and where its record is."""

    run_id: str
    name: str
    status: str  # FINISHED, or FAILED when the training diverged
    objective: float | None  # of the best epoch; None when the training diverged
    metrics: Mapping[str, float]  # best/…, test/… and cost/…
    history: Mapping[str, Sequence[float]]  # metric -> one value an epoch
    artifacts: str  # folder, or URI when the store is on another machine


@dataclass(frozen=True)
class _Resume:
    """What a run takes over from earlier runs of its configuration."""

    attempt: StoredRun | None  # the run to continue
    checkpoint: Checkpoint | None  # to resume from
    superseded: list[str]  # ids of runs that it takes the place of
    outdated: list[str]  # ids of runs whose files nobody needs once it is finished


def run(configuration: Configuration, stop: EpochFunction | None = None, reproduces: str | None = None) -> RunResult:
    """Trains, evaluates and records what `configuration` describes.

    A job of a sweep that is finished already is not trained again: its result is returned. A run that was killed goes
    on from its last checkpoint.

    Args:
        configuration: the run.
        stop: called at every epoch's end; returns true to end the training there.
        reproduces: id of the run whose numbers this one is to have again, from the first epoch on.

    Raises:
        StoreLost: the store does not answer; a sweep's job has waited for it.
        ExperimentError: what was asked cannot work, or another process trains it; nothing has been recorded.
    """
    cfg = configuration.cfg
    with console_log(of_a_job=bool(cfg.tracking.job)):
        _start_runtime(cfg)
        configuration = typed(configuration)
        _check_custom_tags(cfg)
        if CHECKOUT is None:
            _log.info("Recording in %s", shown_uri())
        set_store_timeout(cfg.tracking.store_timeout if cfg.tracking.job else 0)
        check_store()
        data: Dataset = build_part(cfg, "data", Dataset)
        tags = _identify(configuration, data) | ({"reproduces": reproduces} if reproduces else {})
        parts = build(cfg, data)
        tags["metric_modes"] = json.dumps(parts.modes)
        _close_stale_runs(cfg)
        with lock(tags["fingerprint"]):
            earlier = earlier_runs(configuration.variant, cfg.seed)
            if not reproduces and (equal := _equal_run(cfg, tags, earlier)):
                return _as_recorded(cfg, equal)
            resume = _resume_from(cfg, tags, earlier, anew=reproduces is not None)
            with _opened(configuration, tags, resume) as record:
                if _has_changed(cfg, tags, record):
                    return RunResult(record.id, record.name, "FAILED", None, {}, {}, record.artifacts)
                try:
                    return _trained(cfg, data, parts, record, stop, resume.checkpoint, reproduces)
                except KeyboardInterrupt:
                    _tell_how_to_resume(cfg, checkpoints.newest(record.folder), reproduces)
                    raise


def identify(configuration: Configuration) -> dict[str, str]:
    """What tells a run of `configuration` from every other, as tags: digests of its values, data and code.

    Raises:
        ExperimentError: the data are not there.
    """
    _start_runtime(configuration.cfg)
    return _identify(configuration, build_part(configuration.cfg, "data", Dataset))


def plan(configuration: Configuration) -> Plan:
    """What `configuration` would train, all of it built and nothing recorded.

    Raises:
        ExperimentError: it cannot work.
    """
    cfg = configuration.cfg
    forget_models(cfg.precision)
    _check_custom_tags(cfg)
    data: Dataset = build_part(cfg, "data", Dataset)
    tags = _identify(configuration, data)
    parts = build(cfg, data)
    return Plan(
        variant=tags["variant"],
        fingerprint=tags["fingerprint"],
        data_sha256=tags["data.sha256"],
        code_sha256=tags["code.sha256"],
        num_parameters=parts.model.count_params(),
        parameters=typed(configuration).parameters,
        mode=parts.mode,
    )


def _trained(
    cfg: Any,
    data: Dataset,
    parts: Components,
    record: Run,
    stop: EpochFunction | None,
    checkpoint: Checkpoint | None,
    reproduces: str | None,
) -> RunResult:
    """Fills an open run."""
    _log.info("%s (%s)", record.name, record.id)
    _log_resuming(cfg, checkpoint)
    _warn_if_badly_scaled(parts.scaling, data)
    _suggest_more_threads(cfg)
    artifacts.link_data(record, data, cfg.data._target_)
    artifacts.draw_samples(record, data, _training_batches(cfg, data, parts), parts.scaling)
    try:
        result = _fit(cfg, data, parts, record, stop, checkpoint, reproduces)
    except Diverged as diverged:
        return _diverged(record, diverged)
    validation = evaluate(parts.model, data.validation_images, data.validation_labels)
    test = evaluate(parts.model, data.test_images, data.test_labels)
    measured = measure(test, parts.metrics)
    metrics = artifacts.metrics(parts.model, count_macs(parts.model), data, result, test, measured)
    artifacts.write_tables(record, data, validation, test)
    artifacts.draw(record, data, result, test, cfg.objective)
    if cfg.tracking.model:
        artifacts.log_model(record, parts.model, data, result.best_epoch)
    record.log_metrics(metrics)  # at step 0 the UI draws single values as bars beside each other
    record.set_tags(artifacts.digests(parts.model, validation, test))
    artifacts.summarise(record, data, result, test, metrics, cfg.objective, cfg.tracking.note)
    objective = result.best[cfg.objective]
    return RunResult(record.id, record.name, "FINISHED", objective, metrics, result.history, record.artifacts)


def _start_runtime(cfg: Any) -> None:
    start_runtime(seed=cfg.seed, threads=cfg.threads, deterministic=cfg.deterministic, precision=cfg.precision)


def _check_custom_tags(cfg: Any) -> None:
    for name in cfg.tracking.tags:
        if name in TAGS or name.startswith("mlflow."):
            raise ExperimentError(f"tracking.tags.{name}: the run sets this tag itself.", advice="Choose another name.")


def _identify(configuration: Configuration, data: Dataset) -> dict[str, str]:
    """What makes this run the same as or another than any other, as tags."""
    code = code_sha256(_OWN_CODE, configuration.cfg)
    return {
        "variant": configuration.variant,
        "fingerprint": configuration.fingerprint(data.sha256, code),
        "data.sha256": data.sha256,
        "data.validation_sha256": data.validation_sha256,
        "data.test_sha256": data.test_sha256,
        "code.sha256": code,
    }


def _close_stale_runs(cfg: Any) -> None:
    if not cfg.tracking.job:  # a sweep has done it
        close_stale_runs()


def _equal_run(cfg: Any, tags: Mapping[str, str], earlier: Sequence[StoredRun]) -> StoredRun | None:
    """A result that a job of a sweep need not train again; for a single run it is only mentioned."""
    equal = [run for run in earlier if run.tags.get("fingerprint") == tags["fingerprint"]]
    done = next((run for run in equal if run.finished or run.diverged), None)
    if done and not cfg.tracking.job:
        _log.info("A finished run with the same result exists: %s (%s)", done.name, done.run_id)
    return done if cfg.tracking.job and not cfg.force else None


def _as_recorded(cfg: Any, run: StoredRun) -> RunResult:
    objective = run.metrics.get(f"best/{cfg.objective}")
    metrics = {name: value for name, value in run.metrics.items() if "/" in name}
    return RunResult(run.run_id, run.name, run.status, objective, metrics, {}, run.artifact_uri)


def _has_changed(cfg: Any, tags: Mapping[str, str], record: Run) -> bool:
    """Whether data or code are no longer those that a sweep has checked; its table would mix results."""
    changed = bool(cfg.tracking.job) and cfg.tracking.job.fingerprint != tags["fingerprint"]
    if changed:
        record.fail("the data or the code have changed since the sweep was started", {"reason": "changed"})
    return changed


def _resume_from(cfg: Any, tags: Mapping[str, str], earlier: Sequence[StoredRun], *, anew: bool) -> _Resume:
    """Finds the run and the checkpoint to resume from, and the runs that this one supersedes."""
    equal = [run for run in earlier if run.tags.get("fingerprint") == tags["fingerprint"]]
    broken = [run for run in equal if run.status != "FINISHED" and not run.diverged and "reproduces" not in run.tags]
    reproductions = {run.run_id for run in equal if "reproduces" in run.tags and run.status in ("FAILED", "KILLED")}
    if anew:
        return _Resume(None, None, [], sorted(reproductions))
    attempt, checkpoint = _resumable(broken if cfg.resume and not cfg.force else ())
    job = cfg.tracking.job
    same_job = [run for run in earlier if job and (run.parent, run.tags.get("job")) == (job.sweep, str(job.number))]
    over = {run.run_id for run in [*broken, *same_job] if run.status != "RUNNING" and "superseded" not in run.tags}
    itself = {attempt.run_id} if attempt else set()
    return _Resume(
        attempt=attempt,
        checkpoint=checkpoint,
        superseded=sorted(over - itself),
        outdated=sorted({run.run_id for run in broken} - itself | reproductions),
    )


def _resumable(runs: Sequence[StoredRun]) -> tuple[StoredRun, Checkpoint] | tuple[None, None]:
    """The first run that has an intact checkpoint, with the checkpoint."""
    for run in runs:
        if "superseded" not in run.tags and (checkpoint := checkpoints.newest(run_folder(run.run_id))):
            return run, checkpoint
    return None, None


def _opened(
    configuration: Configuration, tags: Mapping[str, str], resume: _Resume
) -> contextlib.AbstractContextManager[Run]:
    cfg = configuration.cfg
    job = cfg.tracking.job
    parent = job.sweep if job else None
    own: dict[str, object] = {"command": configuration.command}
    if "reproduces" in tags:
        own["command"] = f"experiments reproduce {tags['reproduces']}"
    if configuration.experiment:
        own["experiment"] = configuration.experiment
    if job and (resume.attempt is None or resume.attempt.parent == parent):  # or it has a place elsewhere
        own["job"] = job.number
    files = {"config.yaml": configuration.as_yaml, "environment.txt": environment()}
    if diff := uncommitted():
        files["git.diff"] = diff
    return open_run(
        experiment=str(cfg.tracking.experiment or configuration.choices["data"]),
        name=configuration.title,
        params=configuration.parameters,
        tags={**dict(cfg.tracking.tags), **own, **tags},
        files=files,
        parent=parent,
        attempt=resume.attempt.run_id if resume.attempt else None,
        superseded=resume.superseded,
        outdated=resume.outdated,
        patience=cfg.tracking.store_timeout,
    )


def _log_resuming(cfg: Any, checkpoint: Checkpoint | None) -> None:
    if checkpoint:
        _log.info("Resuming after epoch %d", checkpoint.epoch)
        if not cfg.deterministic:
            _log.info("With deterministic=false the result is not bit-identical to that of an uninterrupted run.")


def _tell_how_to_resume(cfg: Any, checkpoint: Checkpoint | None, reproduces: str | None) -> None:
    if reproduces or not (cfg.resume and checkpoint):
        _log.info("Interrupted. The same command starts again from the first epoch.")
    else:
        _log.info("Interrupted. Run the same command again to resume after epoch %d.", checkpoint.epoch)


def _warn_if_badly_scaled(scaling: keras.Layer, data: Dataset) -> None:
    scaled = np.abs(np.asarray(scaling(data.train_images[:256].astype("float32"))))
    largest = float(scaled.max())
    if not 0.01 <= largest <= 100:
        _log.warning(
            "The scaled inputs are %s: their largest absolute value is %.2g. Try scale=unit.",
            "tiny" if largest < 1 else "huge",
            largest,
        )


def _suggest_more_threads(cfg: Any) -> None:
    import psutil

    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count()
    if cfg.threads < 8 <= (cores or 1):
        _log.info("This machine has %d cores: threads=8 would be faster, but gives another result.", cores)


def _training_batches(cfg: Any, data: Dataset, parts: Components, after_epoch: int = 0) -> tf.data.Dataset:
    return training_batches(
        data.train_images,
        data.train_labels,
        data.num_classes,
        batch_size=cfg.batch_size,
        epochs=cfg.epochs,
        seed=cfg.seed,
        augmentation=parts.augmentation,
        after_epoch=after_epoch,
    )


# The training


def _fit(
    cfg: Any,
    data: Dataset,
    parts: Components,
    record: Run,
    stop: EpochFunction | None,
    checkpoint: Checkpoint | None,
    reproduces: str | None,
) -> TrainingResult:
    terminal = sys.stdout.isatty()
    trained = checkpoint.epoch if checkpoint else 0

    def on_epoch(epoch: int, metrics: Mapping[str, float]) -> bool:
        record.log_metrics(metrics, step=epoch)
        values = "  ".join(f"{name} {metrics[name]:.4f}" for name in epoch_metrics(cfg))
        # On a terminal the progress bar says the same; job.log has the line in any case.
        level = logging.DEBUG if terminal or epoch <= trained else logging.INFO
        _log.log(level, "Epoch %d/%d  %s  %.1f s", epoch, cfg.epochs, values, metrics["epoch_seconds"])
        stopped = stop is not None and stop(epoch, metrics) and epoch < cfg.epochs
        if stopped and reproduces:
            _log.info("Stopped after epoch %d, the last one of the original run", epoch)
        elif stopped:
            _log.info("Pruned after epoch %d", epoch)
            record.set_tags({"pruned": "true"})
        return stopped

    recipe = Recipe(
        epochs=cfg.epochs,
        batch_size=cfg.batch_size,
        optimizer=parts.optimizer,
        schedule=parts.schedule,
        loss=parts.loss,
        metrics=parts.metrics,
        callbacks=parts.callbacks,
        metric=cfg.objective,
        mode=parts.mode,
    )
    return fit(
        parts.model,
        _training_batches(cfg, data, parts, trained),
        (data.validation_images, data.validation_labels),
        recipe,
        num_images=len(data.train_images),
        on_epoch=on_epoch,
        progress_bar=terminal,
        folder=record.folder,
        checkpoint=checkpoint,
    )


def _diverged(record: Run, diverged: Diverged) -> RunResult:
    record.fail(str(diverged), {"diverged": "true", "diverged_epoch": diverged.epoch})
    return RunResult(record.id, record.name, "FAILED", None, {}, diverged.history, record.artifacts)
