"""The study of a search: Optuna's journal file, and what a job asks it at the end of each epoch."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hydra.utils
import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.pruners import NopPruner
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial

from experiments.errors import ExperimentError
from experiments.tracking.store import home

_NAME = "study"  # each journal holds one
optuna.logging.set_verbosity(optuna.logging.WARNING)


def journal(parent: str) -> Path:
    """The file of the study that belongs to a parent run."""
    return home() / "mlruns" / "studies" / f"{parent}.journal"


def open_storage(file: Path) -> JournalStorage:
    """The storage in a journal file, which is created if necessary."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(file)))


def open_study(
    storage: JournalStorage,
    mode: str,
    sampler: Mapping[str, Any],
    pruner: Mapping[str, Any],
    identity: Mapping[str, Any],
) -> optuna.Study:
    """The study in a storage, which is created if necessary.

    Args:
        storage: of one study.
        mode: `max` or `min`.
        sampler: its configuration.
        pruner: its configuration.
        identity: what makes it the same as or another than an earlier one.
    """
    study = optuna.create_study(
        storage=storage,
        study_name=_NAME,
        direction="maximize" if mode == "max" else "minimize",
        pruner=instantiate("pruner", pruner),
        load_if_exists=True,
    )
    study.set_user_attr("identity", dict(identity))
    seed = sampler.get("seed")
    # With the same seed, a study that is resumed would draw the same trials once more.
    more = {"seed": seed + len(study.trials)} if seed is not None else {}
    study.sampler = instantiate("sampler", sampler, **more)
    return study


def load_study(file: Path) -> optuna.Study | None:
    """The study in a journal file; None if there is no such file.

    Raises:
        ExperimentError: the file is corrupt.
    """
    if not file.exists():
        return None
    try:
        return optuna.load_study(study_name=_NAME, storage=open_storage(file))
    except Exception as error:  # whatever a corrupt line makes Optuna raise
        raise ExperimentError(
            f"The study in {file} cannot be read: {type(error).__name__}: {error}.",
            advice="Move the file away to begin the search anew; its finished runs are taken over.",
        ) from error


def running_trial(study: optuna.Study, storage: JournalStorage, number: int) -> Trial:
    """A trial that another process has asked for.

    Args:
        study: that it belongs to.
        storage: of the study.
        number: of the trial.
    """
    study_id = storage.get_study_id_from_name(study.study_name)
    return Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, number))


def importances(study: optuna.Study) -> dict[str, float]:
    """The share of each parameter in what makes the best tenth of the trials good, the largest first; they sum to 1.

    PED-ANOVA: Watanabe, Bansal and Hutter, IJCAI 2023, https://arxiv.org/abs/2304.10255.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.importance.get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The differences between the identities of two studies, in words."""
    found = [f"other {what}" for what in ("data", "code") if old[what] != new[what]]
    for part in ("space", "parameters"):
        for key in sorted({*old[part], *new[part]}):
            if old[part].get(key) != new[part].get(key):
                found.append(f"{key}: {old[part].get(key, 'not there')} is now {new[part].get(key, 'not there')}")
    return found or ["an option that is chosen from says something else"]


def instantiate(key: str, node: Mapping[str, Any], **more: Any) -> Any:
    """Creates the sampler or pruner that a configuration describes.

    Raises:
        ExperimentError: Optuna refuses it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return hydra.utils.instantiate(node, **more)
    except Exception as error:
        raise ExperimentError(f"hydra.sweeper.{key}: {error.__cause__ or error}") from error


def pruning_check(
    parent: str, number: int, pruner: Mapping[str, Any], metric: str
) -> Callable[[int, Mapping[str, float]], bool]:
    """The function that a job calls at the end of each epoch: whether its trial is to be pruned.

    Args:
        parent: id of the study's run.
        number: of the trial.
        pruner: its configuration.
        metric: the objective.
    """
    method = instantiate("pruner", pruner)
    file = journal(parent)
    if isinstance(method, NopPruner) or not file.exists():
        return lambda epoch, metrics: False
    storage = open_storage(file)
    study = optuna.load_study(study_name=_NAME, storage=storage, pruner=method)
    trial = running_trial(study, storage, number)

    def should_prune(epoch: int, metrics: Mapping[str, float]) -> bool:
        trial.report(metrics[metric], epoch)
        return trial.should_prune()

    return should_prune
