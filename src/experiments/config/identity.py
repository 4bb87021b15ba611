"""Hashes of the code, and of the settings of the process, that can change a result."""

import ast
import inspect
import io
import os
import tokenize
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from omegaconf import DictConfig

from experiments.config.configuration import digest, plain_values
from experiments.config.overrides import is_weights_file
from experiments.config.targets import locate, mappings

PACKAGE = Path(__file__).resolve().parents[1]
#: Modules of this package that can change a number, as patterns.
RESULT_MODULES = (
    "train", "artifacts", "augmentations", "data", "dataset", "duplicates", "image_lists", "images",
    "library_internals", "metrics", "models", "npz_files", "schedules", "splits", "starting_point", "stored_images",
    "training/*",
)  # fmt: skip
#: Environment variables by which TensorFlow, oneDNN and XLA compute other numbers.
RESULT_VARIABLES = (
    "DNNL_DEFAULT_FPMATH_MODE", "DNNL_MAX_CPU_ISA", "NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA", "TF_CUDNN_USE_AUTOTUNE", "TF_ENABLE_ONEDNN_OPTS", "TF_XLA_FLAGS", "XLA_FLAGS",
)  # fmt: skip


def read_own_code() -> str:
    """Hash of the modules that can change a result, and of the versions of TensorFlow and Keras.

    Environment variables that change results count as code, too, if they are set.
    """
    files = [file for pattern in RESULT_MODULES for file in sorted(PACKAGE.glob(f"{pattern}.py"))]
    variables = [f"{name}={os.environ[name]}" for name in RESULT_VARIABLES if name in os.environ]
    return digest([*map(_code, files), version("tensorflow"), version("keras"), *variables])


def code_sha256(own_code: str, cfg: DictConfig) -> str:
    """Hash of `own_code`, the user's modules that a `_target_` names, and the file of weights that a model loads."""
    targets = {node["_target_"]: key for key, node in mappings(plain_values(cfg), "") if "_target_" in node}
    foreign = sorted(target for target in targets if not target.startswith(("keras.", "experiments.")))
    files = sorted({str(inspect.getsourcefile(locate(targets[target], target))) for target in foreign})
    found = [_code(Path(file)) for file in files]
    weights = cfg.model.get("weights")
    if is_weights_file(weights) and Path(weights).is_file():
        found.append(sha256(Path(weights).read_bytes()).hexdigest())
    return digest([own_code, *found]) if found else own_code


def _code(file: Path) -> str:
    """The source of a module without comments, docstrings and blank lines, which cannot change a result.

    A dump of the syntax tree would say the same, but differs from one version of Python to the next.
    """
    source = file.read_text(encoding="utf-8")
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node) is not None:
            docstring = node.body[0]
            for row in range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1):
                lines[row - 1] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())
