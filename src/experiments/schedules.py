"""Learning-rate schedules whose lengths are given in epochs or fractions of the run, where Keras counts steps.

The run passes the peak `learning_rate` (the optimizer's) and, where a schedule needs them, `total_steps` and
`steps_per_epoch`. Rates are converted to floats, because Keras computes in the type of the rate.
"""

from typing import Annotated

from keras.optimizers import schedules
from pydantic import Field

_Rate = Annotated[float, Field(gt=0)]
_Fraction = Annotated[float, Field(ge=0, le=1)]


def constant(*, learning_rate: _Rate) -> float:
    """Keeps the learning rate constant."""
    return float(learning_rate)


def cosine(
    *,
    learning_rate: _Rate,
    total_steps: int,
    steps_per_epoch: int,
    warmup_epochs: Annotated[float, Field(ge=0)],
    final_fraction: _Fraction,
) -> schedules.CosineDecay:
    """Rises linearly from 0, then falls along half a cosine (Loshchilov and Hutter 2016, https://arxiv.org/abs/1608.03983).

    Args:
        learning_rate: peak learning rate.
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps per epoch.
        warmup_epochs: length of the rise; a rise longer than the run ends with the run.
        final_fraction: final learning rate, as a fraction of the peak.
    """
    return _rise_and_fall(0.0, learning_rate, final_fraction, round(warmup_epochs * steps_per_epoch), total_steps)


def one_cycle(
    *,
    learning_rate: _Rate,
    total_steps: int,
    warmup_fraction: _Fraction,
    initial_divisor: Annotated[float, Field(ge=1)],
    final_divisor: Annotated[float, Field(ge=1)],
) -> schedules.CosineDecay:
    """Rises linearly to a high peak, then falls to almost zero (Smith 2018, https://arxiv.org/abs/1803.09820).

    Args:
        learning_rate: peak learning rate.
        total_steps: optimizer steps of the whole run.
        warmup_fraction: fraction of the steps in which the learning rate rises.
        initial_divisor: the learning rate starts at the peak divided by this.
        final_divisor: the learning rate falls towards the peak divided by this.
    """
    rise = round(warmup_fraction * total_steps)
    return _rise_and_fall(learning_rate / initial_divisor, learning_rate, 1 / final_divisor, rise, total_steps)


def step(
    *,
    learning_rate: _Rate,
    steps_per_epoch: int,
    factor: Annotated[float, Field(gt=0, le=1)],
    every_epochs: Annotated[int, Field(ge=1)],
) -> schedules.ExponentialDecay:
    """Multiplies the learning rate by `factor` after every `every_epochs` epochs."""
    return schedules.ExponentialDecay(float(learning_rate), every_epochs * steps_per_epoch, factor, staircase=True)


def exponential(
    *, learning_rate: _Rate, steps_per_epoch: int, factor: Annotated[float, Field(gt=0, le=1)]
) -> schedules.ExponentialDecay:
    """Decays smoothly, by `factor` per epoch."""
    return schedules.ExponentialDecay(float(learning_rate), steps_per_epoch, factor)


def _rise_and_fall(
    initial: float, peak: float, final_fraction: float, rise: int, total_steps: int
) -> schedules.CosineDecay:
    if rise == 0:
        return schedules.CosineDecay(float(peak), total_steps, alpha=final_fraction)
    fall = max(total_steps - rise, 1)
    return schedules.CosineDecay(initial, fall, alpha=final_fraction, warmup_target=peak, warmup_steps=rise)
