"""The names, types and ranges that a configuration may have."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from experiments.errors import ExperimentError, did_you_mean

#: Groups of which a run takes any number of options.
LIST_GROUPS = ("callbacks", "metrics")
#: The groups that make a run.
GROUPS = ("data", "scale", "augment", "model", "loss", "optimizer", "schedule", *LIST_GROUPS)
#: Names of metrics that every run has, or that would be taken for one of them.
_RESERVED = (
    "loss", "total_loss", "accuracy", "learning_rate", "epoch", "epoch_seconds", "accuracy_clean", "calibration_error",
)  # fmt: skip

_Count = Annotated[int, Field(ge=1)]
_Scalar = str | int | float | bool
#: Every key outside the groups, and the one key inside them that the run itself reads.
_ROOT: dict[str, Any] = {
    "epochs": _Count,
    "batch_size": _Count,
    "precision": Literal["float32", "mixed_float16", "mixed_bfloat16"],
    "seed": Annotated[int, Field(ge=0, lt=2**32)],
    "threads": _Count,
    "deterministic": bool,
    "class_weight": Any,  # see _check_class_weight
    "objective": str,
    "keep": Literal["best", "last"],
    "init_from": Annotated[str, Field(min_length=1)] | None,
    "freeze": str | list[str],
    "unfreeze_at_epoch": Annotated[int, Field(ge=2)] | None,
    "head_learning_rate": Annotated[float, Field(gt=0)] | None,
    "optimizer.learning_rate": Annotated[float, Field(gt=0)],
    "tracking.experiment": Annotated[str, Field(min_length=1, max_length=500)] | int | None,
    "tracking.note": _Scalar | None,
    "tracking.tags": dict[str, _Scalar],
    "tracking.model": bool,
    "tracking.system_metrics": bool,
    "tracking.store_timeout": Annotated[float, Field(ge=0)],
    "tracking.job": dict[str, str | int | list[str] | None] | None,
    "sweep.name": Annotated[str, Field(min_length=1, max_length=80)] | int | None,
    "force": bool,
    "resume": bool,
    "dry_run": bool,
}

_Positive = Annotated[float, Field(gt=0)]
#: Arguments whose type or range Keras's losses, optimizers and callbacks do not check.
_UNCHECKED_BY_KERAS: dict[str, Any] = {
    "baseline": float | None,
    "clipnorm": _Positive | None,
    "clipvalue": _Positive | None,
    "ema_momentum": Annotated[float, Field(ge=0, le=1)],
    "ema_overwrite_frequency": _Count | None,
    "global_clipnorm": _Positive | None,
    "gradient_accumulation_steps": Annotated[int, Field(ge=2)] | None,
    "label_smoothing": Annotated[float, Field(ge=0, lt=1)],
    "loss_scale_factor": _Positive | None,
    "weight_decay": Annotated[float, Field(ge=0)] | None,
}

#: Callbacks that set the learning rate.
_SET_LEARNING_RATE = ("keras.callbacks.LearningRateScheduler", "keras.callbacks.ReduceLROnPlateau")

#: What a sweep tells its jobs; nothing that a user sets.
JOB_KEY = "tracking.job"


def epoch_metrics(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The metrics of an epoch by their recorded names, those of the validation images last."""
    measured = ("loss", "accuracy", *sorted(values.get("metrics") or {}))
    return (*measured, *(f"val_{name}" for name in measured))


