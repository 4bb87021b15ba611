"""What a configuration may say: names, types, ranges and targets; the signature of a target is its schema."""

import importlib
import inspect
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from experiments.errors import ExperimentError

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
    "optimizer.learning_rate": Annotated[float, Field(gt=0)],
    "tracking.experiment": Annotated[str, Field(min_length=1, max_length=500)] | int | None,
    "tracking.note": _Scalar | None,
    "tracking.tags": dict[str, _Scalar],
    "tracking.model": bool,
    "tracking.parent": str | None,
    "tracking.job": int | None,
    "tracking.fingerprint": str | None,
    "tracking.trial": int | None,
    "tracking.patience": Annotated[float, Field(ge=0)],
    "force": bool,
    "resume": bool,
    "dry_run": bool,
}

#: What a sweep tells its jobs; nothing that a user sets.
OF_A_JOB = ("tracking.parent", "tracking.job", "tracking.fingerprint", "tracking.trial")

_KERAS_CLASS = re.compile(
    r"keras\.(layers|optimizers(\.schedules)?|callbacks|regularizers|initializers|constraints)\.[A-Z]\w*"
)
_OWN_FUNCTION = re.compile(r"experiments\.(data|models|schedules)\.[a-z]\w*")
#: Run code from strings, write to places of their own, need another backend, or do what the run itself does.
_REFUSED_CLASSES = {
    "Lambda", "RemoteMonitor", "CSVLogger", "TensorBoard", "ModelCheckpoint", "BackupAndRestore", "LambdaCallback",
    "OrbaxCheckpoint", "TFSMLayer", "JaxLayer", "FlaxLayer", "TorchModuleWrapper",
}  # fmt: skip


def check_run(values: Mapping[str, Any], options: Mapping[str, str]) -> None:
    """Holds a composed run to everything that can be told without building it.

    Args:
        values: plain values of the whole configuration.
        options: group -> choice.

    Raises:
        ExperimentError: a key that is unknown or missing, or a value that is refused.
    """
    _check_names(values)
    for key, annotation in _ROOT.items():
        value: Any = values
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                must_be = _in_words(TypeAdapter(annotation).json_schema())
                raise ExperimentError(f"{key} is missing: it must be {must_be}.")
            value = value[part]
        check_value(key, value, annotation)
    _check_mode("objective.mode", values["objective"]["mode"], "objective.metric", values["objective"]["metric"])
    _check_parts(values)
    _check_callbacks(values, options["schedule"])


def _check_names(values: Mapping[str, Any]) -> None:
    root = {*GROUPS, *(key.partition(".")[0] for key in _ROOT)}
    for key in values:
        if key not in root:
            unpacked = key == "experiment"
            advice = "A file in experiment/ begins with the line: # @package _global_" if unpacked else ""
            raise ExperimentError(f"{key}: there is no such key.", given=key, allowed=root, advice=advice)
    for section in ("objective", "tracking"):
        known = [key.partition(".")[2] for key in _ROOT if key.startswith(f"{section}.")]
        allowed = [name for name in known if f"{section}.{name}" not in OF_A_JOB]
        found = values.get(section)
        for key in found if isinstance(found, dict) else ():
            if key not in known:
                raise ExperimentError(f"{section}.{key}: there is no such key.", given=key, allowed=allowed)


def _check_parts(values: Mapping[str, Any]) -> None:
    """Whatever is to be built must say by what."""
    parts = {group: values.get(group) for group in GROUPS if group not in ("augment", "callbacks")}
    for group in ("augment", "callbacks"):
        several = values.get(group) or {}
        if not isinstance(several, dict):
            raise ExperimentError(f"{group}: it must be a mapping, with a name for each part.")
        parts |= {f"{group}.{name}": part for name, part in several.items()}
    for key, part in parts.items():
        if not isinstance(part, dict) or "_target_" not in part:
            raise ExperimentError(
                f"{key}._target_ is missing: it must name a class or a function, as in keras.layers.Dense."
            )


def _check_mode(key: str, mode: str, metric_key: str, metric: str) -> None:
    right = "min" if metric.endswith("loss") else "max"
    if mode != right:
        raise ExperimentError(
            f"{key}={mode} with {metric_key}={metric} would take the worst epoch for the best.",
            advice=f"Add {key}={right}.",
        )


