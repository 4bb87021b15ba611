"""Decisions after every seed: p-values over all looks, what is settled, and who gets the next seed."""

import numpy as np
import pytest
from scipy import stats

from experiments.compare.sequential import Race, Standing, p_over_looks
from experiments.compare.statistics import Sample

SEEDS = np.arange(3, 31)


def sample(scores):
    return Sample(dict(enumerate(scores.mean(axis=1).tolist())), scores=scores, images="the same")


def scores_of(*means, seeds=30, images=400, seed_sd=0.01, image_sd=0.1, random_seed=0):
    """Scores of variants, (seeds, images) each, that average to `means` up to what seeds and images add."""
    random = np.random.default_rng(random_seed)
    return [
        mean
        + random.normal(0, seed_sd, (seeds, 1))
        + random.normal(0, image_sd, (1, images))
        + random.normal(0, 0.01, (seeds, images))
        for mean in means
    ]


@pytest.mark.parametrize("ratio", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("statistic", [1.5, 2.0, 2.5])
def test_the_p_value_over_all_looks_is_what_a_simulation_finds(ratio, sides, statistic):
    variance = 1 / SEEDS + ratio / 30
    times = variance[-1] / variance
    steps = np.random.default_rng(0).normal(size=(100_000, len(times))) * np.sqrt(np.diff([0, *times]))
    looks = steps.cumsum(axis=1) / np.sqrt(times) * times**0.2
    reached = (abs(looks) if sides == 2 else looks).max(axis=1) >= statistic
    p = p_over_looks(times, statistic, sides)
    # Looks that lie close together count as one, which costs a few percent of the p-value.
    assert 0.9 * reached.mean() - 0.002 < p < 1.02 * reached.mean() + 0.002


def test_a_single_look_is_the_ordinary_test():
    assert p_over_looks(np.ones(1), 1.959964) == pytest.approx(0.05, abs=1e-6)
    assert p_over_looks(np.ones(1), 1.644854, sides=1) == pytest.approx(0.05, abs=1e-6)
    assert p_over_looks(np.ones(1), 0.0) == 1.0


def run_race(race, scores, sign=1):
    """The decisions at the end, and the number of seeds of each variant after every round."""
    wanted, counts, rounds = dict.fromkeys(range(len(scores)), 3), [0] * len(scores), []
    while wanted:
        for number, seeds in wanted.items():
            counts[number] = seeds
        rounds.append(tuple(counts))
        decisions = race.decide({n: sample(each[: counts[n]]) for n, each in enumerate(scores)}, sign)
        wanted = race.next_seeds(decisions)
    return decisions, rounds


def test_a_clear_difference_is_settled_by_the_first_seeds():
    decisions, rounds = run_race(Race(30), scores_of(0.5, 0.1, 0.9, seed_sd=0.0001, image_sd=0.02))
    assert len(rounds) <= 3
    assert [decisions[n].standing for n in range(3)] == [Standing.WORSE, Standing.WORSE, Standing.BEST]
    assert decisions[2].difference is None
    assert decisions[1].difference == pytest.approx(-0.8, abs=0.05)


def test_where_less_is_better_the_lowest_is_the_best():
    decisions, _ = run_race(Race(30), scores_of(0.5, 0.1, 0.9, seed_sd=0.0001, image_sd=0.02), sign=-1)
    assert [decisions[n].standing for n in range(3)] == [Standing.WORSE, Standing.BEST, Standing.WORSE]
    assert decisions[2].difference == pytest.approx(0.8, abs=0.05)


def test_only_those_in_question_get_more_seeds():
    decisions, rounds = run_race(Race(8), scores_of(0.900, 0.1, 0.902, image_sd=0.0, seed_sd=0.01))
    assert rounds == [(k, 3, k) for k in range(3, 9)]
    assert decisions[1].standing == Standing.WORSE and decisions[1].seeds == 3
    assert sorted([decisions[0].standing, decisions[2].standing]) == [Standing.BEST, Standing.CAP]


def test_a_variant_that_has_left_the_race_no_longer_counts_among_the_pairs():
    scores = scores_of(0.900, 0.902, 0.1, image_sd=0.0, seed_sd=0.01)
    decisions, _ = run_race(Race(8), scores)
    two, _ = run_race(Race(8), scores[:2])
    assert decisions[2].standing == Standing.WORSE
    assert [decisions[n].standing for n in range(2)] == [two[n].standing for n in range(2)]
    assert max(d.p for d in two.values() if d.p) == max(decisions[n].p for n in range(2) if decisions[n].p)


def test_a_variant_that_has_left_the_race_stays_out_whoever_is_best_later():
    random = np.random.default_rng(0)
    seeds = random.normal(0, 0.001, (3, 12))
    seeds[0] += [0.9] * 3 + [0.5] * 9  # the first is the best of three seeds, and then the worst
    seeds[1] += 0.8
    seeds[2] += 0.7
    samples = {number: Sample(dict(enumerate(values.tolist()))) for number, values in enumerate(seeds)}
    decisions = Race(12).decide(samples, 1)
    third = decisions[2]
    assert (third.standing, third.seeds, third.best) == (Standing.WORSE, 3, 0)
    assert third.difference == pytest.approx(-0.2, abs=0.01)
    assert abs(third.difference) > third.half_width and third.p < 0.05


def test_the_decisions_are_the_same_seed_by_seed_and_all_at_once():
    for random_seed in range(5):
        scores = scores_of(0.9, 0.903, 0.91, 0.88, seeds=12, images=40, image_sd=0.01, random_seed=random_seed)
        decisions, rounds = run_race(Race(12), scores)
        trained = {number: sample(scores[number][:seeds]) for number, seeds in enumerate(rounds[-1])}
        assert Race(12).decide(trained, 1) == decisions
        more = Race(12).decide({number: sample(each) for number, each in enumerate(scores)}, 1)
        found = [[(each.standing, each.seeds) for _, each in sorted(of.items())] for of in (more, decisions)]
        assert found[0] == found[1]  # seeds that the race has not asked for change nothing


def test_a_race_that_only_more_images_could_settle_ends():
    decisions, rounds = run_race(Race(30), scores_of(0.9, 0.9, image_sd=0.5))
    assert rounds == [(3, 3)]
    assert sorted(found.standing for found in decisions.values()) == [Standing.BEST, Standing.IMAGES]


def test_variants_within_the_margin_are_equal():
    alike = scores_of(0.9, 0.9, image_sd=0.01, random_seed=1)
    decisions, rounds = run_race(Race(30, equal_within=0.05), alike)
    assert sorted(found.standing for found in decisions.values()) == [Standing.BEST, Standing.EQUAL]
    assert len(rounds) < 28
    narrower, _ = run_race(Race(30, equal_within=0.0001), alike)
    assert Standing.EQUAL not in [found.standing for found in narrower.values()]


def test_the_first_look_at_two_variants_agrees_with_a_t_test():
    samples = [Sample({0: 0.91, 1: 0.92, 2: 0.90}), Sample({0: 0.94, 1: 0.945, 2: 0.942})]
    decisions = Race(3).decide(dict(enumerate(samples)), 1)
    exact = stats.ttest_rel(samples[0].array, samples[1].array).pvalue
    assert decisions[0].p == pytest.approx(1.25 * exact, rel=1e-6)  # for Student's t at several looks


@pytest.mark.slow
def test_races_between_equal_variants_seldom_find_a_difference():
    false = 0
    for random_seed in range(200):
        image_sd = (0.0, 0.1)[random_seed % 2]
        decisions, _ = run_race(
            Race(12), scores_of(*[0.9] * 4, seeds=12, images=40, image_sd=image_sd, random_seed=random_seed)
        )
        false += any(found.standing is Standing.WORSE for found in decisions.values())
    assert false <= 12  # 6 %


def test_a_gate_keeps_hardly_any_change_that_changes_nothing():
    kept = 0
    for random_seed in range(40):
        scores = scores_of(0.9, 0.9, seeds=12, images=40, image_sd=0.05, random_seed=random_seed)
        decisions, _ = run_race(Race(12), scores)
        kept += decisions[0].standing is Standing.WORSE  # the change, the second one, is better
    assert kept <= 2
