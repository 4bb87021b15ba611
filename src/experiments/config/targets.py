"""Which classes and functions a `_target_` may name, and how they are built."""

import importlib
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from experiments.config.configuration import Configuration, plain_values
from experiments.config.keras_names import class_meant_by, removed_argument, removed_class
from experiments.config.schema import check_run, check_value, refused_value
from experiments.errors import ExperimentError

_KERAS_CLASS = re.compile(
    r"keras\.(layers|losses|metrics|optimizers(\.schedules)?|callbacks|regularizers|initializers|constraints)\.[A-Z]\w*"
)
_OWN_FUNCTION = re.compile(r"experiments\.(augmentations|data|metrics|models|schedules)\.[a-z]\w*")
#: Run code from strings, write to places of their own, need another backend, do what the run itself does, or are wrong.
_REFUSED_CLASSES = {
    "Lambda", "RemoteMonitor", "CSVLogger", "TensorBoard", "ModelCheckpoint", "BackupAndRestore", "LambdaCallback",
    "OrbaxCheckpoint", "RandomElasticTransform", "TFSMLayer", "JaxLayer", "FlaxLayer", "TorchModuleWrapper",
}  # fmt: skip

_INPUTS = ("keras.layers.Input", "keras.layers.InputLayer")


def check_targets(node: Any, key: str = "") -> None:
    """Checks every `_target_` in `node` before anything is imported.

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
    if _KERAS_CLASS.fullmatch(target) and target.rpartition(".")[2] not in _REFUSED_CLASSES and target not in _INPUTS:
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
    if target in _INPUTS:
        return ExperimentError(
            f"{what} is refused: the input is added to every model, with the shape of the images.",
            advice="Leave it out.",
        )
    if target.startswith("keras.activations."):
        name = target.rpartition(".")[2]
        return ExperimentError(f"{what} is refused.", advice=f"Activations are written by name: activation: {name}")
    if target.endswith("keras.Sequential") or target.endswith("keras.models.Sequential"):
        return ExperimentError(f"{what} is refused.", advice="Write experiments.models.sequential.")
    if target == "keras.layers.RandomElasticTransform":
        return ExperimentError(
            f"{what} is refused: in the batches of a run it would put one image in the place of others.",
            advice="Take augment=elastic.",
        )
    if (meant := class_meant_by(target)) and _is_target(meant) and meant != target:
        return ExperimentError(
            f"{what} is refused: a configuration names the classes of Keras.", advice=f"Write {meant}."
        )
    return ExperimentError(
        f"{what} is refused: a configuration may not call it.",
        advice="It may call the public classes of keras.layers, .losses, .metrics, .optimizers, .callbacks, "
        ".regularizers, .initializers and .constraints that run no foreign code, the functions of "
        "experiments.augmentations, .data, .metrics, .models and .schedules, and what you trust yourself: "
        f"export EXPERIMENTS_ALLOW_TARGETS={','.join([*_allowed_by_user(), target])}",
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
        advice = removed_class(name) if target.startswith("keras.") else ""
        raise ExperimentError(
            f"{key}._target_={target}: {module_name} has no {name}.",
            given="" if advice else name,
            allowed=() if advice else names,
            advice=advice,
        )
    return found


def check_arguments(key: str, node: Mapping[str, Any], run_values: Mapping[str, Any]) -> None:
    """Checks the arguments in `node` against the signature of its target, for our own functions also types and ranges.

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
        if known is not None and argument not in known:
            advice = removed_argument(argument, known) if name.startswith("keras.") else ""
            raise ExperimentError(
                f"{key}.{argument}: {name} has no such argument.",
                given="" if advice else argument,
                allowed=() if advice else known - set(run_values),
                advice=advice,
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
    """Rejects text where Keras's default is a number, because many classes accept it and fail during training."""
    if isinstance(default, bool | int | float):
        raise refused_value(key, value, "true or false" if isinstance(default, bool) else "a number")


_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _argument_names(target: Callable[..., Any]) -> set[str] | None:
    """The argument names of `target`, None for any; Keras classes pass **kwargs on to their bases."""
    if inspect.isclass(target):
        constructors = [vars(base)["__init__"] for base in inspect.getmro(target)[:-1] if "__init__" in vars(base)]
        return {name for constructor in constructors for name in _named(constructor)} - {"self"}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(target).parameters.values())
    return None if takes_any else _named(target)


def _named(function: Callable[..., Any]) -> set[str]:
    return {p.name for p in inspect.signature(function).parameters.values() if p.kind not in _VARIABLE}


def mappings(node: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping inside `node`, with its dotted key."""
    if isinstance(node, dict):
        yield key, node
        for name, value in node.items():
            yield from mappings(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for position, value in enumerate(node):
            yield from mappings(value, f"{key}[{position}]")


def typed(configuration: Configuration) -> Configuration:
    """Converts values to the types of the signatures: 0 becomes 0.0 where a float is expected.

    Raises:
        ExperimentError: a value of the wrong type.
    """
    values = plain_values(configuration.cfg)
    check_run(values, configuration.options)
    for key, node in mappings(values, ""):
        if "_target_" in node:
            parameters = inspect.signature(locate(key, node["_target_"])).parameters
            own = node["_target_"].startswith("experiments.")
            node |= {
                name: _typed(f"{key}.{name}", node[name], parameter, own=own)
                for name, parameter in parameters.items()
                if name in node
            }
    return replace(configuration, cfg=OmegaConf.create(values))


def _typed(key: str, value: Any, parameter: inspect.Parameter, *, own: bool) -> Any:
    if own:
        return check_value(key, value, parameter.annotation)
    is_float = parameter.annotation is float or isinstance(parameter.default, float)
    return float(value) if is_float and type(value) is int else value


# Building what the configuration describes


def instantiate(cfg: DictConfig, key: str, **run_values: Any) -> Any:
    """Builds what `cfg[key]` describes.

    Args:
        cfg: the whole configuration.
        key: a key whose value is a mapping with `_target_`, such as `model` or `callbacks.early_stopping`.
        **run_values: what only the run knows; those that the target has a parameter for are passed to it.

    Raises:
        ExperimentError: an unknown or missing parameter, a value of the wrong type or range, or what a class of Keras
            refuses.
    """
    node = OmegaConf.select(cfg, key)
    parts = {path: part for path, part in mappings(plain_values(node), key) if "_target_" in part}
    for path, part in parts.items():
        check_arguments(path, part, run_values if path == key else {})
    target = node["_target_"]
    named = inspect.signature(locate(key, target)).parameters
    try:
        build = hydra.utils.instantiate(node, _partial_=True, _convert_="all")
        return build(**{name: value for name, value in run_values.items() if name in named})
    except InstantiationException as error:  # of a part inside the node
        named_by_hydra = re.search(r"full_key: (\S+)", str(error))
        # Hydra writes layers1 for an entry of a list, but layers[1].x for what is in it.
        paths = {re.sub(r"[][]", "", path): path for path in parts}
        path = paths[re.sub(r"[][]", "", named_by_hydra[1])] if named_by_hydra else key
        raise _refused_part(path, parts[path]["_target_"], error.__cause__ or error) from error
    except Exception as error:
        raise _refused_part(key, target, error) from error


def _refused_part(key: str, target: str, error: BaseException) -> BaseException:
    """Translates what a Keras class rejects into a mistake in the configuration; other errors are raised unchanged."""
    if isinstance(error, ExperimentError) or not target.startswith("keras."):
        return error
    return ExperimentError(f"{key}: {target} refuses it: {' '.join(str(error).split())}")
