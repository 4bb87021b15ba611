"""Compose, check, identify and instantiate a configuration; knows neither Keras nor MLflow."""

import contextlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.config.configuration import (
    NO_IDENTITY,
    SELECTABLE,
    Configuration,
    flatten,
    is_argument,
    known_keys,
    plain_values,
    unknown_key,
)
from experiments.config.earlier import current_values, current_words
from experiments.config.identity import PACKAGE
from experiments.config.overrides import as_typed, first_line, for_hydra, is_choice, pairs, parse, quoted
from experiments.config.schema import GROUPS, JOB_KEY, LIST_GROUPS, check_run
from experiments.config.targets import check_targets
from experiments.errors import ExperimentError

_CHECKOUT = PACKAGE.parents[1]
#: The checkout that this package is imported from; None for an installed package.
CHECKOUT = _CHECKOUT if (_CHECKOUT / "conf" / "config.yaml").exists() else None
#: The options of this package: the checkout's, for a wheel its own copy.
CONF_DIR = (CHECKOUT or PACKAGE) / "conf"
CUSTOM_TAGS = "tracking.tags."
_ERRORS = (HydraException, OmegaConfBaseException, ValueError, yaml.YAMLError)


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
    """Composes one run without checking its values, such as a combination that a sweep leaves out.

    Raises:
        ExperimentError: an override that cannot work.
    """
    overrides = current_words(as_typed(overrides))
    _refuse_sweep(_swept(overrides), overrides, config_dir)
    _check_overrides(overrides, config_dir)
    cfg = _composed(overrides, config_dir)
    check_targets(OmegaConf.to_container(cfg.hydra), "hydra")
    if cfg.hydra.job.chdir:
        raise ExperimentError(
            "hydra.job.chdir=true: a run writes no files into its working directory, and relative paths would no "
            "longer mean the folder of the command.",
            advice="Leave it out.",
        )
    return _configuration(cfg, cfg.hydra.runtime.choices, overrides, config_dir)


def chosen_options(configuration: Configuration) -> Configuration:
    """The options that a configuration has chosen, with all values as their files have them; not checked.

    Raises:
        ExperimentError: an option that is not there any more.
    """
    words = [f"{group}={choice}" for group, choice in configuration.options.items()]
    for group in LIST_GROUPS:
        names = sorted(configuration.cfg.get(group) or {})
        words.append(f"{group}=[{','.join(map(quoted, names))}]")  # or nan would be a number
    cfg = _composed(words, configuration.config_dir)
    return _configuration(cfg, cfg.hydra.runtime.choices, words, configuration.config_dir)