def _check_callbacks(values: Mapping[str, Any], schedule: str) -> None:
    constant = values["schedule"]["_target_"] == "experiments.schedules.constant"
    for name, callback in (values.get("callbacks") or {}).items():
        key = f"callbacks.{name}"
        if "monitor" in callback:
            monitor = callback["monitor"]
            if monitor not in EPOCH_METRICS:
                raise ExperimentError(
                    f"{key}.monitor={monitor}: no epoch measures it.", given=str(monitor), allowed=EPOCH_METRICS
                )
            if callback.get("mode", "auto") != "auto":
                _check_mode(f"{key}.mode", callback["mode"], f"{key}.monitor", monitor)
        if callback["_target_"] == "keras.callbacks.SwapEMAWeights" and callback.get("swap_on_epoch") is not True:
            raise ExperimentError(
                f"{key}.swap_on_epoch must be true: the run would keep other weights than the validated ones."
            )
        if callback["_target_"] == "keras.callbacks.ReduceLROnPlateau" and not constant:
            raise ExperimentError(
                f"{key} sets the learning rate, and so does schedule={schedule}.",
                advice=f"Take schedule=constant or leave {name} out of callbacks.",
            )


def check_targets(node: Any, key: str = "") -> None:
    """Holds every `_target_` in `node` to the rule, before anything is imported.

    Args:
        node: plain values.
        key: the dotted key of `node`; under `hydra` only Hydra's own classes and plugins are allowed.

    Raises:
        ExperimentError: a target that a configuration may not call.
    """
    for path, mapping in mappings(node, key):
        target = mapping.get("_target_", "")
        allowed = _is_target
        if key == "hydra":
            allowed = _is_search_target if path.startswith("hydra.sweeper.") else _is_hydra_target
        if "_target_" in mapping and not (isinstance(target, str) and allowed(target)):
            raise _refused_target(f"{path}._target_={'null' if target is None else target}", target, key)
        # By Keras's own serialised form, a part inside a layer could be any class.
        if "class_name" in mapping and key != "hydra":
            raise ExperimentError(
                f"{path}.class_name={mapping['class_name']} is refused.",
                advice="Name the class by _target_, as in {_target_: keras.regularizers.L2, l2: 0.01}.",
            )


def _is_target(target: str) -> bool:
    if _KERAS_CLASS.fullmatch(target) and target.rpartition(".")[2] not in _REFUSED_CLASSES:
        return True
    by_user = any(target == prefix or target.startswith(f"{prefix}.") for prefix in _allowed_by_user())
    return (by_user and "." in target) or _OWN_FUNCTION.fullmatch(target) is not None


def _allowed_by_user() -> list[str]:
    prefixes = os.environ.get("EXPERIMENTS_ALLOW_TARGETS", "").split(",")
    return [prefix.strip().rstrip(".") for prefix in prefixes if prefix.strip()]


def _is_hydra_target(target: str) -> bool:
    return target.startswith(("hydra.", "hydra_plugins."))


def _is_search_target(target: str) -> bool:
    return _is_hydra_target(target) or target.startswith(("optuna.samplers.", "optuna.pruners."))


def _refused_target(what: str, target: Any, key: str) -> ExperimentError:
    if key == "hydra":
        return ExperimentError(f"{what} is refused.", advice="Under hydra only hydra.* and hydra_plugins.* may stand.")
    if not isinstance(target, str) or "." not in target:
        return ExperimentError(f"{what} is refused: it must name a class or a function, as in keras.layers.Dense.")
    return ExperimentError(
        f"{what} is refused: a configuration may not call it.",
        advice="It may call the public classes of keras.layers, .optimizers, .callbacks, .regularizers, .initializers "
        "and .constraints that run no foreign code, the functions of experiments.data, .models and .schedules, and "
        f"what you trust yourself: export EXPERIMENTS_ALLOW_TARGETS={','.join([*_allowed_by_user(), target])}",
    )


def locate(key: str, target: str) -> Callable[..., Any]:
    """The class or function that `target` names.

    Raises:
        ExperimentError: there is none.
    """
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ExperimentError(
            f"{key}._target_={target}: Python finds no module {error.name}.",
            advice="Put the folder that holds it on PYTHONPATH.",
        ) from error
    found = getattr(module, name, None)
    imported = target.startswith("experiments.") and getattr(found, "__module__", None) != module_name
    if not callable(found) or imported:
        public = [name for name in dir(module) if not name.startswith("_") and _is_target(f"{module_name}.{name}")]
        own = [name for name in public if getattr(getattr(module, name), "__module__", None) == module_name]
        names = own if target.startswith("experiments.") else public
        raise ExperimentError(f"{key}._target_={target}: {module_name} has no {name}.", given=name, allowed=names)
    return found


