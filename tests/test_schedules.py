"""Learning rates at the steps that users reason about, derived by hand."""

import math

import keras
import pytest

from experiments import schedules
from experiments.config.compose import CONF_DIR
from experiments.config.targets import instantiate
from experiments.errors import ExperimentError
from experiments.training.runtime import start_runtime

STEPS = {"total_steps": 40, "steps_per_epoch": 10}


@pytest.fixture(scope="module", autouse=True)
def runtime():
    """The threads and determinism of every test that computes: one process can have only one of each."""
    start_runtime(seed=0, threads=2, deterministic=True, precision="float32")


def rates(schedule, *steps):
    return [float(schedule(step)) for step in steps]


def near(*expected):
    return pytest.approx(list(expected), rel=1e-5, abs=1e-8)


def half_cosine(fraction):
    return (1 + math.cos(math.pi * fraction)) / 2


def test_constant_is_the_number_itself():
    assert schedules.constant(learning_rate=0.003) == 0.003


def test_cosine_with_warm_up():
    schedule = schedules.cosine(learning_rate=0.4, warmup_epochs=1.0, final_fraction=0.25, **STEPS)
    # 10 steps up, 30 down to a quarter: 0.1 + 0.3 * half_cosine.
    assert rates(schedule, 0, 1, 5, 9) == near(0, 0.04, 0.2, 0.36)
    assert rates(schedule, 10, 20, 25, 30) == near(0.4, 0.1 + 0.3 * 0.75, 0.1 + 0.3 * 0.5, 0.1 + 0.3 * 0.25)
    assert rates(schedule, 39) == near(0.1 + 0.3 * half_cosine(29 / 30))
    assert rates(schedule, 40, 1000) == near(0.1, 0.1)


def test_cosine_warms_up_for_parts_of_an_epoch():
    schedule = schedules.cosine(learning_rate=1.0, warmup_epochs=0.5, final_fraction=0.0, **STEPS)
    assert rates(schedule, 0, 1, 4, 5) == near(0, 0.2, 0.8, 1)
    assert rates(schedule, 5 + 35 / 2) == near(0.5)


def test_cosine_without_warm_up_starts_at_the_peak():
    schedule = schedules.cosine(learning_rate=0.4, warmup_epochs=0.0, final_fraction=0.0, **STEPS)
    assert rates(schedule, 0, 10, 20, 30) == near(0.4, 0.4 * half_cosine(0.25), 0.2, 0.4 * half_cosine(0.75))
    assert rates(schedule, 39, 40) == near(0.4 * half_cosine(39 / 40), 0)


@pytest.mark.parametrize("warmup_epochs", [4.0, 8.0])
def test_cosine_whose_warm_up_is_as_long_as_the_run_or_longer_only_rises(warmup_epochs):
    schedule = schedules.cosine(learning_rate=0.4, warmup_epochs=warmup_epochs, final_fraction=0.0, **STEPS)
    step = 0.4 / (10 * warmup_epochs)
    assert rates(schedule, 0, 1, 20, 39) == near(0, step, 20 * step, 39 * step)


def test_one_cycle():
    schedule = schedules.one_cycle(
        learning_rate=0.5, total_steps=40, warmup_fraction=0.25, initial_divisor=25.0, final_divisor=10000.0
    )
    first, last = 0.5 / 25, 0.5 / 10000
    # 10 steps up, 30 down.
    assert rates(schedule, 0, 1, 5, 9) == near(
        first, first + 0.1 * (0.5 - first), (first + 0.5) / 2, first + 0.9 * (0.5 - first)
    )
    assert rates(schedule, 10, 25) == near(0.5, (0.5 + last) / 2)
    assert max(rates(schedule, *range(40))) == rates(schedule, 10)[0]
    # Steps are counted from 0: the end of the curve would be the step after the run's last one.
    assert rates(schedule, 39, 40) == near(last + (0.5 - last) * half_cosine(29 / 30), last)


def test_one_cycle_without_rise_starts_at_the_peak():
    schedule = schedules.one_cycle(
        learning_rate=0.5, total_steps=40, warmup_fraction=0.0, initial_divisor=25.0, final_divisor=100.0
    )
    assert rates(schedule, 0, 20, 40) == near(0.5, (0.5 + 0.005) / 2, 0.005)


def test_one_cycle_without_fall_ends_near_the_peak():
    schedule = schedules.one_cycle(
        learning_rate=0.5, total_steps=40, warmup_fraction=1.0, initial_divisor=10.0, final_divisor=100.0
    )
    assert rates(schedule, 0, 20, 39) == near(0.05, 0.275, 0.05 + 0.45 * 39 / 40)


def test_one_cycle_of_a_single_step_takes_the_peak():
    schedule = schedules.one_cycle(
        learning_rate=0.5, total_steps=1, warmup_fraction=0.25, initial_divisor=25.0, final_divisor=100.0
    )
    assert rates(schedule, 0) == near(0.5)