def check_run(values: Mapping[str, Any], options: Mapping[str, str]) -> None:
    """Checks a composed run as far as possible without building it.

    Args:
        values: plain values of the whole configuration; each number gets the type of its key, so that 0 becomes 0.0.
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
            inside, value = value, value[part]
        inside[part] = check_value(key, value, annotation)
    _check_parts(values)
    _check_class_weight(values["class_weight"])
    _check_metrics(values.get("metrics") or {})
    _check_numbers(values)
    measured = epoch_metrics(values)
    validated = tuple(name for name in measured if name.startswith("val_"))
    _check_objective(values["objective"], validated)
    _check_callbacks(values, measured, options["schedule"])


def _check_objective(objective: str, validated: Sequence[str]) -> None:
    if objective in validated or _is_of_class(objective, validated):
        return
    unknown = "Choose others with metrics; a number that a callback leaves in the logs cannot choose the best epoch."
    raise ExperimentError(
        f"objective={objective} is refused.",
        given=objective,
        allowed=validated,
        advice="" if did_you_mean(objective, validated) else unknown,
    )


def _check_names(values: Mapping[str, Any]) -> None:
    root = {*GROUPS, *(key.partition(".")[0] for key in _ROOT)}
    for key in values:
        if key not in root:
            unpacked = key == "experiment"
            advice = "A file in experiment/ begins with the line: # @package _global_" if unpacked else ""
            raise ExperimentError(f"{key}: there is no such key.", given=key, allowed=root, advice=advice)
    for section in ("tracking", "sweep"):
        known = [key.partition(".")[2] for key in _ROOT if key.startswith(f"{section}.")]
        allowed = [name for name in known if f"{section}.{name}" != JOB_KEY]
        found = values.get(section)
        for key in found if isinstance(found, dict) else ():
            if key not in known:
                raise ExperimentError(f"{section}.{key}: there is no such key.", given=key, allowed=allowed)


def _check_parts(values: Mapping[str, Any]) -> None:
    """Checks that everything to be built has a `_target_`."""
    parts = {group: values.get(group) for group in GROUPS if group not in ("augment", *LIST_GROUPS)}
    for group in ("augment", *LIST_GROUPS):
        several = values.get(group) or {}
        if not isinstance(several, dict):
            raise ExperimentError(f"{group}: it must be a mapping, with a name for each part.")
        parts |= {f"{group}.{name}": part for name, part in several.items()}
    for key, part in parts.items():
        if not isinstance(part, dict) or "_target_" not in part:
            raise ExperimentError(
                f"{key}._target_ is missing: it must name a class or a function, as in keras.layers.Dense."
            )


def _check_class_weight(setting: Any) -> None:
    if isinstance(setting, str):
        check_value("class_weight", setting, Literal["none", "balanced"])
    elif isinstance(setting, dict):
        for name, weight in setting.items():
            setting[name] = check_value(f"class_weight.{name}", weight, Annotated[float, Field(ge=0)])
    else:
        raise refused_value("class_weight", setting, "none, balanced, or a mapping of classes to weights")


def _check_metrics(metrics: Mapping[str, Any]) -> None:
    for name, metric in metrics.items():
        if name in _RESERVED or not re.fullmatch(r"(?!val_)[A-Za-z]\w*", name):
            raise ExperimentError(
                f"metrics.{name}: this cannot be the name of a metric.",
                advice="Choose one of letters, digits and _ that does not begin with val_ and that no run has itself.",
            )
        if "mode" in metric:
            check_value(f"metrics.{name}.mode", metric["mode"], Literal["max", "min"])


def _check_numbers(values: Mapping[str, Any]) -> None:
    callbacks = {f"callbacks.{name}": callback for name, callback in (values.get("callbacks") or {}).items()}
    for key, part in {"loss": values["loss"], "optimizer": values["optimizer"], **callbacks}.items():
        for name in _UNCHECKED_BY_KERAS.keys() & part.keys() if part["_target_"].startswith("keras.") else ():
            part[name] = check_value(f"{key}.{name}", part[name], _UNCHECKED_BY_KERAS[name])


def _is_of_class(name: Any, measured: Sequence[str]) -> bool:
    """Whether a name can be the value of a metric for one class, such as `val_recall/cat`."""
    metric, _, of_class = str(name).partition("/")
    return bool(of_class) and metric in measured


def _check_callbacks(values: Mapping[str, Any], measured: Sequence[str], schedule: str) -> None:
    constant = values["schedule"]["_target_"] == "experiments.schedules.constant"
    for name, callback in (values.get("callbacks") or {}).items():
        key = f"callbacks.{name}"
        if "monitor" in callback:
            monitor = callback["monitor"]
            if monitor not in measured and not _is_of_class(monitor, measured):
                raise ExperimentError(
                    f"{key}.monitor={monitor}: no epoch measures it.", given=str(monitor), allowed=measured
                )
        if callback["_target_"] == "keras.callbacks.EarlyStopping" and values["keep"] == "last":
            raise ExperimentError(
                f"keep=last would keep the weights of the epoch in which {key} ends the run, "
                "its patience after the best.",
                advice=f"Take keep=best, or leave {name} out of callbacks.",
            )
        if callback["_target_"] == "keras.callbacks.SwapEMAWeights" and callback.get("swap_on_epoch") is not True:
            raise ExperimentError(
                f"{key}.swap_on_epoch must be true: the run would keep other weights than the validated ones."
            )
        if callback["_target_"] in _SET_LEARNING_RATE and not constant:
            raise ExperimentError(
                f"{key} sets the learning rate, and so does schedule={schedule}.",
                advice=f"Take schedule=constant or leave {name} out of callbacks.",
            )


def check_value(key: str, value: Any, annotation: Any) -> Any:
    """Converts a value to the type of an annotation and checks its bounds; 0 becomes 0.0 for a float.

    Raises:
        ExperimentError: says what is allowed, in words.
    """
    adapter = TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as error:
        schema = adapter.json_schema()
        if "enum" not in schema:
            raise refused_value(key, value, _in_words(schema)) from error
        raise ExperimentError(f"{_shown(key, value)} is refused.", given=str(value), allowed=schema["enum"]) from error


def refused_value(key: str, value: Any, must_be: str) -> ExperimentError:
    """The error for a value of the wrong type or range."""
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
