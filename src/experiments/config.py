"""Compose, check, identify and instantiate a configuration; knows neither Keras nor MLflow."""

import hashlib
import importlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import hydra.utils
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field

from experiments import schema
from experiments.errors import ExperimentError, did_you_mean

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parents[1]
#: The checkout that this package is imported from; None for an installed package.
CHECKOUT = _CHECKOUT if (_CHECKOUT / "conf" / "config.yaml").exists() else None
#: The options of this package: the checkout's, for a wheel its own copy.
CONF_DIR = (CHECKOUT or _PACKAGE) / "conf"

#: The groups that make a run, each with exactly one option, but `callbacks` with any number.
GROUPS = ("data", "scale", "augment", "model", "optimizer", "schedule", "callbacks")
#: What an epoch measures, and so what a callback may monitor.
EPOCH_METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")

_Count = Annotated[int, Field(ge=1)]
_Scalar = str | int | float | bool
#: Every key outside the groups, and the one key inside them that the run itself reads.
_ROOT: dict[str, Any] = {
    "epochs": _Count,
    "batch_size": _Count,
    "label_smoothing": Annotated[float, Field(ge=0, lt=1)],
    "precision": Literal["float32", "mixed_float16", "mixed_bfloat16"],
    "seed": Annotated[int, Field(ge=0, lt=2**32)],
    "threads": _Count,
    "deterministic": bool,
    "objective.metric": Literal["val_accuracy", "val_loss"],
    "objective.mode": Literal["max", "min"],
    "optimizer.learning_rate": Annotated[float, Field(gt=0, allow_inf_nan=False)],
    "tracking.experiment": _Scalar | None,
    "tracking.note": _Scalar | None,
    "tracking.tags": dict[str, _Scalar],
    "tracking.model": bool,
}
_FREE = "tracking.tags."
_MISSING = object()


