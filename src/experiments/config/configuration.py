"""`Configuration`: the composed values of one run, its parameters and hashes."""

import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.config.earlier import ADDED
from experiments.config.keras_names import keywords, removed_argument
from experiments.config.overrides import absolute, absolute_paths, first_line, is_data_path, is_weights_file
from experiments.config.schema import GROUPS, JOB_KEY, LIST_GROUPS
from experiments.errors import ExperimentError, did_you_mean

_FRACTION = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?|-?inf|nan")
SELECTABLE = (*GROUPS, "experiment", "sweep")
#: Keys by which a variant is repeated: runs that differ in nothing else are replicates of one variant.
REPLICATE_KEYS = ("seed", "data.split_seed", "data.fold")
#: Root keys that cannot change a result.
NO_IDENTITY = ("tracking", "sweep", "force", "resume", "dry_run")
#: Key of the data that cannot change a result, as their paths cannot.
_MEMORY = "memory_mb"
#: Arguments of Keras's classes that the run gives itself, and why.
_OF_RUN = {
    "mode": "It follows from monitor.",
    "name": "The run names its parts itself.",
    "from_logits": "Every model ends in a softmax, so it is false.",
}
#: Between the name and the hash of the weights that a run starts from.
PIN = "@sha256:"


@dataclass(frozen=True)
class Configuration:
    """The composed values of one run, and the overrides they were composed from."""

    cfg: DictConfig
    overrides: tuple[str, ...]
    experiment: str | None  # choice of the group `experiment`
    options: Mapping[str, str]  # group -> choice, without the groups of which any number is chosen
    config_dir: str | None = None

    @cached_property
    def _values(self) -> dict[str, Any]:
        return plain_values(self.cfg)

    @cached_property
    def choices(self) -> dict[str, str]:
        """The choice of every group; of several options their sorted names in Hydra's list grammar."""
        lists = {group: f"[{','.join(sorted(self.cfg.get(group) or {}))}]" for group in LIST_GROUPS}
        return {**self.options, **lists}

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All values that can change a result, including the seed, without tracking, paths and memory of data."""
        data = {key: value for key, value in self._values["data"].items() if key not in (*self.paths, _MEMORY)}
        return {key: value for key, value in {**self._values, "data": data}.items() if key not in NO_IDENTITY}

    @property
    def paths(self) -> dict[str, str | None]:
        """The paths of the data, which are not part of the identity."""
        return {key: value for key, value in self._values["data"].items() if is_data_path(f"data.{key}")}

    @cached_property
    def variant(self) -> str:
        """Hash of the identity without the replicate keys, shared by all replicates of a variant."""
        values = {key: value for key, value in self.identity.items() if self._tells_variants(key, value)}
        values["data"] = {
            key: value for key, value in values["data"].items() if self._tells_variants(f"data.{key}", value)
        }
        if values.get("init_from"):
            values["init_from"] = values["init_from"].rpartition(PIN)[2]  # whatever the model is called
        return digest(values)[:16]

    def pinned(self, init_from: str | None) -> "Configuration":
        """This configuration with the name and the hash of the weights to start from in place of any other name."""
        if init_from is None:
            return self
        cfg = self.cfg.copy()
        cfg.init_from = init_from
        return replace(self, cfg=cfg)

    @staticmethod
    def _tells_variants(key: str, value: Any) -> bool:
        return key not in REPLICATE_KEYS and not (key in ADDED and value == ADDED[key])

    @property
    def replicate(self) -> dict[str, Any]:
        """The values of the replicate keys that this configuration has."""
        leaves = dict(flatten(self.identity))
        return {key: leaves[key] for key in REPLICATE_KEYS if key in leaves}

    @property
    def without_seed(self) -> str:
        """Hash of everything but the seed, shared by jobs whose models are built in the same way."""
        return digest({key: value for key, value in self._values.items() if key != "seed"})

    def fingerprint(self, data_sha256: str, code_sha256: str) -> str:
        """Hash of variant, replicate, data and code; if equal, so are the results on one kind of processor."""
        return digest([self.variant, self.replicate, data_sha256, code_sha256])[:16]

    @property
    def parameters(self) -> dict[str, str]:
        """All choices and identity values as text, by dotted key, to filter and compare runs by."""
        weights = self.identity["class_weight"]  # one value for all classes, to compare runs by
        one = {} if isinstance(weights, str) else {"class_weight": json.dumps(weights)}
        leaves = flatten(self.identity | one)
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in leaves} | self.choices

    def value(self, key: str) -> Any:
        """The choice of a group, or the plain value of a dotted key.

        Raises:
            ExperimentError: there is no such key.
        """
        if key in self.choices:
            return self.choices[key]
        if key not in known_keys(self):
            raise unknown_key(key, self)
        value = OmegaConf.select(self.cfg, key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value

    @property
    def command(self) -> str:
        """The command that trains this run, from any folder."""
        where = ["--config-dir", self.config_dir] if self.config_dir else []
        alone = ["hydra.mode=RUN"] if self.cfg.tracking.job else []
        words = [word for word in self.overrides if not word.startswith("sweep.")]
        return shlex.join(["experiments", "train", *absolute_paths([*where, *words, *alone])])

    @property
    def as_yaml(self) -> str:
        """All values as YAML, with absolute paths of data and of weights."""
        data = self._values["data"] | {key: path and absolute(path) for key, path in self.paths.items()}
        model = dict(self._values["model"])
        if is_weights_file(weights := model.get("weights")):
            model["weights"] = absolute(str(weights))
        return OmegaConf.to_yaml(OmegaConf.create({**self._values, "data": data, "model": model}))


@dataclass(frozen=True)
class Plan:
    """What a run would train, as far as it is known without training."""

    variant: str
    fingerprint: str
    data_sha256: str
    code_sha256: str
    num_parameters: int
    parameters: Mapping[str, str]  # as they will be recorded
    mode: str  # of the objective, `max` or `min`
    init_from: str | None = None  # with the hash of the weights to start from


def known_keys(known: Configuration) -> set[str]:
    """All dotted keys that can be set."""
    leaves = [str(key) for key, _ in flatten(plain_values(known.cfg))]
    inner = {".".join(key.split(".")[:depth]) for key in leaves for depth in range(1, key.count(".") + 1)}
    return {*leaves, *inner, *SELECTABLE}


def is_argument(key: str, cfg: DictConfig) -> bool:
    """Whether a key is an argument of a class of Keras that the user may give, also if no YAML file lists it."""
    return key.rpartition(".")[2] in _arguments(key, cfg) - _own_arguments(key)


def _arguments(key: str, cfg: DictConfig) -> frozenset[str]:
    """The arguments of the class of Keras that a key is inside of; none if it is not."""
    part = OmegaConf.select(cfg, key.rpartition(".")[0])
    return keywords(str(part.get("_target_"))) if isinstance(part, DictConfig) else frozenset()


def _own_arguments(key: str) -> Set[str]:
    return set() if key.startswith("model.") else _OF_RUN.keys()


def further_keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys that an option takes beside those of its file: arguments of the classes of Keras that it names.

    Args:
        values: of the file.
        prefix: of the keys.
    """
    names = keywords(str(values.get("_target_"))) - values.keys() - _OF_RUN.keys()
    yield from (f"{prefix}{name}" for name in sorted(names))
    for name, inner in values.items():
        if isinstance(inner, dict):
            yield from further_keys(inner, f"{prefix}{name}.")


