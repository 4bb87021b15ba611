"""What a configuration may say: names, types, ranges and targets; the signature of a target is its schema."""

import importlib
import inspect
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from experiments.errors import ExperimentError

_KERAS_CLASS = re.compile(
    r"keras\.(layers|optimizers(\.schedules)?|callbacks|regularizers|initializers|constraints)\.[A-Z]\w*"
)
_OWN_FUNCTION = re.compile(r"experiments\.(data|models|schedules)\.[a-z]\w*")
#: Run code from strings, write to places of their own, need another backend, or do what the run itself does.
_REFUSED_CLASSES = {
    "Lambda", "RemoteMonitor", "CSVLogger", "TensorBoard", "ModelCheckpoint", "BackupAndRestore", "LambdaCallback",
    "OrbaxCheckpoint", "TFSMLayer", "JaxLayer", "FlaxLayer", "TorchModuleWrapper",
}  # fmt: skip


def check_targets(node: Any, key: str = "") -> None:
    """Holds every `_target_` in `node` to the rule, before anything is imported.

    Args:
        node: plain values.
        key: the dotted key of `node`; under `hydra` only Hydra's own classes and plugins are allowed.

    Raises:
        ExperimentError: a target that a configuration may not call.
    """
    for path, mapping in mappings(node, key):
        target = mapping.get("_target_")
        allowed = _is_hydra_target if key == "hydra" else _is_target
        if target is not None and not (isinstance(target, str) and allowed(target)):
            raise _refused_target(f"{path}._target_={target}", str(target), key)
        # Keras's own serialised form, by which a layer inside a layer could be any class.
        if "class_name" in mapping and key != "hydra":
            raise _refused_target(f"{path}.class_name={mapping['class_name']}", str(mapping["class_name"]), key)


def _is_target(target: str) -> bool:
    if _KERAS_CLASS.fullmatch(target):
        return target.rpartition(".")[2] not in _REFUSED_CLASSES
    allowed = [prefix.strip().rstrip(".") for prefix in os.environ.get("EXPERIMENTS_ALLOW_TARGETS", "").split(",")]
    by_user = any(target == prefix or target.startswith(f"{prefix}.") for prefix in allowed if prefix)
    return by_user or _OWN_FUNCTION.fullmatch(target) is not None


def _is_hydra_target(target: str) -> bool:
    return target.startswith(("hydra.", "hydra_plugins."))


def _refused_target(what: str, target: str, key: str) -> ExperimentError:
    problem = f"{what} is refused: a configuration may not call it."
    if key == "hydra":
        return ExperimentError(problem, advice="Under hydra only hydra.* and hydra_plugins.* may stand.")
    module = target.rpartition(".")[0] or target
    return ExperimentError(
        problem,
        advice="Allowed are the public layers, optimizers, callbacks, regularizers, initializers and constraints of "
        "Keras that run no foreign code, the functions of experiments.data, .models and .schedules, and what you "
        f"allow yourself: export EXPERIMENTS_ALLOW_TARGETS={module}",
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
        names = [name for name in dir(module) if not name.startswith("_") and _is_target(f"{module_name}.{name}")]
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
        if argument in given and name.startswith("experiments."):
            check_value(f"{key}.{argument}", given[argument], parameter.annotation)


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
    adapter = TypeAdapter(annotation)
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError as error:
        schema = adapter.json_schema()
        shown = value if isinstance(value, str) else json.dumps(value)
        must = "" if "enum" in schema else f": it must be {_in_words(schema)}"
        raise ExperimentError(
            f"{key}={shown} is refused{must}.", given=str(value), allowed=schema.get("enum", ())
        ) from error


_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "string": "a text",
    "boolean": "true or false",
    "null": "null",
    "object": "a mapping of names to plain values",
}
_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def in_words(annotation: Any) -> str:
    """The values that a type annotation allows."""
    return _in_words(TypeAdapter(annotation).json_schema())


def _in_words(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_in_words(option) for option in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(schema["enum"])
    if schema["type"] == "array":
        size = schema.get("minItems", 0)
        exactly = f"of {size} entries" if size == schema.get("maxItems") else "that is not empty" if size else ""
        entries = f"with {_in_words(schema['items'])} as every entry" if schema.get("items") else ""
        return " ".join(part for part in ("a list", exactly, entries) if part)
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