def default_choices() -> dict[str, str]:
    """The choice of every group in config.yaml."""
    entries = yaml.safe_load((CONF_DIR / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    chosen = {group: choice for entry in entries if isinstance(entry, dict) for group, choice in entry.items()}
    return {group: f"[{','.join(choice)}]" if group in LIST_GROUPS else choice for group, choice in chosen.items()}


def check_command(overrides: Sequence[str], config_dir: str | None, *, multirun: bool) -> None:
    """Checks a command line before Hydra acts on it, except for swept values.

    Raises:
        ExperimentError: an override or a value that cannot work, or a sweep that is not asked for as one.
    """
    overrides = current_words(as_typed(overrides))
    swept = _swept(overrides)
    fixed = [text for text in overrides if text not in swept]
    compose(fixed, config_dir)
    if swept and not multirun and _composed(fixed, config_dir).hydra.mode is not RunMode.MULTIRUN:
        _refuse_sweep(swept, overrides, config_dir)


def _swept(overrides: Sequence[str]) -> list[str]:
    return [text for text, override in pairs(overrides) if override.is_sweep_override()]


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
    words = current_words(as_typed(job.overrides.task))
    overrides = [text for text in words if not text.startswith(JOB_KEY)]
    _check_overrides(overrides, config_dir)
    return checked(_configuration(cfg, job.runtime.choices, overrides, config_dir))


def restored(text: str, overrides: Sequence[str], experiment: str | None, choices: Mapping[str, str]) -> Configuration:
    """The configuration of a recorded run, checked like a newly composed one.

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
    values = current_values(values) | {key: plain_values(today.cfg)[key] for key in NO_IDENTITY}
    options = {group: choices.get(group, "") for group in today.options}
    words = tuple(current_words(overrides))
    return checked(Configuration(DictConfig(values), words, experiment, options))


def folders(config_dir: str | None) -> list[Path]:
    """The folders of options: that of this package, then the user's.

    Raises:
        ExperimentError: the user's folder does not exist.
    """
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ExperimentError(f"--config-dir {config_dir}: there is no such folder.")
    return [CONF_DIR, *([Path(config_dir)] if config_dir else [])]


def option_files(config_dir: str | None) -> dict[str, list[Path]]:
    """Group, such as `model` or `hydra/launcher` -> the files of its options, those of the user's folder last."""
    found: dict[str, list[Path]] = {}
    for folder in folders(config_dir):
        for file in sorted(folder.glob("*/**/*.yaml")):
            found.setdefault(file.parent.relative_to(folder).as_posix(), []).append(file)
    return found


def first_comment(file: Path) -> str:
    """The first comment line of an option's file, which describes it; directives such as `@package` are skipped."""
    comments = (line[1:].strip() for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    return next((comment for comment in comments if not comment.startswith("@")), "")


def _composed(overrides: Sequence[str], config_dir: str | None) -> DictConfig:
    places = [quoted(f"file://{folder.resolve()}") for folder in folders(config_dir)[1:]]
    search = f"hydra.searchpath=[{','.join(places)}]"
    words = for_hydra(overrides)
    added = [text.partition("=")[0] for text, word in zip(overrides, words, strict=True) if text != word]
    with (
        _no_other_hydra(),
        initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR), job_name="experiments"),
    ):
        with contextlib.suppress(*_ERRORS):
            cfg = hydra_compose("config", overrides=[search, *words], return_hydra_config=True)
            if all(is_argument(key, cfg) for key in added):
                return cfg
        try:
            return hydra_compose("config", overrides=[search, *overrides], return_hydra_config=True)
        except _ERRORS as error:
            raise _explain(error, overrides, config_dir) from error


@contextlib.contextmanager
def _no_other_hydra() -> Iterator[None]:
    """Clears Hydra's global state for a moment, so that a sweep can compose its jobs while Hydra is running."""
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
    overridden = {override.key_or_group for override in parse(overrides) if not isinstance(override.value(), dict)}
    current = DictConfig(current_values(OmegaConf.to_container(without_hydra), overridden))
    options = {group: str(choices[group]) for group in GROUPS if group in choices}
    return Configuration(current, tuple(overrides), choices.get("experiment"), options, config_dir)


def checked(configuration: Configuration) -> Configuration:
    """Checks a configuration as far as possible without building it, and returns it.

    Raises:
        ExperimentError: a value that cannot work.
    """
    values = plain_values(configuration.cfg)
    check_targets(values)
    check_run(values, configuration.options)
    return configuration


def _check_overrides(overrides: Sequence[str], config_dir: str | None) -> None:
    """Rejects overrides that Hydra would accept, such as a misspelled key after `+`, or would not explain."""
    new_parts = _new_parts(overrides)
    for text, override in pairs(overrides):
        key = override.key_or_group
        if (override.is_delete() and key in GROUPS) or (key in SELECTABLE and not is_choice(override)):
            advice = {"experiment": "For none leave it out."}.get(key, "")
            if key in LIST_GROUPS:
                advice = f"For none write {key}=[]."
            raise ExperimentError(f"{text}: {key} needs an option.", allowed=_options(key, config_dir), advice=advice)
        allowed = (CUSTOM_TAGS, "hydra.", *new_parts)
        if not (override.is_add() or override.is_force_add()) or f"{key}.".startswith(allowed):
            continue
        known = _known(overrides, config_dir)
        if key not in known_keys(known):
            raise unknown_key(key, known, _what_is_added(key.partition(".")[0]))
        if override.is_add() or key in SELECTABLE:
            raise ExperimentError(f"{text}: {key} is there already.", advice=f"Write it without +: {text.lstrip('+')}")


def _new_parts(overrides: Sequence[str]) -> set[str]:
    """The callbacks and metrics, as `callbacks.name.`, that are added by their class and not by a YAML file."""
    added = [override for override in parse(overrides) if override.is_add() or override.is_force_add()]
    values = [(override.key_or_group.split("."), override.value()) for override in added]
    return {
        f"{key[0]}.{key[1]}."
        for key, value in values
        if key[0] in LIST_GROUPS
        and (key[2:] == ["_target_"] or (len(key) == 2 and isinstance(value, dict) and "_target_" in value))
    }


def _what_is_added(group: str) -> str:
    """A sentence about what + is for."""
    if group in LIST_GROUPS:
        return f"One without a YAML file is added by its class: +{group}.NAME._target_=keras.{group}.CLASS"
    return f"Only free tags are added with +, as in +{CUSTOM_TAGS}idea=x."


def _options(group: str, config_dir: str | None) -> set[str]:
    return {file.stem for folder in folders(config_dir) for file in (folder / group).glob("*.yaml")}


def _known(overrides: Sequence[str], config_dir: str | None) -> Configuration:
    """The keys that exist with the options chosen, and the parts added, by `overrides`."""
    new_parts = tuple(_new_parts(overrides))
    chosen = [
        text
        for text, override in pairs(overrides)
        if (text.partition("=")[0] in SELECTABLE and not isinstance(override.value(), dict))
        or (text.startswith("+") and f"{override.key_or_group}.".startswith(new_parts))
    ]
    cfg = _composed(chosen, config_dir)
    return _configuration(cfg, cfg.hydra.runtime.choices, chosen, config_dir)


def _explain(error: Exception, overrides: Sequence[str], config_dir: str | None) -> ExperimentError:
    """Translates an error of Hydra, OmegaConf or YAML into a short message with the nearest name."""
    problem = first_line(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return ExperimentError(f"{mark.name}, line {mark.line + 1}: {error.problem}.")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        names = error.options or _options(group, config_dir)
        advice = _what_is_added(group) if group in LIST_GROUPS else ""
        return ExperimentError(
            f"{group}={option}: there is no such option.", given=option, allowed=names, advice=advice
        )
    if unknown := re.match(r"Could not (?:override|delete|delete from config\.) '(.+?)'", problem):
        known = _known(overrides, config_dir)
        return _unknown_inside(unknown[1], overrides, known)
    if problem.startswith("Error merging override "):
        text = problem.removeprefix("Error merging override ")
        return ExperimentError(f"{text} is refused: {first_line(error.__cause__)}.")
    return ExperimentError(f"{problem.rstrip('.')}.")


def _unknown_inside(key: str, overrides: Sequence[str], known: Configuration) -> ExperimentError:
    """The error for an unknown key, or for an unknown key inside its mapping."""
    given = [override.value() for override in parse(overrides) if override.key_or_group == key]
    inside = [name for value in given if isinstance(value, dict) for name, _ in flatten(value, f"{key}.")]
    name = next((name for name in [*inside, key] if name not in known_keys(known)), None)
    if name is None:
        return ExperimentError(f"~{key}: {key} cannot be left out.")
    return unknown_key(name, known, f"A free tag is added with +{name}=…" if name.startswith(CUSTOM_TAGS) else "")
