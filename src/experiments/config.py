"""Compose, check, identify and instantiate a configuration; knows neither Keras nor MLflow."""

import contextlib
import hashlib
import inspect
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import hydra.utils
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments import schema
from experiments.errors import ExperimentError, did_you_mean

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parents[1]
#: The checkout that this package is imported from; None for an installed package.
CHECKOUT = _CHECKOUT if (_CHECKOUT / "conf" / "config.yaml").exists() else None
#: The options of this package: the checkout's, for a wheel its own copy.
CONF_DIR = (CHECKOUT or _PACKAGE) / "conf"

GROUPS, EPOCH_METRICS = schema.GROUPS, schema.EPOCH_METRICS
_CHOOSABLE = (*GROUPS, "experiment", "sweep")
_FREE = "tracking.tags."
_PATHS = ("data.path", "data.test_path")
_FOLDER_OPTIONS = ("--config-dir", "-cd")
#: Root keys that cannot change a result.
_NO_IDENTITY = ("tracking", "force", "resume", "dry_run")


@dataclass(frozen=True)
class Configuration:
    """One run as it was asked for: the composed values and the words that composed them."""

    cfg: DictConfig
    overrides: tuple[str, ...]
    experiment: str | None  # choice of the group `experiment`
    options: Mapping[str, str]  # group -> choice, callbacks left out
    config_dir: str | None = None

    @cached_property
    def choices(self) -> dict[str, str]:
        """The choice of every group; `callbacks` are their sorted names in Hydra's list grammar."""
        callbacks = ",".join(sorted(self.cfg.get("callbacks") or {}))
        return {**self.options, "callbacks": f"[{callbacks}]"}

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that can change a result, seed included: no tracking, no path of a data set."""
        values = _container(self.cfg)
        values["data"] = {key: value for key, value in values["data"].items() if not key.endswith("path")}
        return {key: value for key, value in values.items() if key not in _NO_IDENTITY}

    @property
    def paths(self) -> dict[str, str | None]:
        """Where its data lies, which is no part of its identity."""
        return {key: value for key, value in _container(self.cfg)["data"].items() if key.endswith("path")}

    @property
    def variant(self) -> str:
        """Hash of the identity without the seed: runs that differ in nothing but chance share it."""
        return digest({key: value for key, value in self.identity.items() if key != "seed"})[:16]

    @property
    def without_seed(self) -> str:
        """Hash of all but the seed, paths and tracking too: what two jobs share that are built alike."""
        return digest({key: value for key, value in _container(self.cfg).items() if key != "seed"})

    def fingerprint(self, data_sha256: str, code_sha256: str) -> str:
        """Hash of all that decides the numbers: equal fingerprints mean equal results on one kind of processor."""
        return digest([self.variant, self.cfg.seed, data_sha256, code_sha256])[:16]

    @property
    def parameters(self) -> dict[str, str]:
        """Every choice and every identity key, dotted, as text: what a run is filtered and compared by."""
        leaves = _leaves(self.identity)
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in leaves} | self.choices

    def value(self, key: str) -> Any:
        """The choice of a group, or the plain value of a dotted key.

        Raises:
            ExperimentError: there is no such key.
        """
        if key in self.choices:
            return self.choices[key]
        if key not in _keys(self):
            raise _unknown_key(key, self)
        value = OmegaConf.select(self.cfg, key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value

    @property
    def command(self) -> str:
        """The words that train this run alone, from any folder."""
        where = ["--config-dir", self.config_dir] if self.config_dir else []
        alone = ["hydra.mode=RUN"] if self.cfg.tracking.parent else []
        return shlex.join(["experiments", "train", *anywhere([*where, *self.overrides, *alone])])

    @property
    def as_yaml(self) -> str:
        """All values, with paths of data that hold in any working directory."""
        values = _container(self.cfg)
        values["data"] |= {key: path and _absolute(path) for key, path in self.paths.items()}
        return OmegaConf.to_yaml(OmegaConf.create(values))

    @property
    def title(self) -> str:
        """Model, what the user changed, seed: at most 80 characters."""
        places = tuple(f"{key}=" for key in _PATHS)
        told = ("model=", "seed=", "tracking.", "+tracking.", "hydra.", "sweep=", "force=", "resume=", *places)
        last = {override.partition("=")[0]: override for override in self.overrides}  # of two for a key
        changed = [override for override in last.values() if not override.startswith(told)]
        if self.cfg.tracking.parent:
            changed.reverse()  # what a sweep varies stands last, and must not be cut
        seed = f" seed={self.cfg.seed}"
        head = " ".join([self.choices["model"], *changed])
        room = 80 - len(seed)
        return (head if len(head) <= room else head[: room - 1] + "…") + seed


@dataclass(frozen=True)
class Plan:
    """What a run would be: all that can be told without training it."""

    variant: str
    fingerprint: str
    data_sha256: str
    code_sha256: str
    num_parameters: int


def digest(values: Any) -> str:
    """The SHA-256 of `values` in canonical JSON, in hex; 0.0 is the same as 0."""
    canonical = json.loads(
        json.dumps(values), parse_float=lambda text: int(float(text)) if float(text) % 1 == 0 else text
    )
    return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()


def compose(overrides: Sequence[str], config_dir: str | None = None) -> Configuration:
    """Composes and checks one run.

    Args:
        overrides: as on the command line, such as `model=conv3`.
        config_dir: a folder with more options, laid out like `conf/`.

    Raises:
        ExperimentError: an override or a value that cannot work.
    """
    return checked(compose_unchecked(overrides, config_dir))


def compose_unchecked(overrides: Sequence[str], config_dir: str | None = None) -> Configuration:
    """Composes one run whose values may still be wrong, as those of a combination that is to be left out.

    Raises:
        ExperimentError: an override that cannot work.
    """
    _refuse_sweep(_swept(overrides), overrides, config_dir)
    _check_overrides(overrides, config_dir)
    cfg = _composed(overrides, config_dir)
    schema.check_targets(OmegaConf.to_container(cfg.hydra), "hydra")
    return _configuration(cfg, cfg.hydra.runtime.choices, overrides, config_dir)


def check_command(overrides: Sequence[str], config_dir: str | None, *, multirun: bool) -> None:
    """Checks what can be told of a command line before Hydra acts on it, swept values left out.

    Raises:
        ExperimentError: an override or a value that cannot work, or a sweep that is not asked for as one.
    """
    swept = _swept(overrides)
    fixed = [text for text in overrides if text not in swept]
    compose(fixed, config_dir)
    if swept and not multirun and _composed(fixed, config_dir).hydra.mode is not RunMode.MULTIRUN:
        _refuse_sweep(swept, overrides, config_dir)


def _swept(overrides: Sequence[str]) -> list[str]:
    return [text for text, override in _parsed(overrides) if override.is_sweep_override()]


def _refuse_sweep(swept: Sequence[str], overrides: Sequence[str], config_dir: str | None) -> None:
    if swept:
        where = ["--config-dir", config_dir] if config_dir else []
        raise ExperimentError(
            f"{' '.join(swept)}: this is a sweep of several runs.",
            advice=f"Start it with: {shlex.join(['experiments', 'train', '-m', *where, *overrides])}",
        )


def current_job(cfg: DictConfig, config_dir: str | None) -> Configuration:
    """The job that Hydra is running, checked (for the task function of `hydra.main`)."""
    job = HydraConfig.get()
    overrides = [text for text in job.overrides.task if not text.startswith(schema.OF_A_JOB)]
    _check_overrides(overrides, config_dir)
    return checked(_configuration(cfg, job.runtime.choices, overrides, config_dir))


def restored(text: str, overrides: Sequence[str], experiment: str | None, choices: Mapping[str, str]) -> Configuration:
    """The configuration of a recorded run, held to the same rules as one that was just composed.

    What cannot change a result, such as `tracking`, is as in a new run.

    Args:
        text: its `config.yaml`.
        overrides: that it was composed by.
        experiment: choice of the group `experiment`.
        choices: of the other groups, among other values.

    Raises:
        ExperimentError: keys or values that this version does not take.
    """
    if "${" in text:  # recorded configurations are resolved; this one would read this machine's environment
        raise ExperimentError("it holds an interpolation, ${…}.")
    values = yaml.safe_load(text)
    today = compose([])
    if not isinstance(values, dict):
        raise ExperimentError("it is no mapping.")
    values |= {key: _container(today.cfg)[key] for key in _NO_IDENTITY}
    options = {group: choices.get(group, "") for group in today.options}
    return checked(Configuration(OmegaConf.create(values), tuple(overrides), experiment, options))


def folders(config_dir: str | None) -> list[Path]:
    """Where options are looked for: in this package, then in the user's folder.

    Raises:
        ExperimentError: the user's folder does not exist.
    """
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ExperimentError(f"--config-dir {config_dir}: there is no such folder.")
    return [CONF_DIR, *([Path(config_dir)] if config_dir else [])]


def _composed(overrides: Sequence[str], config_dir: str | None) -> DictConfig:
    places = [json.dumps(f"file://{folder.resolve()}") for folder in folders(config_dir)[1:]]
    try:
        with (
            _no_other_hydra(),
            initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR), job_name="experiments"),
        ):
            search = f"hydra.searchpath=[{','.join(places)}]"
            return hydra_compose("config", overrides=[search, *overrides], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError) as error:
        raise _explain(error, overrides, config_dir) from error


@contextlib.contextmanager
def _no_other_hydra() -> Iterator[None]:
    """Lets a sweep compose its jobs inside the Hydra that has called it; there may be only one."""
    instance = GlobalHydra.instance()
    calling, instance.hydra = instance.hydra, None
    try:
        yield
    finally:
        instance.hydra = calling


def _configuration(
    cfg: DictConfig, choices: Mapping[str, str], overrides: Sequence[str], config_dir: str | None
) -> Configuration:
    without_hydra = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    options = {group: str(choices[group]) for group in GROUPS if group in choices}
    return Configuration(without_hydra, tuple(overrides), choices.get("experiment"), options, config_dir)


def checked(configuration: Configuration) -> Configuration:
    """The same configuration, held to all that can be told without building it.

    Raises:
        ExperimentError: a value that cannot work.
    """
    values = _container(configuration.cfg)
    schema.check_targets(values)
    schema.check_run(values, configuration.options)
    return configuration


# What the user typed


def parse(overrides: Sequence[str], config_loader: ConfigLoader | None = None) -> list[Override]:
    """The overrides by Hydra's grammar.

    Args:
        overrides: as on the command line.
        config_loader: Hydra's, to expand `glob(…)`.

    Raises:
        ExperimentError: one that breaks the grammar.
    """
    try:
        parsed = OverridesParser.create(config_loader=config_loader).parse_overrides(list(overrides))
    except HydraException as error:
        culprit = getattr(error, "override", None) or " ".join(overrides)
        raise _no_override(culprit) from error
    for text, override in zip(overrides, parsed, strict=True):
        if not override.key_or_group:
            raise _no_override(text)
    return parsed


def anywhere(words: Sequence[str]) -> list[str]:
    """The words of a command line with paths that hold in any working directory."""
    found = []
    for before, word in zip(["", *words], words, strict=False):
        key, _, value = word.partition("=")
        if before in _FOLDER_OPTIONS:
            word = _absolute(word)
        elif key in _FOLDER_OPTIONS and value:
            word = f"{key}={_absolute(value)}"
        elif key in _PATHS:
            (override,) = parse([word])
            if not override.is_sweep_override() and isinstance(path := override.value(), str):
                quoted = _absolute(path).replace("'", r"\'")
                word = f"{key}='{quoted}'" if not os.path.isabs(path) else word
        found.append(word)
    return found


def _parsed(overrides: Sequence[str]) -> Iterator[tuple[str, Override]]:
    return zip(overrides, parse(overrides), strict=True)


def _no_override(text: str) -> ExperimentError:
    return ExperimentError(
        f"{text}: this is no override.", advice="Write key=value; quote a value with special characters."
    )


def _check_overrides(overrides: Sequence[str], config_dir: str | None) -> None:
    """Refuses what Hydra would take, such as any misspelt key after `+`, and what it would not explain."""
    for text, override in _parsed(overrides):
        key = override.key_or_group
        if (override.is_delete() and key in GROUPS) or (key in _CHOOSABLE and not _is_choice(override)):
            advice = {"callbacks": "For none write callbacks=[].", "experiment": "For none leave it out."}.get(key, "")
            raise ExperimentError(f"{text}: {key} needs an option.", allowed=_options(key, config_dir), advice=advice)
        if not (override.is_add() or override.is_force_add()) or f"{key}.".startswith((_FREE, "hydra.")):
            continue
        known = _known(overrides, config_dir)
        if key not in _keys(known):
            raise _unknown_key(key, known, f"Only free tags are added with +, as in +{_FREE}idea=x.")
        if override.is_add() or key in _CHOOSABLE:
            raise ExperimentError(f"{text}: {key} is there already.", advice=f"Write it without +: {text.lstrip('+')}")


def _is_choice(override: Override) -> bool:
    """Whether a group gets an option, or a mapping that changes keys of the option chosen elsewhere."""
    value = override.value()
    if override.key_or_group == "callbacks" and isinstance(value, list):
        return all(isinstance(name, str) for name in value)
    return isinstance(value, str | dict) or override.is_delete()


def _options(group: str, config_dir: str | None) -> set[str]:
    return {file.stem for folder in folders(config_dir) for file in (folder / group).glob("*.yaml")}


def _known(overrides: Sequence[str], config_dir: str | None) -> Configuration:
    """The keys that there are with the options that `overrides` choose."""
    chosen = [
        text
        for text, override in _parsed(overrides)
        if text.partition("=")[0] in _CHOOSABLE and not isinstance(override.value(), dict)
    ]
    cfg = _composed(chosen, config_dir)
    return _configuration(cfg, cfg.hydra.runtime.choices, chosen, config_dir)


def _keys(known: Configuration) -> set[str]:
    """Every dotted key that may be given a value."""
    leaves = [str(key) for key, _ in _leaves(_container(known.cfg))]
    inner = {".".join(key.split(".")[:depth]) for key in leaves for depth in range(1, key.count(".") + 1)}
    return {*leaves, *inner, *_CHOOSABLE}


def _explain(error: Exception, overrides: Sequence[str], config_dir: str | None) -> ExperimentError:
    """Hydra's, OmegaConf's or YAML's complaint in one short message with the nearest name."""
    problem = first_line(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return ExperimentError(f"{mark.name}, line {mark.line + 1}: {error.problem}.")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        names = error.options or _options(group, config_dir)
        return ExperimentError(f"{group}={option}: there is no such option.", given=option, allowed=names)
    if unknown := re.match(r"Could not (?:override|delete|delete from config\.) '(.+?)'", problem):
        known = _known(overrides, config_dir)
        return _unknown_inside(unknown[1], overrides, known)
    if problem.startswith("Error merging override "):
        text = problem.removeprefix("Error merging override ")
        return ExperimentError(f"{text} is refused: {first_line(error.__cause__)}.")
    return ExperimentError(f"{problem.rstrip('.')}.")


def _unknown_inside(key: str, overrides: Sequence[str], known: Configuration) -> ExperimentError:
    """The refusal of `key`, or of an unknown key in the mapping that it was given."""
    given = [override.value() for override in parse(overrides) if override.key_or_group == key]
    inside = [name for value in given if isinstance(value, dict) for name, _ in _leaves(value, f"{key}.")]
    name = next((name for name in [*inside, key] if name not in _keys(known)), None)
    if name is None:
        return ExperimentError(f"~{key}: {key} cannot be left out.")
    return _unknown_key(name, known, f"A free tag is added with +{name}=…" if name.startswith(_FREE) else "")


def first_line(error: BaseException | None) -> str:
    """What an exception of Hydra or OmegaConf says, without the lines about their insides."""
    said = re.sub(r"\w+ raised while (composing config|resolving interpolation):\s", "", str(error))
    plain = said.replace("DictConfig", "a mapping").replace("ListConfig", "a list")
    return plain.partition("\n")[0] or first_line(error and error.__cause__)


def _unknown_key(key: str, known: Configuration, advice: str = "") -> ExperimentError:
    """Names the keys that stand beside the unknown one, and the nearest of them or of all."""
    names = {name for name in _keys(known) if not name.endswith("_target_") and name not in schema.OF_A_JOB}
    parent, _, last = key.rpartition(".")
    beside = {name.rpartition(".")[2] for name in names if name.rpartition(".")[0] == parent}
    group = key.partition(".")[0]
    of_groups = {name for name in names if not name.startswith("tracking.")}
    searched = sorted(of_groups) if group in GROUPS else [*sorted(names - of_groups), *sorted(of_groups)]
    elsewhere = {name.rpartition(".")[2]: name for name in searched}
    option = f"{group}={known.choices[group]} has" if parent and group in known.choices else "there is"
    problem = f"{key}: {option} no such key."
    if group != "hydra" and last in elsewhere and not did_you_mean(last, beside):
        problem += f" Did you mean {elsewhere[last]}?"
    return ExperimentError(problem, given=last, allowed=beside, advice=advice)


# Building what the configuration describes


def instantiate(cfg: DictConfig, key: str, **run_values: Any) -> Any:
    """What `cfg[key]` describes, built.

    Args:
        cfg: the whole configuration.
        key: a key whose value is a mapping with `_target_`, such as `model` or `callbacks.early_stopping`.
        **run_values: what only the run knows; those that the target has a parameter for are passed to it.

    Raises:
        ExperimentError: an unknown or missing parameter, a value of the wrong type or range, or what a class of Keras
            refuses.
    """
    node = OmegaConf.select(cfg, key)
    parts = {path: part for path, part in schema.mappings(_container(node), key) if "_target_" in part}
    for path, part in parts.items():
        schema.check_arguments(path, part, run_values if path == key else {})
    target = node["_target_"]
    named = inspect.signature(schema.locate(key, target)).parameters
    try:
        build = hydra.utils.instantiate(node, _partial_=True, _convert_="all")
        return build(**{name: value for name, value in run_values.items() if name in named})
    except InstantiationException as error:  # of a part inside the node
        named_by_hydra = re.search(r"full_key: (\S+)", str(error))
        # Hydra writes layers1 for an entry of a list, but layers[1].x for what is in it.
        paths = {re.sub(r"[][]", "", path): path for path in parts}
        path = paths[re.sub(r"[][]", "", named_by_hydra[1])] if named_by_hydra else key
        raise _refused_part(path, parts[path]["_target_"], error.__cause__ or error) from error
    except Exception as error:
        raise _refused_part(key, target, error) from error


def _refused_part(key: str, target: str, error: BaseException) -> BaseException:
    """What a class of Keras refuses is a mistake in the configuration, anything else is shown as it is."""
    if isinstance(error, ExperimentError) or not target.startswith("keras."):
        return error
    return ExperimentError(f"{key}: {target} refuses it: {' '.join(str(error).split())}")


# Reading values


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _container(cfg: DictConfig) -> Any:
    try:
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        problem = first_line(error)
        unknown = re.fullmatch("Interpolation key '(.+)' not found", problem)
        names = [name for name, _ in _leaves(cast(dict[str, Any], OmegaConf.to_container(cfg)))]
        question = did_you_mean(unknown[1], names) if unknown else ""
        raise ExperimentError(f"{error.full_key}: {problem}.", advice=question) from error


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; lists are values, and so are empty mappings."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# Code as a part of the identity

_RESULT_MODULES = ("train", "data", "models", "schedules", "training", "checkpoints", "evaluation", "costs", "results")


def read_own_code() -> str:
    """Digest of this package's sources that can change a number, and of the versions of TensorFlow and Keras."""
    sources = [(_PACKAGE / f"{module}.py").read_text() for module in _RESULT_MODULES]
    return digest([*sources, version("tensorflow"), version("keras")])


def code_sha256(own_code: str, cfg: DictConfig) -> str:
    """`own_code` and the source of every module of the user that a `_target_` names."""
    targets = {node["_target_"]: key for key, node in schema.mappings(_container(cfg), "") if "_target_" in node}
    foreign = sorted(target for target in targets if not target.startswith(("keras.", "experiments.")))
    files = sorted({str(inspect.getsourcefile(schema.locate(targets[target], target))) for target in foreign})
    sources = [Path(file).read_text() for file in files]
    return digest([own_code, *sources]) if sources else own_code