def check_arguments(key: str, node: Mapping[str, Any], run_values: Mapping[str, Any]) -> None:
    """Holds the arguments in `node` to the signature of its target: names, and for our own functions types and ranges.

    Args:
        key: the dotted key of `node`.
        node: plain values with `_target_`.
        run_values: what the run passes beside them.

    Raises:
        ExperimentError: an unknown or missing argument, or a value that is refused.
    """
    name = node["_target_"]
    target = locate(key, name)
    given = {argument: value for argument, value in node.items() if not re.fullmatch(r"_.*_", argument)}
    known = _argument_names(target)
    for argument in given:
        if known and argument not in known:
            raise ExperimentError(
                f"{key}.{argument}: {name} has no such argument.", given=argument, allowed=known - set(run_values)
            )
    for argument, parameter in inspect.signature(target).parameters.items():
        required = parameter.default is parameter.empty and parameter.kind not in _VARIABLE
        if required and argument not in {*given, *run_values}:
            raise ExperimentError(f"{key}.{argument} is missing: {name} needs it.")
        if argument not in given:
            continue
        if name.startswith("experiments."):
            check_value(f"{key}.{argument}", given[argument], parameter.annotation)
        elif name.startswith("keras.") and isinstance(given[argument], str):
            _check_text(f"{key}.{argument}", given[argument], parameter.default)


def _check_text(key: str, value: str, default: Any) -> None:
    """Refuses a text where Keras's default is a number: many a class takes it, and fails on it in the training."""
    if isinstance(default, bool | int | float):
        raise _refused_value(key, value, "true or false" if isinstance(default, bool) else "a number")


_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _argument_names(target: Callable[..., Any]) -> set[str]:
    """The names that `target` takes, empty for any; a class of Keras passes **kwargs on to its bases."""
    if inspect.isclass(target):
        constructors = [vars(base)["__init__"] for base in inspect.getmro(target)[:-1] if "__init__" in vars(base)]
        return {name for constructor in constructors for name in _named(constructor)} - {"self"}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(target).parameters.values())
    return set() if takes_any else _named(target)


def _named(function: Callable[..., Any]) -> set[str]:
    return {p.name for p in inspect.signature(function).parameters.values() if p.kind not in _VARIABLE}


def check_value(key: str, value: Any, annotation: Any) -> None:
    """Holds a value to a type annotation and its bounds.

    Raises:
        ExperimentError: says what is allowed, in words.
    """
    adapter = TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError as error:
        schema = adapter.json_schema()
        if "enum" not in schema:
            raise _refused_value(key, value, _in_words(schema)) from error
        raise ExperimentError(f"{_shown(key, value)} is refused.", given=str(value), allowed=schema["enum"]) from error


def _refused_value(key: str, value: Any, must_be: str) -> ExperimentError:
    return ExperimentError(f"{_shown(key, value)} is refused: it must be {must_be}.")


def _shown(key: str, value: Any) -> str:
    """The value as it was typed."""
    return f"{key}={value if isinstance(value, str | float) else json.dumps(value)}"


_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "string": "a text",
    "boolean": "true or false",
    "null": "null",
    "object": "a mapping of names to plain values",
}
_BOUNDS = {"minimum": "of at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def _in_words(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        options = [_in_words(option) for option in schema["anyOf"]]
        options = [option for option in options if option != _TYPES["integer"] or _TYPES["number"] not in options]
        return " or ".join(part for part in (", ".join(options[:-1]), options[-1]) if part)
    if "enum" in schema:
        return " or ".join(schema["enum"])
    if schema["type"] == "array":
        size = schema.get("minItems", 0)
        exact = size and size == schema.get("maxItems")
        kind = f"a list of {size} entries" if exact else "a non-empty list" if size else "a list"
        return kind + (f", each entry {_in_words(schema['items'])}" if schema.get("items") else "")
    bounds = " and ".join(f"{words} {schema[bound]:.10g}" for bound, words in _BOUNDS.items() if bound in schema)
    return f"{_TYPES[schema['type']]} {bounds}".strip()


def mappings(node: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping inside `node`, with its dotted key."""
    if isinstance(node, dict):
        yield key, node
        for name, value in node.items():
            yield from mappings(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for position, value in enumerate(node):
            yield from mappings(value, f"{key}[{position}]")
