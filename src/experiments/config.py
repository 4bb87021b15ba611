"""Compose, check, identify and instantiate a configuration; knows neither Keras nor MLflow."""

import hashlib
import importlib
import inspect
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from pydantic import Field, TypeAdapter, ValidationError

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
        return {group: self.options[group] for group in GROUPS if group != "callbacks"} | {"callbacks": f"[{callbacks}]"}

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
    parse(overrides)
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR), job_name="experiments"):
            cfg = hydra_compose("config", overrides=[*search, *overrides], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _explain(error, overrides, config_dir) from error
    _check_targets(OmegaConf.to_container(cfg.hydra), "hydra", _is_hydra_target, "hydra. and hydra_plugins.")
    choices = cfg.hydra.runtime.choices
    with_hydra_left_out = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    return _checked(with_hydra_left_out, choices, overrides, config_dir)


def current_job(cfg: DictConfig, config_dir: str | None) -> Configuration:
    """The job that Hydra is running, checked (for the task function of `hydra.main`)."""
    job = HydraConfig.get()
    return _checked(cfg, job.runtime.choices, job.overrides.task, config_dir)


def _checked(
    cfg: DictConfig, choices: Mapping[str, str], overrides: Sequence[str], config_dir: str | None
) -> Configuration:
    options = {group: str(choice) for group, choice in choices.items() if group in GROUPS}
    configuration = Configuration(cfg, tuple(overrides), choices.get("experiment"), options, config_dir)
    _check_additions(cfg, overrides)
    values = _container(cfg)
    _check_targets(values, "", _is_target, "see the names in conf/")
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
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        culprit = getattr(error, "override", None) or " ".join(overrides)
        raise ExperimentError(
            f"{culprit}: this is no override.", advice="Write key=value; quote a value with special characters."
        ) from error


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
    keys = [name for name, _ in _leaves(OmegaConf.to_container(cfg))]
    prefixes = {".".join(name.split(".")[:depth]) for name in keys for depth in range(1, name.count(".") + 2)}
    known = {name for name in prefixes | set(GROUPS) | {"experiment"} if name != key and not name.startswith(f"{key}.")}
    parent = key.rpartition(".")[0]
    beside = {name for name in known if name.rpartition(".")[0] == parent}
    problem = f"{key}: there is no such key. {did_you_mean(key, known)}".strip()
    return ExperimentError(problem, allowed=beside, advice=advice)


def _check_additions(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Refuses `+key=…`, by which Hydra would take any misspelt key."""
    for override in parse(overrides):
        added = override.is_add() or override.is_force_add()
        if added and not override.key_or_group.startswith(_FREE):
            advice = f"Only {_FREE}* may be added with +; every other key is changed by key=value."
            raise _unknown_key(override.key_or_group, cfg, advice)


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
                raise ExperimentError(f"{key} is missing.", advice=f"It must be {_describe(annotation)}.")
            value = value[part]
        _check_value(key, value, annotation)
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


def _check_value(key: str, value: Any, annotation: Any) -> None:
    try:
        TypeAdapter(annotation).validate_python(value, strict=True)
    except ValidationError as error:
        choices = TypeAdapter(annotation).json_schema().get("enum", ())
        raise ExperimentError(
            f"{key}={_as_typed(value)} is refused: it must be {_describe(annotation)}.",
            given=str(value),
            allowed=choices,
        ) from error


def _as_typed(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _describe(annotation: Any) -> str:
    """The values that `annotation` allows, in words."""

    def words(schema: Mapping[str, Any]) -> str:
        if "anyOf" in schema:
            return " or ".join(words(option) for option in schema["anyOf"])
        if "enum" in schema:
            return "one of the allowed names"
        if schema["type"] == "array":
            least = "non-empty " if schema.get("minItems") else ""
            items = f", each {words(schema['items'])}" if schema.get("items") else ""
            return f"a {least}list{items}"
        bounds = [
            f"{word} {schema[bound]:g}"
            for bound, word in (
                ("minimum", "at least"),
                ("exclusiveMinimum", "above"),
                ("maximum", "at most"),
                ("exclusiveMaximum", "below"),
            )
            if bound in schema
        ]
        name = {
            "integer": "a whole number",
            "number": "a number",
            "string": "text",
            "boolean": "true or false",
            "null": "null",
            "object": "a mapping of names to plain values",
        }[schema["type"]]
        return f"{name} {' and '.join(bounds)}".strip()

    return words(TypeAdapter(annotation).json_schema())


# What a configuration may call

_KERAS_CLASS = re.compile(
    r"keras\.(layers|optimizers(\.schedules)?|callbacks|regularizers|initializers|constraints)\.[A-Z]\w*"
)
_OWN_FUNCTION = re.compile(r"experiments\.(data|models|schedules)\.[a-z]\w*")
#: Run code from strings, write to places of their own, need another backend, or do what the run itself does.
_REFUSED_CLASSES = {
    "Lambda", "RemoteMonitor", "CSVLogger", "TensorBoard", "ModelCheckpoint", "BackupAndRestore", "LambdaCallback",
    "OrbaxCheckpoint", "TFSMLayer", "JaxLayer", "FlaxLayer", "TorchModuleWrapper",
}  # fmt: skip


def _is_target(target: str) -> bool:
    if _KERAS_CLASS.fullmatch(target):
        return target.rpartition(".")[2] not in _REFUSED_CLASSES
    allowed = [prefix.strip().rstrip(".") for prefix in os.environ.get("EXPERIMENTS_ALLOW_TARGETS", "").split(",")]
    by_user = any(target == prefix or target.startswith(f"{prefix}.") for prefix in allowed if prefix)
    return by_user or _OWN_FUNCTION.fullmatch(target) is not None


def _is_hydra_target(target: str) -> bool:
    return target.startswith(("hydra.", "hydra_plugins."))


def _check_targets(node: Any, key: str, is_allowed: Callable[[str], bool], allowed: str) -> None:
    """Holds every `_target_` in `node` to the rule before anything is imported."""
    for path, mapping in _mappings(node, key):
        # A mapping with class_name is Keras's own serialised form, by which a layer inside a layer could be anything.
        for name in ("_target_", "class_name"):
            target = mapping.get(name)
            if target is None or (name == "_target_" and isinstance(target, str) and is_allowed(target)):
                continue
            where = f"{path}.{name}" if path else name
            advice = f"Allowed are {allowed}."
            if is_allowed is _is_target:
                module = str(target).rpartition(".")[0] or target
                advice = (
                    "Allowed are the public classes of keras.layers, .optimizers, .callbacks, .regularizers, "
                    ".initializers and .constraints that run no code of their own, the functions of "
                    f"experiments.data, .models and .schedules, and yours: export EXPERIMENTS_ALLOW_TARGETS={module}"
                )
            raise ExperimentError(f"{where}={target} is refused: a configuration may not call it.", advice=advice)


def _mappings(node: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping inside `node`, with its dotted path."""
    if isinstance(node, dict):
        yield key, node
        for name, value in node.items():
            yield from _mappings(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for position, value in enumerate(node):
            yield from _mappings(value, f"{key}[{position}]")


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
    for path, mapping in _mappings(_container(node), key):
        if "_target_" in mapping:
            _check_arguments(path, mapping, run_values if path == key else {})
    target = node["_target_"]
    named = inspect.signature(_locate(key, target)).parameters
    try:
        build = hydra.utils.instantiate(node, _partial_=True, _convert_="all")
        return build(**{name: value for name, value in run_values.items() if name in named})
    except InstantiationException as error:
        raise ExperimentError(f"{key}: {str(error.__cause__ or error).splitlines()[0]}") from error
    except (TypeError, ValueError) as error:
        if not target.startswith("keras."):
            raise
        raise ExperimentError(f"{key}: {target} refuses it: {error}") from error


def _locate(key: str, target: str) -> Callable[..., Any]:
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ExperimentError(
            f"{key}._target_={target}: Python finds no module {error.name}.",
            advice="Put the folder that holds it on PYTHONPATH.",
        ) from error
    found = getattr(module, name, None)
    own = not target.startswith("experiments.") or getattr(found, "__module__", None) == module_name
    if not callable(found) or not own:
        names = [name for name in dir(module) if not name.startswith("_") and _is_target(f"{module_name}.{name}")]
        raise ExperimentError(f"{key}._target_={target}: {module_name} has no {name}.", given=name, allowed=names)
    return found


def _check_arguments(path: str, node: dict[str, Any], run_values: Mapping[str, Any]) -> None:
    target = _locate(path, node["_target_"])
    signature = inspect.signature(target)
    known = _parameters(target)
    given = {name: value for name, value in node.items() if not (name.startswith("_") and name.endswith("_"))}
    for name in given:
        if known is not None and name not in known:
            raise ExperimentError(
                f"{path}.{name}: {node['_target_']} has no such parameter.",
                given=name,
                allowed=[name for name in known if name not in run_values],
            )
    for name, parameter in signature.parameters.items():
        keyword = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if keyword and parameter.default is parameter.empty and name not in {*given, *run_values}:
            raise ExperimentError(f"{path}.{name} is missing: {node['_target_']} needs it.")
        if name in given and node["_target_"].startswith("experiments."):
            _check_value(f"{path}.{name}", given[name], parameter.annotation)


def _parameters(target: Callable[..., Any]) -> set[str] | None:
    """The names that `target` takes; a class of Keras passes **kwargs on to its bases. None: any."""
    callables = [base.__init__ for base in inspect.getmro(target)[:-1]] if inspect.isclass(target) else [target]
    names: set[str] = set()
    for function in callables:
        parameters = inspect.signature(function).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(target).parameters.values())
    return None if takes_any and not inspect.isclass(target) else names


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
    targets = {node["_target_"].rpartition(".")[0] for _, node in _mappings(_container(cfg), "") if "_target_" in node}
    foreign = sorted(name for name in targets if not name.startswith(("keras.", "experiments.")))
    sources = [Path(str(importlib.import_module(name).__file__)).read_text() for name in foreign]
    return digest([own_code, *sources]) if sources else own_code
