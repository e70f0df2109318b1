"""What calibration cases teach, of the committed ones and of pools drawn from a known model."""

from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from mmstudy.core import results
from mmstudy.ranking.posterior import posterior
from mmstudy.ranking.priors import PRIORS
from mmstudy.study import calibration


@pytest.fixture(scope="module")
def told():
    found = results.load(Path(__file__).parents[2] / "outputs" / "reference" / "data" / "advice.nc")
    return found.isel(row=found["part"].values == "calibration")


def test_a_case_is_expected_under_a_prior_that_the_others_teach(told, monkeypatch):
    names = [*dict.fromkeys(told["case"].values)][:3]
    some = told.isel(row=np.isin(told["case"].values, names))
    fitted = []

    def fit(tasks):
        fitted.append([pool.now for pool, _ in tasks])
        return PRIORS[False]

    monkeypatch.setattr(calibration, "fit", fit)
    missed = calibration.misses(some).sel(anchored=False)
    now = [pool.now for pool, _ in calibration.pools(some, False)]
    assert fitted[:3] == [now[1:], now[::2], now[:2]]
    coverages = calibration.left_out(missed)
    assert coverages["case"].values.tolist() == names
    for name, (pool, final) in zip(names, calibration.pools(some, False), strict=True):
        expected, low, high = posterior(pool, np.full(len(final), np.nan), PRIORS[False]).gains(0.8)
        gain, rows = final - final[-1], missed.values[missed["case"].values == name]
        np.testing.assert_allclose(rows[:-1], 2 * np.abs(gain - expected)[:-1] / (high - low)[:-1])
        assert np.isnan(rows[-1]), "the network that is trained on gains nothing over itself"
        assert float(coverages.sel(case=name)) == pytest.approx(((low <= gain) & (gain <= high))[:-1].mean())
    with pytest.raises(ValueError, match="at least two cases"):
        calibration.misses(told.isel(row=told["case"].values == names[0]))


def missed(*cases):
    """Misses of some cases, the same at both budgets."""
    rows = [(str(i), value) for i, case in enumerate(cases) for value in case]
    values = np.array([[value, value] for _, value in rows])
    return xr.DataArray(
        values, {"case": ("row", [name for name, _ in rows]), "anchored": [False, True]}, ("row", "anchored")
    )


def test_every_case_counts_alike_and_one_more_is_reckoned_with():
    """Nine cases: 80% · 10/9 = 8/9 of them must be held, however many candidates each has."""
    cases = [[float(i)] * (1 + 3 * i) + [np.nan] for i in range(1, 10)]
    assert calibration.stretches(missed(*cases)) == {False: 8, True: 8}
    assert calibration.stretches(missed(*cases[::-1])) == {False: 8, True: 8}
    assert calibration.stretches(missed(*cases[:4])) == {False: 4, True: 4}  # of four cases all of them
    assert calibration.stretches(missed(*cases[:2])) == {False: 2, True: 2}  # more than all cannot be asked for


def test_stretched_intervals_hold_what_they_say_of_a_new_case_and_plain_ones_less():
    """Cases whose noise differs, of which five are known: on average over many draws."""
    rng, held = np.random.default_rng(0), []
    for _ in range(200):
        cases = np.abs(rng.standard_normal((6, 20)) * rng.gamma(2, 1, (6, 1)))
        known = missed(*cases[:5])
        stretch = calibration.stretches(known)[False]
        held.append([(cases[5] <= stretch).mean(), (cases[5] <= np.quantile(cases[:5], 0.8)).mean()])
    stretched, plain = np.mean(held, axis=0)
    assert plain < 0.78 < 0.8 <= stretched


def test_the_committed_priors_are_what_the_calibration_teaches(told):
    fitted = calibration.priors(told)
    for anchored, prior in fitted.items():
        assert astuple(prior) == pytest.approx(astuple(PRIORS[anchored]), abs=0.05)
