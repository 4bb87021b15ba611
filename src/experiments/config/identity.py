"""Digests of values and of the code that can change a number."""

import inspect
from importlib.metadata import version
from pathlib import Path

from omegaconf import DictConfig

from experiments.config.configuration import digest, plain_values
from experiments.config.targets import locate, mappings

PACKAGE = Path(__file__).resolve().parents[1]


_RESULT_MODULES = ("train", "data", "dataset", "models", "schedules", "artifacts", "training/*")


def read_own_code() -> str:
    """Digest of this package's sources that can change a number, and of the versions of TensorFlow and Keras."""
    files = [file for module in _RESULT_MODULES for file in sorted(PACKAGE.glob(f"{module}.py"))]
    sources = [file.read_text() for file in files]
    return digest([*sources, version("tensorflow"), version("keras")])


def code_sha256(own_code: str, cfg: DictConfig) -> str:
    """`own_code` and the source of every module of the user that a `_target_` names."""
    targets = {node["_target_"]: key for key, node in mappings(plain_values(cfg), "") if "_target_" in node}
    foreign = sorted(target for target in targets if not target.startswith(("keras.", "experiments.")))
    files = sorted({str(inspect.getsourcefile(locate(targets[target], target))) for target in foreign})
    sources = [Path(file).read_text() for file in files]
    return digest([own_code, *sources]) if sources else own_code
