"""Search spaces in Hydra's grammar, as distributions of Optuna."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from experiments.config.configuration import REPLICATE_KEYS
from experiments.config.overrides import parse
from experiments.errors import ExperimentError
from experiments.sweeps.jobs import as_text


def search_space(
    arguments: Sequence[str], params: Mapping[str, Any], config_loader: ConfigLoader
) -> tuple[tuple[str, ...], dict[str, BaseDistribution]]:
    """The overrides that stay as they are, and the distribution of every key that is searched.

    `interval(1e-4, 0.1)` is any number in between, `tag(log, interval(…))` by its order of magnitude and
    `tag(int, interval(1, 9))` a whole one; `range(…)` its numbers, `choice(…)` and `a,b` one of the values.

    Args:
        arguments: overrides of the command line, which win.
        params: key -> text, of the configuration.
        config_loader: Hydra's.

    Raises:
        ExperimentError: nothing is searched, or over nothing, or a replicate key.
    """
    typed = parse(arguments, config_loader)
    keys = {part.key_or_group for part in typed}
    texts = [f"{key}={as_text(value)}" for key, value in params.items() if key not in keys]
    of_file = parse(texts, config_loader)
    parts = [*of_file, *typed]
    fixed = [text for text, part in zip([*texts, *arguments], parts, strict=True) if not part.is_sweep_override()]
    space = {part.get_key_element(): _distribution(part) for part in parts if part.is_sweep_override()}
    if not space:
        raise ExperimentError(
            "The search space names no parameter.",
            advice="Name some, as in 'optimizer.learning_rate=tag(log, interval(1e-4, 0.1))'.",
        )
    for key in REPLICATE_KEYS:
        if key in space:
            raise ExperimentError(
                f"{key} is searched, but it only repeats a trial: the search would choose the luckiest run.",
                advice=f"Give {key} one value, and hydra.sweeper.replicates=3 to train every trial with three seeds.",
            )
    return tuple(fixed), space


def _distribution(part: Override) -> BaseDistribution:
    value = part.value()
    meant = {"log", "int"} if isinstance(value, IntervalSweep) else set[str]()
    unknown: set[str] = getattr(value, "tags", set()) - meant
    if unknown:
        raise ExperimentError(
            f"{part.input_line}: the tag {', '.join(sorted(unknown))} says nothing here.",
            advice="An interval may have the tags log and int, anything else none.",
        )
    try:
        if isinstance(value, IntervalSweep):
            return _interval(value)
        if isinstance(value, RangeSweep) and not value.shuffle:
            return _range(value)
        return CategoricalDistribution(list(part.sweep_string_iterator()))
    except ValueError as error:
        raise ExperimentError(f"{part.input_line}: nothing can be chosen from it: {error}") from error


def _interval(value: IntervalSweep) -> BaseDistribution:
    low, high = value.start, value.end
    assert low is not None and high is not None  # noqa: S101 - Hydra's grammar wants both
    log = "log" in value.tags
    if "int" in value.tags:
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _range(value: RangeSweep) -> BaseDistribution:
    numbers = list(value.range())
    if not numbers:
        raise ValueError("it is empty")
    if all(isinstance(number, int) for number in numbers):
        return IntDistribution(numbers[0], numbers[-1], step=int(value.step))
    return FloatDistribution(float(numbers[0]), float(numbers[-1]), step=float(value.step))


def boundary_points(space: Mapping[str, BaseDistribution]) -> Iterator[dict[str, Any]]:
    """Points that together hold every choice and both bounds of every interval; the first holds all first values."""
    ends = {key: _ends(distribution) for key, distribution in space.items()}
    first = {key: values[0] for key, values in ends.items()}
    yield first
    for key, values in ends.items():
        for value in values[1:]:
            yield {**first, key: value}


def _ends(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)  # noqa: S101 - as above
    return [distribution.low, distribution.high]


def described(space: Mapping[str, BaseDistribution]) -> dict[str, str]:
    """The search space in words, key by key."""
    return {key: _described(distribution) for key, distribution in sorted(space.items())}


def _described(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return f"choice({', '.join(map(str, distribution.choices))})"
    assert isinstance(distribution, IntDistribution | FloatDistribution)  # noqa: S101 - as above
    kind = "whole numbers" if isinstance(distribution, IntDistribution) else "numbers"
    step = f" in steps of {distribution.step:g}" if distribution.step not in (None, 1) else ""
    return f"{kind} from {distribution.low:g} to {distribution.high:g}{step}{', log' if distribution.log else ''}"


def overrides(params: Mapping[str, Any]) -> dict[str, str]:
    """Searched key -> its value as an override has it, in full precision."""
    return {key: str(value) for key, value in params.items()}


def shortened(params: Mapping[str, Any], of: Iterable[str]) -> dict[str, str]:
    """Searched key -> its value in four digits, to be read."""
    return {key: f"{params[key]:.4g}" if isinstance(params[key], float) else str(params[key]) for key in of}
