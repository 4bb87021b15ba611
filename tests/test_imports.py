"""Who may import whom: an arrow may be an import, nothing points back up."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import experiments

PACKAGE = Path(experiments.__file__).parent
PLUGINS = PACKAGE.parent / "hydra_plugins" / "experiments_sweeps"
#: Room -> its files: a module, or a package with its modules.
ROOMS = {file.stem: [file] for file in PACKAGE.glob("*.py")} | {
    folder.parent.name: sorted(folder.parent.glob("*.py")) for folder in PACKAGE.glob("*/__init__.py")
}
ROOMS["hydra_plugins"] = [PLUGINS / "__init__.py"]
ALLOWED = {
    "errors": set(),
    "schema": {"errors"},
    "config": {"schema"},
    "data": set(),
    "models": set(),
    "costs": set(),
    "schedules": set(),
    "checkpoints": set(),
    "training": {"checkpoints"},
    "evaluation": {"training"},
    "plots": set(),
    "tracking": {"config"},
    "significance": set(),
    "variants": {"config", "tracking"},
    "compare": {"significance", "tracking", "variants"},
    "tables": {"compare", "plots", "significance"},
    "charts": {"compare", "significance"},
    "report": {"charts", "compare", "images", "tables", "tracking"},
    "sweeps": {"config", "compare", "report", "tables", "tracking"},
    "results": {"data", "training", "evaluation", "plots", "tracking"},
    "train": {"config", "costs", "data", "models", "checkpoints", "training", "evaluation", "results", "tracking"},
    "reproduce": {"config", "train", "tracking"},
    "images": set(),
    "inference": {"compare", "tracking"},
    "register": {"compare", "tracking"},
    "export": {"config", "inference", "__init__"},
    "predict": {"images", "inference", "plots"},
    "draw": {"images", "inference", "predict"},
    "preload": {"train", "plots", "tracking", "__init__"},  # what the processes of jobs begin with
    "cli": {"compare", "config", "train", "report", "reproduce", "sweeps", "tables", "tracking", "__init__"}
    | {"draw", "export", "images", "predict", "register"},
    "__init__": {"config", "inference", "train"},
    "hydra_plugins": {"sweeps"},
}
AT_HOME = {
    "mlflow": {"tracking"},
    "matplotlib": {"plots"},
    "hydra": {"config", "cli", "sweeps", "hydra_plugins"},
    "omegaconf": {"config", "cli", "train", "sweeps", "hydra_plugins"},
    "optuna": {"sweeps"},
    "plotly": {"charts", "report"},
    "keras": {"data", "models", "costs", "schedules", "training", "evaluation", "results", "train"}
    | {"reproduce", "inference", "export"},
    "tensorflow": {"training", "results", "train", "export"},
}


def imports(room):
    """Every module that the files of a room import, wherever in the file."""
    for node in (node for file in ROOMS[room] for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from experiments import config` is a module, `from experiments import run` a function.
            inside = [alias.name for alias in node.names if alias.name in ROOMS] if node.module == "experiments" else []
            yield from (f"experiments.{module}" for module in inside)
            if not inside or len(inside) < len(node.names):
                yield str(node.module)


def test_every_file_has_its_place():
    assert set(ROOMS) == set(ALLOWED)


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_points_back_up(room):
    own = {[*module.split("."), "__init__"][1] for module in imports(room) if module.split(".")[0] == "experiments"}
    assert own - {room} <= ALLOWED[room] | {"errors"}


@pytest.mark.parametrize("room", ROOMS)
def test_each_library_is_known_where_it_belongs(room):
    libraries = {module.split(".")[0] for module in imports(room)} & set(AT_HOME)
    assert {library for library in libraries if room not in AT_HOME[library]} == set()


@pytest.mark.parametrize(
    "module",
    ["experiments", "experiments.cli", "experiments.config", "experiments.schema", "hydra_plugins.experiments_sweeps"],
)
def test_nothing_heavy_is_imported_before_it_is_needed(module):
    program = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert {"tensorflow", "keras", "mlflow", "matplotlib", "sklearn", "pandas"} & set(loaded) == set()


def test_a_sweep_is_launched_without_what_only_its_jobs_need():
    program = "import sys, experiments.sweeps.grid; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert {"tensorflow", "keras", "matplotlib", "optuna", "plotly", "statsmodels"} & set(loaded) == set()
