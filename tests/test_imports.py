"""Who may import whom: an arrow may be an import, nothing points back up."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import experiments

PACKAGE = Path(experiments.__file__).parent
TESTS = Path(__file__).parent
PLUGINS = PACKAGE.parent / "hydra_plugins" / "experiments_sweeps"
#: Room -> its files: a module at the top, or a package with its modules.
ROOMS = {file.stem: [file] for file in PACKAGE.glob("*.py")} | {
    folder.parent.name: sorted(folder.parent.glob("*.py")) for folder in PACKAGE.glob("*/__init__.py")
}
ROOMS["hydra_plugins"] = [PLUGINS / "__init__.py"]
ALLOWED = {
    "errors": set(),
    "library_internals": set(),
    "config": set(),
    "splits": set(),
    "augmentations": set(),
    "stored_images": set(),
    "dataset": {"duplicates", "splits", "stored_images"},
    "npz_files": {"dataset", "images"},
    "image_lists": {"images", "npz_files"},
    "data": {"dataset", "image_lists", "images", "npz_files", "stored_images"},
    "duplicates": {"stored_images"},
    "images": {"stored_images"},
    "metrics": set(),
    "models": {"stored_images"},
    "schedules": set(),
    "plot_style": set(),
    "plots": {"plot_style"},
    "galleries": {"plot_style", "stored_images"},
    "tracking": {"config", "library_internals"},
    "training": {"config", "dataset", "library_internals", "models", "stored_images"},
    "artifacts": {"dataset", "galleries", "training", "plots", "tracking"},
    "starting_point": {"config", "tracking", "training"},
    "train": {"artifacts", "config", "dataset", "starting_point", "tracking", "training"},
    "reproduce": {"config", "tracking", "train"},
    "corruptions": set(),
    "ensemble": {"artifacts", "compare", "config", "serving", "tracking", "training"},
    "robustness": {"compare", "config", "corruptions", "dataset", "galleries", "reproduce", "serving", "tracking"},
    "compare": {"config", "galleries", "images", "plots", "tracking"},
    "serving": {"compare", "config", "dataset", "galleries", "images", "tracking"},
    "sweeps": {"compare", "config", "library_internals", "tracking"},
    "commands": {
        "compare",
        "config",
        "ensemble",
        "images",
        "reproduce",
        "robustness",
        "serving",
        "sweeps",
        "tracking",
        "__init__",
    },
    "cli": {"commands", "compare", "config", "hydra_app", "reproduce", "sweeps", "tracking", "__init__"},
    "hydra_app": {"config", "library_internals", "sweeps", "tracking", "train", "__init__"},
    "__init__": {"config", "serving", "train"},
    "hydra_plugins": {"config", "sweeps"},
}
#: What a module may import beyond its room: the processes of jobs begin with what a run needs; an export loads quietly.
EXCEPTIONS = {"preload": {"galleries", "train", "__init__"}, "export": {"__init__"}}
AT_HOME = {
    # library_internals alone may use names of Hydra and MLflow that are private, inside its functions.
    "mlflow": {"tracking", "library_internals"},
    "matplotlib": {"galleries", "plots", "plot_style"},
    "hydra": {"config", "hydra_app", "sweeps", "hydra_plugins", "library_internals"},
    "omegaconf": {"config", "hydra_app", "train", "training", "sweeps", "hydra_plugins"},
    "optuna": {"sweeps"},
    "plotly": {"compare"},
    "keras": {
        "augmentations",
        "artifacts",
        "data",
        "ensemble",
        "metrics",
        "models",
        "reproduce",
        "schedules",
        "serving",
        "starting_point",
        "train",
        "training",
    },
    "tensorflow": {"artifacts", "serving", "train", "training"},
}


def imports(files):
    """Every module that some files import, wherever in the file."""
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from experiments import config` is a module, `from experiments import run` a function.
            inside = [alias.name for alias in node.names if alias.name in ROOMS] if node.module == "experiments" else []
            yield from (f"experiments.{module}" for module in inside)
            if not inside or len(inside) < len(node.names):
                yield str(node.module)


def own_imports(files):
    return {[*module.split("."), "__init__"][1] for module in imports(files) if module.split(".")[0] == "experiments"}


def test_every_file_has_its_place():
    assert set(ROOMS) == set(ALLOWED)


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_points_back_up(room):
    for file in ROOMS[room]:
        beyond = EXCEPTIONS.get(file.stem, set())
        assert own_imports([file]) - {room} <= ALLOWED[room] | {"errors"} | beyond, file.name


@pytest.mark.parametrize("room", ROOMS)
def test_each_library_is_known_where_it_belongs(room):
    libraries = {module.split(".")[0] for module in imports(ROOMS[room])} & set(AT_HOME)
    assert {library for library in libraries if room not in AT_HOME[library]} == set()


@pytest.mark.parametrize("package", sorted(folder.parent for folder in PACKAGE.glob("*/__init__.py")))
def test_no_package_re_exports_what_its_modules_define(package):
    (docstring,) = ast.parse((package / "__init__.py").read_text()).body
    assert isinstance(docstring, ast.Expr)


@pytest.mark.parametrize(
    "module",
    [
        "experiments",
        "experiments.cli",
        "experiments.commands.models",
        "experiments.config.compose",
        "experiments.config.schema",
        "hydra_plugins.experiments_sweeps",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(module):
    program = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert {"tensorflow", "keras", "mlflow", "matplotlib", "sklearn", "pandas"} & set(loaded) == set()


def test_a_sweep_is_launched_without_what_only_its_jobs_need():
    program = "import sys, experiments.sweeps.grid; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert {"tensorflow", "keras", "matplotlib", "optuna", "plotly", "statsmodels"} & set(loaded) == set()


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_text_files_are_read_and_written_as_utf_8(file):
    for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") in ("read_text", "write_text"):
            is_metadata = ast.unparse(call).startswith("dist.")  # of an installed package, which takes no encoding
            assert is_metadata or "encoding" in {keyword.arg for keyword in call.keywords}, ast.unparse(call)


@pytest.mark.parametrize("file", sorted(TESTS.rglob("*.py")), ids=lambda file: str(file.relative_to(TESTS)))
def test_no_test_reads_a_private_name_of_the_package(file):
    tree = ast.parse(file.read_text())
    imported = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "experiments"
        for alias in node.names
    }
    read = [*imported.values()]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).partition(".")[0] in {*imported, "experiments"}:
            read.append(node.attr)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("monkeypatch.setattr", "setattr", "getattr"):
            read += [part.value.rpartition(".")[2] for part in node.args[:2] if isinstance(part, ast.Constant)]
    assert [name for name in read if name.startswith("_") and not name.endswith("__")] == []