@dataclass(frozen=True)
class Configuration:
    """One run as it was asked for: the composed values and the words that composed them."""

    cfg: DictConfig
    overrides: tuple[str, ...]
    experiment: str | None  # choice of the group `experiment`
    options: Mapping[str, str]  # group -> choice, callbacks left out
    config_dir: str | None = None

    @cached_property
    def choices(self) -> dict[str, str]:
        """The choice of every group; `callbacks` are their sorted names in Hydra's list grammar."""
        callbacks = ",".join(sorted(self.cfg.get("callbacks") or {}))
        return {**self.options, "callbacks": f"[{callbacks}]"}

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that can change a result, seed included: no tracking, no path of a data set."""
        values = _container(self.cfg)
        values["data"] = {key: value for key, value in values["data"].items() if not key.endswith("path")}
        return {key: value for key, value in values.items() if key != "tracking"}

    @property
    def variant(self) -> str:
        """Hash of the identity without the seed: runs that differ in nothing but chance share it."""
        return digest({key: value for key, value in self.identity.items() if key != "seed"})[:16]

    def fingerprint(self, data_sha256: str, code_sha256: str) -> str:
        """Hash of all that decides the numbers: equal fingerprints mean equal results on one kind of processor."""
        return digest([self.variant, self.cfg.seed, data_sha256, code_sha256])[:16]

    @property
    def parameters(self) -> dict[str, str]:
        """Every choice and every identity key, dotted, as text: what a run is filtered and compared by."""
        return self.choices | {
            key: value if isinstance(value, str) else json.dumps(value) for key, value in _leaves(self.identity)
        }

    @property
    def title(self) -> str:
        """Model, what the user changed, seed: at most 80 characters."""
        told = ("model=", "seed=", "tracking.", "+tracking.", "hydra.", "data.path=", "data.test_path=")
        changed = [override for override in self.overrides if not override.startswith(told)]
        seed = f" seed={self.cfg.seed}"
        head = " ".join([self.choices["model"], *changed])
        room = 80 - len(seed)
        return (head if len(head) <= room else head[: room - 1] + "…") + seed


def digest(values: Any) -> str:
    """The SHA-256 of `values` in canonical JSON, in hex."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def compose(overrides: Sequence[str], config_dir: str | None = None) -> Configuration:
    """Composes and checks one run.

    Args:
        overrides: as on the command line, such as `model=conv3`.
        config_dir: a folder with more options, laid out like `conf/`.

    Raises:
        ExperimentError: an override or a value that cannot work.
    """
    search = []
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise ExperimentError(f"--config-dir {config_dir}: no such folder.")
        search = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"]
    _check_additions(overrides, config_dir)
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR), job_name="experiments"):
            cfg = hydra_compose("config", overrides=[*search, *overrides], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _explain(error, overrides, config_dir) from error
    schema.check_targets(OmegaConf.to_container(cfg.hydra), "hydra")
    choices = cfg.hydra.runtime.choices
    without_hydra = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    return _checked(without_hydra, choices, overrides, config_dir)


def current_job(cfg: DictConfig, config_dir: str | None) -> Configuration:
    """The job that Hydra is running, checked (for the task function of `hydra.main`)."""
    job = HydraConfig.get()
    _check_additions(job.overrides.task, config_dir)
    return _checked(cfg, job.runtime.choices, job.overrides.task, config_dir)


def _checked(
    cfg: DictConfig, choices: Mapping[str, str], overrides: Sequence[str], config_dir: str | None
) -> Configuration:
    options = {group: str(choices[group]) for group in GROUPS if group in choices}
    configuration = Configuration(cfg, tuple(overrides), choices.get("experiment"), options, config_dir)
    values = _container(cfg)
    schema.check_targets(values)
    _check_root(values)
    _check_callbacks(values)
    return configuration


# What the user typed


def parse(overrides: Sequence[str]) -> list[Override]:
    """The overrides by Hydra's grammar.

    Raises:
        ExperimentError: one that breaks the grammar.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        culprit = getattr(error, "override", None) or " ".join(overrides)
        raise _no_override(culprit) from error
    for text, override in zip(overrides, parsed, strict=True):
        if not override.key_or_group:
            raise _no_override(text)
    return parsed


def _no_override(text: str) -> ExperimentError:
    return ExperimentError(
        f"{text}: this is no override.", advice="Write key=value; quote a value with special characters."
    )


def _explain(error: Exception, overrides: Sequence[str], config_dir: str | None) -> ExperimentError:
    """Hydra's or OmegaConf's complaint in one short message with the nearest name."""
    first_line = str(error).splitlines()[0]
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        folders = [CONF_DIR / group, *([Path(config_dir) / group] if config_dir else [])]
        names = error.options or [file.stem for folder in folders for file in folder.glob("*.yaml")]
        return ExperimentError(f"{group}={option}: there is no such option.", given=option, allowed=names)
    if unknown := re.match(r"Could not (?:override|delete) '(.+?)'", first_line):
        key = unknown[1]
        advice = f"A free tag is added with +{key}=…" if key.startswith(_FREE) else ""
        return _unknown_key(key, compose(_choices_alone(overrides), config_dir).cfg, advice)
    if "--multirun" in str(error):
        return ExperimentError(
            f"{' '.join(overrides)}: this is a sweep of several runs.", advice="Start it with: experiments train -m …"
        )
    return ExperimentError(first_line)


def _choices_alone(overrides: Sequence[str]) -> list[str]:
    return [override for override in overrides if override.partition("=")[0] in (*GROUPS, "experiment")]


def _unknown_key(key: str, cfg: DictConfig, advice: str = "") -> ExperimentError:
    """Names the nearest key anywhere, and the keys that stand beside the unknown one."""
    keys = [name for name, _ in _leaves(_container(cfg))]
    prefixes = {".".join(name.split(".")[:depth]) for name in keys for depth in range(1, name.count(".") + 2)}
    known = {name for name in prefixes | set(GROUPS) | {"experiment"} if name != key and not name.startswith(f"{key}.")}
    parent = key.rpartition(".")[0]
    beside = {name for name in known if name.rpartition(".")[0] == parent}
    problem = f"{key}: there is no such key. {did_you_mean(key, known)}".strip()
    return ExperimentError(problem, allowed=beside, advice=advice)


def _check_additions(overrides: Sequence[str], config_dir: str | None) -> None:
    """Refuses `+key=…`, by which Hydra would take any misspelt key; `++key=…` may change a key that is there."""
    for text, override in zip(overrides, parse(overrides), strict=True):
        key = override.key_or_group
        if not (override.is_add() or override.is_force_add()) or key.startswith(_FREE):
            continue
        known = compose(_choices_alone(overrides), config_dir).cfg
        if key not in (*GROUPS, "experiment") and OmegaConf.select(known, key, default=_MISSING) is _MISSING:
            raise _unknown_key(
                key, known, f"Only {_FREE}* may be added with +; every other key is changed by key=value."
            )
        if override.is_add():
            raise ExperimentError(f"{text}: {key} is there already.", advice=f"Write it without +: {text.lstrip('+')}")


# What the values must be


def _check_root(values: dict[str, Any]) -> None:
    known = {*GROUPS, *(key.partition(".")[0] for key in _ROOT)}
    for key in values:
        if key not in known:
            raise ExperimentError(f"{key}: there is no such key.", given=key, allowed=known)
    for section in ("objective", "tracking"):
        allowed = [key.partition(".")[2] for key in _ROOT if key.startswith(f"{section}.")]
        for key in values.get(section) or {}:
            if key not in allowed:
                raise ExperimentError(f"{section}.{key}: there is no such key.", given=key, allowed=allowed)
    for key, annotation in _ROOT.items():
        value: Any = values
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise ExperimentError(f"{key} is missing.", advice=f"It must be {schema.in_words(annotation)}.")
            value = value[part]
        schema.check_value(key, value, annotation)
    metric, mode = values["objective"]["metric"], values["objective"]["mode"]
    right = "min" if metric.endswith("loss") else "max"
    if mode != right:
        raise ExperimentError(
            f"objective.mode={mode} with objective.metric={metric} would keep the worst epoch.",
            advice=f"Add objective.mode={right}.",
        )


def _check_callbacks(values: dict[str, Any]) -> None:
    for name, callback in (values.get("callbacks") or {}).items():
        monitor = callback.get("monitor", EPOCH_METRICS[0])
        if monitor not in EPOCH_METRICS:
            raise ExperimentError(
                f"callbacks.{name}.monitor={monitor}: no epoch measures it.", given=str(monitor), allowed=EPOCH_METRICS
            )
        schedule = values["schedule"]["_target_"]
        if callback.get("_target_") == "keras.callbacks.ReduceLROnPlateau" and not schedule.endswith(".constant"):
            raise ExperimentError(
                f"callbacks.{name} sets the learning rate, and so does schedule ({schedule}).",
                advice=f"Take schedule=constant or leave {name} out of callbacks.",
            )


# Building what the configuration describes


def instantiate(cfg: DictConfig, key: str, **run_values: Any) -> Any:
    """What `cfg[key]` describes, built.

    Args:
        cfg: the whole configuration.
        key: a key whose value is a mapping with `_target_`, such as `model` or `callbacks.early_stopping`.
        **run_values: what only the run knows; those that the target has a parameter for are passed to it.

    Raises:
        ExperimentError: an unknown or missing parameter, a value of the wrong type or range, or what a class of Keras
            refuses.
    """
    node = OmegaConf.select(cfg, key)
    for path, mapping in schema.mappings(_container(node), key):
        if "_target_" in mapping:
            schema.check_arguments(path, mapping, run_values if path == key else {})
    target = node["_target_"]
    named = inspect.signature(schema.locate(key, target)).parameters
    try:
        build = hydra.utils.instantiate(node, _partial_=True, _convert_="all")
        return build(**{name: value for name, value in run_values.items() if name in named})
    except InstantiationException as error:  # of a part inside the node
        part = re.search(r"full_key: (\S+)", str(error))
        raise ExperimentError(f"{part[1] if part else key}: {error.__cause__ or error}") from error
    except (TypeError, ValueError) as error:
        if not target.startswith("keras."):
            raise
        raise ExperimentError(f"{key}: {target} refuses it: {error}") from error


# Reading values


def _container(cfg: DictConfig) -> Any:
    try:
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ExperimentError(str(error).splitlines()[0]) from error


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; lists are values, and so are empty mappings."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# Code as a part of the identity

_RESULT_MODULES = ("train", "data", "models", "schedules", "training", "evaluation")


def read_own_code() -> str:
    """Digest of this package's sources that can change a number, and of the versions of TensorFlow and Keras."""
    sources = [(_PACKAGE / f"{module}.py").read_text() for module in _RESULT_MODULES]
    return digest([*sources, version("tensorflow"), version("keras")])


def code_sha256(own_code: str, cfg: DictConfig) -> str:
    """`own_code` and the source of every module of the user that a `_target_` names."""
    nodes = [node for _, node in schema.mappings(_container(cfg), "") if "_target_" in node]
    modules = {node["_target_"].rpartition(".")[0] for node in nodes}
    foreign = sorted(module for module in modules if not module.startswith(("keras.", "experiments.")))
    sources = [Path(str(importlib.import_module(name).__file__)).read_text() for name in foreign]
    return digest([own_code, *sources]) if sources else own_code
