"""The arguments of Keras's classes, read from its files, against those of the imported classes."""

import inspect
import sys

import keras
import pytest

from experiments.config.keras_names import keywords

MODULES = [
    "layers", "optimizers", "optimizers.schedules", "losses", "metrics", "callbacks", "regularizers", "initializers",
    "constraints",
]  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_the_arguments_of_every_class_of_keras_are_those_of_its_constructors(module):
    public = sys.modules[f"keras.{module}"]
    classes = {name: found for name, found in vars(public).items() if inspect.isclass(found) and name[0].isupper()}
    assert classes
    for name, found in classes.items():
        constructors = [vars(base)["__init__"] for base in found.__mro__[:-1] if "__init__" in vars(base)]
        parameters = [each for one in constructors for each in inspect.signature(one).parameters.values()]
        named = {each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
        assert keywords(f"keras.{module}.{name}") == named - {"self"}, name


@pytest.mark.parametrize("target", ["keras.optimizers.Adm", "keras.optimizer.Adam", "my_nets.Adam", "keras.Adam", ""])
def test_what_is_no_class_of_keras_has_no_arguments(target):
    assert keras and keywords(target) == frozenset()