def unknown_key(key: str, known: Configuration, advice: str = "") -> ExperimentError:
    """The error for an unknown key, with the keys at the same level and the nearest one."""
    arguments = _arguments(key, known.cfg)
    names = {name for name in known_keys(known) if not name.endswith("_target_") and not name.startswith(JOB_KEY)}
    parent, _, last = key.rpartition(".")
    beside = {name.rpartition(".")[2] for name in names if name.rpartition(".")[0] == parent}
    beside |= arguments - _own_arguments(key)
    if last in arguments & _own_arguments(key):
        return ExperimentError(f"{key} cannot be set.", advice=_OF_RUN[last])
    if last in arguments:  # inside a mapping, or to be left out
        return ExperimentError(f"{key}: no YAML file lists it.", advice=f"Set it by its own key: {key}=…")
    if today := removed_argument(last, arguments):
        return ExperimentError(f"{key}: there is no such key.", advice=today)
    group = key.partition(".")[0]
    of_groups = {name for name in names if not name.startswith("tracking.")}
    searched = sorted(of_groups) if group in GROUPS else [*sorted(names - of_groups), *sorted(of_groups)]
    elsewhere = {name.rpartition(".")[2]: name for name in searched}
    option = f"{group}={known.choices[group]} has" if parent and group in known.choices else "there is"
    problem = f"{key}: {option} no such key."
    is_elsewhere = group != "hydra" and last in elsewhere and not (parent and did_you_mean(last, beside))
    if is_elsewhere:
        problem += f" Did you mean {elsewhere[last]}?"
    return ExperimentError(problem, given="" if is_elsewhere else last, allowed=beside, advice=advice)


def digest(values: Any) -> str:
    """The SHA-256 of `values` in canonical JSON, in hex; 0.0 is the same as 0, and "0.1" is not the same as 0.1."""
    canonical = _canonical(json.loads(json.dumps(values)))
    return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _canonical(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_canonical(inner) for inner in value]
    if isinstance(value, float):
        return int(value) if value.is_integer() else str(value)
    # Fractions have always been digested as text, so it is the rare text of a fraction that is marked.
    return {"text": value} if isinstance(value, str) and _FRACTION.fullmatch(value) else value


def plain_values(cfg: DictConfig) -> Any:
    """The values of a configuration as plain Python objects, every interpolation resolved.

    Raises:
        ExperimentError: an interpolation that cannot be resolved, or a missing value.
    """
    try:
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        problem = first_line(error)
        unknown = re.fullmatch("Interpolation key '(.+)' not found", problem)
        names = [name for name, _ in flatten(cast(dict[str, Any], OmegaConf.to_container(cfg)))]
        question = did_you_mean(unknown[1], names) if unknown else ""
        raise ExperimentError(f"{error.full_key}: {problem}.", advice=question) from error


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; lists are values, and so are empty mappings."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
