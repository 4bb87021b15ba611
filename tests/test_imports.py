"""Who may import whom: an arrow may be an import, nothing points back up."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import experiments

SOURCES = {file.stem: file for file in Path(experiments.__file__).parent.glob("*.py")}
ALLOWED = {
    "errors": set(),
    "schema": {"errors"},
    "config": {"schema"},
    "data": set(),
    "models": set(),
    "schedules": set(),
    "training": set(),
    "evaluation": {"training"},
    "plots": set(),
    "tracking": {"config"},
    "train": {"config", "data", "models", "training", "evaluation", "plots", "tracking"},
    "cli": {"config", "train", "tracking", "__init__"},
    "__init__": {"config", "train"},
}
AT_HOME = {
    "mlflow": {"tracking"},
    "matplotlib": {"plots"},
    "hydra": {"config", "cli"},
    "omegaconf": {"config", "cli", "train"},
    "keras": {"data", "models", "schedules", "training", "evaluation", "train"},
    "tensorflow": {"training", "train"},
}


def imports(name):
    """Every module that a file of ours imports, wherever in the file."""
    for node in ast.walk(ast.parse(SOURCES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from experiments import config` is a module, `from experiments import run` a function.
            inside = (
                [alias.name for alias in node.names if alias.name in SOURCES] if node.module == "experiments" else []
            )
            yield from (f"experiments.{module}" for module in inside)
            if not inside or len(inside) < len(node.names):
                yield str(node.module)


def test_every_file_has_its_place():
    assert set(SOURCES) == set(ALLOWED)


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_points_back_up(name):
    own = {module.partition(".")[2] or "__init__" for module in imports(name) if module.split(".")[0] == "experiments"}
    assert own <= ALLOWED[name] | {"errors"}


@pytest.mark.parametrize("name", SOURCES)
def test_each_library_is_known_where_it_belongs(name):
    libraries = {module.split(".")[0] for module in imports(name)} & set(AT_HOME)
    assert {library for library in libraries if name not in AT_HOME[library]} == set()


@pytest.mark.parametrize("module", ["experiments", "experiments.cli", "experiments.config", "experiments.schema"])
def test_nothing_heavy_is_imported_before_it_is_needed(module):
    program = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert {"tensorflow", "keras", "mlflow", "matplotlib", "sklearn", "pandas"} & set(loaded) == set()
