"""The code digest: which modules it covers, and which changes of them it sees."""

import ast
import importlib

import pytest

from experiments.config.compose import compose
from experiments.config.identity import PACKAGE, RESULT_MODULES, RESULT_VARIABLES, code_sha256, read_own_code

#: Every module that a run imports, whose code cannot change a number.
WITHOUT_EFFECT = (
    "corruptions",
    "ensemble",
    "robustness",
    "__init__",
    "errors",
    "galleries",
    "plots",
    "plot_style",
    "config/*",
    "tracking/*",
)
BUILDER = '''"""{module}"""

import keras


def build(input_shape, num_classes):
    """{function}"""
    units = {units}  # {comment}
    return keras.Sequential(
        [keras.Input(input_shape), keras.layers.Flatten(), keras.layers.Dense(units), keras.layers.Dense(num_classes)]
    )
'''


def files(patterns):
    return {file for pattern in patterns for file in PACKAGE.glob(f"{pattern}.py")}


def imported(file):
    """Files of this package that a file imports, directly or not."""
    found, waiting = set(), [file]
    while waiting:
        for node in ast.walk(ast.parse(waiting.pop().read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("experiments"):
                continue
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            places = [PACKAGE.parent / (name.replace(".", "/") + ".py") for name in names]
            new = {place for place in places if place.exists()} - found
            found |= new
            waiting += new
    return found


def test_every_module_that_a_run_imports_is_in_the_digest_or_cannot_change_a_number():
    targets = [
        PACKAGE / f"{module}.py" for module in ("train", "augmentations", "data", "metrics", "models", "schedules")
    ]
    used = set(targets).union(*map(imported, targets))
    assert used - files(WITHOUT_EFFECT) == files(RESULT_MODULES) - {PACKAGE / "training" / "__init__.py"}


@pytest.fixture
def digest_of(tmp_path, monkeypatch):
    """The code digest of a run whose model is built by the user's module."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("EXPERIMENTS_ALLOW_TARGETS", "my_models")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("_target_: my_models.build\n")

    def digest_of(**changed):
        words = {"module": "Models.", "function": "A model.", "units": 8, "comment": "few", **changed}
        (tmp_path / "my_models.py").write_text(BUILDER.format(**words))
        importlib.invalidate_caches()
        return code_sha256("own", compose(["model=mine"], config_dir=str(tmp_path)).cfg)

    return digest_of


def test_code_changes_the_digest_and_words_do_not(digest_of):
    first = digest_of()
    assert digest_of(module="My own models.", function="A model\n\n    of two layers.", comment="so few") == first
    assert digest_of(units=9) != first


def test_environment_variables_that_change_numbers_are_in_the_digest(monkeypatch):
    for name in RESULT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    digests = {"": read_own_code()}
    for name in RESULT_VARIABLES:
        monkeypatch.setenv(name, "1")
        digests[name] = read_own_code()
        monkeypatch.delenv(name)
    assert len(set(digests.values())) == len(digests)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    assert read_own_code() == digests[""]


def test_the_documentation_names_every_such_variable():
    text = (PACKAGE.parents[1] / "docs" / "explanation" / "equal-bits.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in RESULT_VARIABLES)
