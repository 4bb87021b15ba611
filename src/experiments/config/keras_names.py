"""Finds the arguments of Keras's classes, and what older names are called today; does not import Keras."""

import ast
import functools
import re
from collections.abc import Mapping, Set
from importlib.util import find_spec
from pathlib import Path

_MODULES = (
    "layers", "optimizers", "optimizers.schedules", "losses", "metrics", "callbacks", "regularizers", "initializers",
    "constraints",
)  # fmt: skip
#: Classes that Keras 3 does not have any more, and what to write instead.
_REMOVED_CLASSES = {
    "AtrousConvolution2D": "Conv2D with dilation_rate",
    "CuDNNGRU": "GRU",
    "CuDNNLSTM": "LSTM",
    "LocallyConnected2D": "Conv2D",
    "RandomHeight": "RandomZoom",
    "RandomWidth": "RandomZoom",
    "SyncBatchNormalization": "BatchNormalization with synchronized: true",
    "ThresholdedReLU": "ReLU with threshold",
}
#: Arguments of Keras 1 and 2 -> their names today, for classes that have an argument of that name.
_RENAMED_ARGUMENTS = {
    "W_constraint": "kernel_constraint",
    "W_regularizer": "kernel_regularizer",
    "alpha": "negative_slope",
    "b_constraint": "bias_constraint",
    "b_regularizer": "bias_regularizer",
    "bias": "use_bias",
    "border_mode": "padding",
    "dim_ordering": "data_format",
    "epsilon": "min_delta",
    "init": "kernel_initializer",
    "lr": "learning_rate",
    "nb_filter": "filters",
    "output_dim": "units",
    "p": "rate",
    "subsample": "strides",
}
_KNOWN_SHAPE = "The run knows the shape of the images: leave it out."
#: Arguments that are not needed any more, and why.
_REMOVED_ARGUMENTS = {
    "batch_input_shape": _KNOWN_SHAPE,
    "decay": "Take a schedule, as in schedule=exponential, or weight_decay for decoupled weight decay.",
    "input_dim": _KNOWN_SHAPE,
    "input_shape": _KNOWN_SHAPE,
}


def class_meant_by(target: str) -> str | None:
    """The public class of Keras that a name means which is none: an alias, a function, or a place in another version.

    Args:
        target: such as `keras.regularizers.l2` or `tensorflow.keras.optimizers.legacy.Adam`.
    """
    *path, name = target.split(".")
    if not {"keras", *_MODULES} & set(path):
        return None
    for module in sorted(_MODULES, key=lambda module: module.rpartition(".")[2] not in path):
        for own, alias in _names(module):
            if name in (own, alias) or _plain(name) == _plain(own):
                return f"keras.{module}.{own}"
    return None


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _names(module: str) -> list[tuple[str, str]]:
    """The classes of a public module, each with a name that it can be imported by."""
    file = _file(f"keras.{module}")
    return re.findall(r"\b([A-Z]\w*) as (\w+)", file.read_text(encoding="utf-8")) if file else []


@functools.cache
def keywords(target: str) -> frozenset[str]:
    """The arguments that a public class of Keras takes, with those that it passes on to its bases; empty for others."""
    module, _, name = target.rpartition(".")
    return frozenset(_arguments(module, name)) if target.startswith("keras.") else frozenset()


def _arguments(module: str, name: str) -> set[str]:
    classes, imported = _defined_in(module)
    if name not in classes:
        return _arguments(*imported[name]) if name in imported else set()
    found = set()
    for part in classes[name].body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            arguments = part.args
            found = {argument.arg for argument in [*arguments.args[1:], *arguments.kwonlyargs]}
    for base in classes[name].bases:
        if isinstance(base, ast.Name) and base.id != name:
            found |= _arguments(module, base.id)
        elif isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name) and base.value.id in imported:
            found |= _arguments(".".join(imported[base.value.id]), base.attr)
    return found


@functools.cache
def _defined_in(module: str) -> tuple[Mapping[str, ast.ClassDef], Mapping[str, tuple[str, str]]]:
    """The classes that a module of Keras defines by name, and the names that it imports: module and name there."""
    file = _file(module)
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8")))) if file else []
    imported: dict[str, tuple[str, str]] = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                # The first import of a name is that of TensorFlow, where it depends on the backend.
                imported.setdefault(alias.asname or alias.name, (node.module, alias.name))
    return {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}, imported


def _file(module: str) -> Path | None:
    """The file of a module of Keras, None for any other."""
    package, *parts = module.split(".")
    keras = find_spec("keras")
    if package != "keras" or keras is None or keras.origin is None:
        return None
    path = Path(keras.origin).parent.joinpath(*parts)
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((file for file in candidates if file.exists()), None)


def removed_class(name: str) -> str:
    """A sentence on what to write instead of a class that Keras had; empty for any other name."""
    return f"Keras has removed it; write {_REMOVED_CLASSES[name]}." if name in _REMOVED_CLASSES else ""


def removed_argument(name: str, known: Set[str]) -> str:
    """A sentence on what to write instead of an argument that Keras had; empty for any other name.

    Args:
        name: of the argument.
        known: the arguments that the class has today.
    """
    today = _RENAMED_ARGUMENTS.get(name)
    return f"Its name is {today} today." if today in known else _REMOVED_ARGUMENTS.get(name, "")