def test_step():
    schedule = schedules.step(learning_rate=0.2, steps_per_epoch=10, factor=0.1, every_epochs=3)
    assert rates(schedule, 0, 29, 30, 59, 60, 90) == near(0.2, 0.2, 0.02, 0.02, 0.002, 0.0002)


def test_exponential():
    schedule = schedules.exponential(learning_rate=0.2, steps_per_epoch=10, factor=0.9)
    assert rates(schedule, 0, 5, 10, 20) == near(0.2, 0.2 * math.sqrt(0.9), 0.2 * 0.9, 0.2 * 0.81)


@pytest.mark.parametrize(
    ("option", "overrides", "expected"),
    [
        ("constant", [], [1, 1, 1, 1]),
        ("cosine", [], [0, 1, 0.75, 0.25]),
        ("cosine", ["schedule.warmup_epochs=0"], [1, half_cosine(0.25), 0.5, half_cosine(0.75)]),
        ("one_cycle", ["schedule.warmup_fraction=0"], [1, half_cosine(0.25), 0.5, half_cosine(0.75)]),
        ("step", [], [1, 1, 1, 0.1]),
        ("exponential", [], [1, 0.9, 0.81, 0.729]),
    ],
)
def test_a_learning_rate_of_1_is_a_number_like_any_other(compose, option, overrides, expected):
    cfg = compose(f"schedule={option}", "optimizer=sgd", "optimizer.learning_rate=1", *overrides).cfg
    schedule = instantiate(cfg, "schedule", learning_rate=cfg.optimizer.learning_rate, **STEPS)
    optimizer = instantiate(cfg, "optimizer", learning_rate=schedule)
    optimizer.build([keras.Variable([0.0])])
    seen = []
    for step in (0, 10, 20, 30):
        optimizer.iterations.assign(step)
        seen.append(float(optimizer.learning_rate))
    assert seen == pytest.approx(expected, abs=2e-4)  # one cycle ends at a ten-thousandth


#: The learning rate at steps 0, 10, 20 and 39 of 40, 10 an epoch, with a peak of 0.001.
EXPECTED = {
    "constant": [1e-3, 1e-3, 1e-3, 1e-3],
    "cosine": [0, 1e-3, 0.75e-3, 1e-3 * half_cosine(29 / 30)],
    "one_cycle": [4e-5, 1e-3, 1e-7 + 0.75 * (1e-3 - 1e-7), 1e-7 + (1e-3 - 1e-7) * half_cosine(29 / 30)],
    "step": [1e-3, 1e-3, 1e-3, 1e-4],
    "exponential": [1e-3, 0.9e-3, 0.81e-3, 1e-3 * 0.9**3.9],
}


def test_every_schedule_option_has_an_expectation():
    options = {file.stem for file in (CONF_DIR / "schedule").glob("*.yaml")}
    assert len(options) >= 5
    assert options == set(EXPECTED)


@pytest.mark.parametrize("option", EXPECTED)
def test_every_option_builds_from_what_the_run_knows(compose, option):
    cfg = compose(f"schedule={option}").cfg
    schedule = instantiate(cfg, "schedule", learning_rate=cfg.optimizer.learning_rate, **STEPS)
    optimizer = instantiate(cfg, "optimizer", learning_rate=schedule)
    optimizer.build([keras.Variable([0.0])])
    seen = []
    for step in (0, 10, 20, 39):
        optimizer.iterations.assign(step)
        seen.append(float(optimizer.learning_rate))
    assert seen == near(*EXPECTED[option])


@pytest.mark.parametrize("option", sorted({file.stem for file in (CONF_DIR / "optimizer").glob("*.yaml")}))
def test_every_optimizer_takes_the_rate_of_the_schedule(compose, option):
    cfg = compose(f"optimizer={option}", "schedule=cosine", "optimizer.learning_rate=0.5").cfg
    schedule = instantiate(cfg, "schedule", learning_rate=cfg.optimizer.learning_rate, **STEPS)
    optimizer = instantiate(cfg, "optimizer", learning_rate=schedule)
    optimizer.build([keras.Variable([0.0])])
    optimizer.iterations.assign(5)
    assert float(optimizer.learning_rate) == pytest.approx(0.25)


@pytest.mark.parametrize(
    "override",
    [
        "schedule=cosine schedule.warmup_epochs=-1",
        "schedule=cosine schedule.final_fraction=1.5",
        "schedule=one_cycle schedule.warmup_fraction=1.1",
        "schedule=one_cycle schedule.initial_divisor=0.5",
        "schedule=step schedule.every_epochs=0",
        "schedule=step schedule.every_epochs=1.5",
        "schedule=exponential schedule.factor=0",
    ],
)
def test_knobs_out_of_range_are_refused_with_their_key(compose, override):
    cfg = compose(*override.split()).cfg
    key = override.split()[1]
    with pytest.raises(ExperimentError, match=f"^{key} is refused: it must be a "):
        instantiate(cfg, "schedule", learning_rate=0.1, **STEPS)
