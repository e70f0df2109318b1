from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from mmstudy.ranking.posterior import Pool, Posterior, Prior, _model, fit, log_likelihood, posterior, standardized

OPERATORS = ("net2net", "random", "lemon")
TRUE = Prior(2.0, 0.8, -1.0, -1.0, -1.0, -2.0, -2.0, -1.0, 2.0, 1.5)


def pool(rows: int = 20, seed: int = 0) -> Pool:
    random = np.random.default_rng(seed)
    operators = [OPERATORS[i] for i in random.integers(3, size=rows - 1)] + ["train on"]
    ranks = standardized(random.permutation(rows).astype(float))
    return Pool(ranks, standardized(random.normal(size=rows)), operators, 0.4, 0.02)


def drawn(prior: Prior, of: Pool, seed: int) -> np.ndarray:
    """Final scores as the model draws them."""
    random = np.random.default_rng(seed)
    mean, kernel = _model(of, prior)
    variance = stats.invgamma.rvs(np.exp(prior.log_shape), scale=np.exp(prior.log_scale), random_state=random)
    return of.now + of.spread * random.multivariate_normal(mean, variance * kernel)


def test_what_is_known_stays_and_the_rest_is_the_conditional_distribution():
    of = pool(6)
    final = drawn(TRUE, of, 1)
    seen = np.where(np.arange(6) < 3, final, np.nan)
    told = posterior(of, seen, TRUE)
    mean, kernel = _model(of, TRUE)
    a, b = np.exp(TRUE.log_shape), np.exp(TRUE.log_scale)
    r = (seen[:3] - of.now) / of.spread - mean[:3]
    inverse = np.linalg.inv(kernel[:3, :3])
    expected = mean[3:] + kernel[3:, :3] @ inverse @ r
    scale = (b + r @ inverse @ r / 2) / (a + 1.5) * (kernel[3:, 3:] - kernel[3:, :3] @ inverse @ kernel[:3, 3:])
    np.testing.assert_allclose(told.mean, [*final[:3], *(of.now + of.spread * expected)])
    np.testing.assert_allclose(told.covariance[3:, 3:], of.spread**2 * scale)
    assert not told.covariance[:3].any()
    assert told.degrees == pytest.approx(2 * a + 3)


@pytest.mark.parametrize("known", [0, 4])
def test_intervals_hold_as_often_as_they_say(known):
    inside = []
    for seed in range(300):
        of = pool(12, seed)
        final = drawn(TRUE, of, seed)
        seen = np.where(np.arange(12) >= 12 - known, final, np.nan)
        _, low, high = posterior(of, seen, TRUE).gains(0.8)
        gain = final - final[-1]
        open_rows = np.isnan(seen)[:-1]
        inside.append(((low <= gain) & (gain <= high))[:-1][open_rows].mean())
    error = np.std(inside) / len(inside) ** 0.5
    assert abs(np.mean(inside) - 0.8) < 4 * error
    assert error < 0.02


def test_draws_are_of_that_distribution():
    told = posterior(pool(5), np.full(5, np.nan), TRUE)
    draws = told.draws(40_000)
    np.testing.assert_allclose(np.median(draws, axis=0), told.mean, atol=4 * np.sqrt(told.covariance.max() / 40_000))
    spread = np.cov(draws.T) * (told.degrees - 2) / told.degrees
    np.testing.assert_allclose(spread, told.covariance, atol=0.05 * told.covariance.max())


def test_without_a_full_training_the_order_is_that_of_the_score():
    of = pool(15)
    mean = posterior(of, np.full(15, np.nan), TRUE).mean[:-1]
    assert stats.spearmanr(mean, of.rank[:-1]).statistic == pytest.approx(1)


def test_full_trainings_turn_an_order_round():
    of = pool(15)
    final = np.full(15, np.nan)
    for i in (0, 4, 8, 12):
        final[i] = 0.5 - 0.03 * of.rank[i]
    prior = replace(TRUE, slope=0.2, log_slope=2.0, log_width=-6.0, log_operator=-6.0)
    mean = posterior(of, final, prior).mean
    open_rows = np.isnan(final)[:-1]
    assert stats.spearmanr(mean[:-1][open_rows], of.rank[:-1][open_rows]).statistic < -0.9


def test_the_likelihood_is_that_of_a_t_distribution():
    of, final = pool(2), np.array([0.45, np.nan])
    mean, kernel = _model(of, TRUE)
    a, b = np.exp(TRUE.log_shape), np.exp(TRUE.log_scale)
    expected = stats.t.logpdf((0.45 - 0.4) / 0.02, 2 * a, mean[0], np.sqrt(b / a * kernel[0, 0]))
    assert log_likelihood(of, final, TRUE) == pytest.approx(expected)


def test_the_fit_finds_the_prior_that_made_the_data():
    tasks = [(of := pool(20, seed), drawn(TRUE, of, seed)) for seed in range(60)]
    found = fit(tasks)
    assert found.level == pytest.approx(TRUE.level, abs=0.4)
    assert found.slope == pytest.approx(TRUE.slope, abs=0.3)
    assert found.own == pytest.approx(TRUE.own, abs=0.4)
    likely = [sum(log_likelihood(*task, prior) for task in tasks) for prior in (found, TRUE, Prior())]
    assert likely[0] > likely[1] - 2
    assert likely[1] > likely[2]


def test_equal_values_are_zeros():
    assert not standardized([3.0, 3.0]).any()


def test_scores_of_another_pool_are_refused():
    with pytest.raises(ValueError, match="3 final scores for a pool of 5"):
        posterior(pool(5), np.zeros(3), TRUE)


def told_of(trained: int, seed: int = 0) -> tuple[Posterior, np.ndarray]:
    """A distribution of six final scores of which some are known, and among which rows one chooses."""
    of = pool(6, seed)
    final = np.where(np.arange(6) < trained, drawn(TRUE, of, seed), np.nan)
    return posterior(of, final, TRUE), np.isfinite(final) if trained else np.full(6, True)


@pytest.mark.parametrize("trained", [0, 2])
@pytest.mark.parametrize("seed", range(3))
def test_worth_is_what_the_choice_gains_once_one_more_score_is_known(trained, seed):
    told, choice = told_of(trained, seed)
    scores, now = told.draws(100_000), told.mean[choice].max()
    for i in range(6):
        among = np.flatnonzero(choice | (np.arange(6) == i))
        expected = scores[:, among].copy()
        for alike in np.array_split(np.argsort(scores[:, i]), 200):  # draws in which this row comes to about the same
            expected[alike] = scores[np.ix_(alike, among)].mean(0)
        taken = scores[np.arange(len(scores)), among[expected.argmax(1)]]
        gained = taken - scores[:, told.mean == now][:, 0]
        assert abs(told.worth(choice)[i] - gained.mean()) < 5 * gained.std() / len(scores) ** 0.5 + 1e-5


def test_worth_is_never_negative_and_nothing_for_what_is_known():
    told, choice = told_of(2)
    worth = told.worth(choice)
    assert (worth >= 0).all()
    assert not worth[:2].any()
    assert worth[2:].all()
