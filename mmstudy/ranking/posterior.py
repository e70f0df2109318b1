"""What each network of a pool will come to: a regression that knows how pools behaved before, and says how sure it is.

The final score of row i (a candidate, or the network that is only trained on), less the score that the latter has now,
in units of the pool's spread s at that moment, is

    y_i = level + slope · z(rank_i) + width · z(ln parameters_i) + own · [i is trained on only] + effect of operator + ε

with Gaussian coefficients and ε ~ N(0, σ²), σ² inverse-gamma: a Student-t process (Bishop 2006, section 3.3; Shah,
Wilson & Ghahramani 2014, arXiv 1402.4306). Means and variances are those under which the final scores of calibration
tasks are most likely; the mean of the slope is positive and that of the width is zero, so that without any full
training the order is that of the score alone. With rank, parameters and operator these are the features of the anchored
ranking that the study chose.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import optimize, stats

DRAWS = 4000


@dataclass(frozen=True)
class Prior:
    """Means of the coefficients, and the logarithms of their variances in units of σ², and of σ²'s distribution."""

    level: float = 1.0
    slope: float = 0.5
    own: float = 0.0
    log_level: float = 0.0
    log_slope: float = 0.0
    log_width: float = 0.0
    log_own: float = 0.0
    log_operator: float = 0.0
    log_shape: float = 1.0
    log_scale: float = 0.0


@dataclass(frozen=True)
class Pool:
    """What is known of the rows of a pool early; the last one is the network that is only trained on.

    `rank`: standardized ranks of the score, larger where more is expected; `width`: standardized logarithms of the
    parameter counts; `now`: the early score of the last row; `spread`: the standard deviation of the early scores, NaN
    where they tell nothing.
    """

    rank: Float[np.ndarray, " row"]
    width: Float[np.ndarray, " row"]
    operator: Sequence[str]
    now: float
    spread: float

    @property
    def own(self) -> Float[np.ndarray, " row"]:
        """1 for the network that is only trained on."""
        return np.eye(len(self.rank))[-1]


@dataclass(frozen=True)
class Posterior:
    """A multivariate t distribution of final scores."""

    mean: Float[np.ndarray, " row"]
    covariance: Float[np.ndarray, "row row"]  # its scale matrix; zero where the final score is known
    degrees: float

    def gains(self, level: float = 0.8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, lower and upper end of what each row gains over the last one, in an interval of that probability."""
        gain, c = self.mean - self.mean[-1], self.covariance
        variance = np.diag(c) + c[-1, -1] - 2 * c[:, -1]
        half = stats.t.ppf((1 + level) / 2, self.degrees) * np.sqrt(np.clip(variance, 0, None))
        return gain, gain - half, gain + half

    def draws(self, count: int = DRAWS) -> Float[np.ndarray, "draw row"]:
        """Draws of all final scores together, the same at every call; NaN of a row whose mean is."""
        random = np.random.default_rng(0)
        values, vectors = np.linalg.eigh(np.nan_to_num(self.covariance))
        root = vectors * np.sqrt(np.clip(values, 0, None))
        normal = random.standard_normal((count, len(self.mean))) @ root.T
        return self.mean + normal / np.sqrt(random.chisquare(self.degrees, count) / self.degrees)[:, None]

    def worth(self, choice: Bool[np.ndarray, " row"]) -> Float[np.ndarray, " row"]:
        """What it is expected to add to the score of the best choice that one more final score, each row's, is known.

        Once y_i is known, the others are expected at E[y_j | y_i] = m_j + C_ji / C_ii · (y_i − m_i), and the best of
        these is taken: E[max_j E[y_j | y_i]] − max_j m_j, the knowledge gradient (Frazier, Powell & Dayanik 2008). The
        mean is taken over quantiles of y_i.

        Args:
            choice: among which rows one chooses, as long as no other score is known; row i itself is always one then.
        """
        unit = stats.t.ppf((np.arange(DRAWS) + 0.5) / DRAWS, self.degrees)[:, None]  # (draw, 1)
        now = self.mean[choice].max(initial=-np.inf)
        deviation = np.sqrt(np.diag(self.covariance))
        found = np.zeros(len(self.mean))
        for i in np.flatnonzero(deviation != 0):
            among = choice | (np.arange(len(found)) == i)
            after = self.mean[among] + unit * self.covariance[i, among] / deviation[i]
            found[i] = after.max(1).mean() - now
        return found


def standardized(values: Sequence[float] | np.ndarray) -> Float[np.ndarray, " row"]:
    """Values less their mean, over their standard deviation; zeros where all are equal."""
    values = np.asarray(values, float)
    return (values - values.mean()) / (values.std() or 1.0)


def posterior(pool: Pool, final: Float[np.ndarray, " row"], prior: Prior, stretch: float = 1.0) -> Posterior:
    """What is known of all final scores once some are: NaN where one is not.

    Where the early scores tell nothing, nothing but these is known: mean and covariance of all others are NaN.

    Args:
        stretch: how much wider intervals are than the regression has them: few pools have taught the prior.

    Raises:
        ValueError: rows of different numbers.
    """
    if len(final) != len(pool.rank):
        raise ValueError(f"{len(final)} final scores for a pool of {len(pool.rank)}")
    mean, kernel = _model(pool, prior)
    seen = np.isfinite(final)
    known = np.flatnonzero(seen)
    if not np.isfinite(pool.spread):
        unknown = np.where(seen[:, None] | seen, 0.0, np.nan)
        return Posterior(np.where(seen, final, np.nan), unknown, 2 * np.exp(prior.log_shape) + len(known))
    residual = (final[known] - pool.now) / pool.spread - mean[known]
    shape, scale = np.exp(prior.log_shape), np.exp(prior.log_scale)
    weights = np.linalg.solve(kernel[np.ix_(known, known)], kernel[known]) if known.size else kernel[known]
    shape_now, scale_now = shape + len(known) / 2, scale
    if known.size:
        mean = mean + weights.T @ residual
        scale_now += residual @ np.linalg.solve(kernel[np.ix_(known, known)], residual) / 2
        kernel = kernel - kernel[:, known] @ weights
    kernel = kernel * ~(seen[:, None] | seen)  # what is known is known exactly
    mean = np.where(seen, final, pool.now + pool.spread * mean)
    return Posterior(mean, (stretch * pool.spread) ** 2 * scale_now / shape_now * kernel, 2 * shape_now)


def _model(pool: Pool, prior: Prior) -> tuple[Float[np.ndarray, " row"], Float[np.ndarray, "row row"]]:
    """Mean and kernel (in units of σ²) of the standardized final scores."""
    mean = prior.level + prior.slope * pool.rank + prior.own * pool.own
    features = np.stack([np.ones_like(pool.rank), pool.rank, pool.width, pool.own], axis=1)
    variances = np.exp([prior.log_level, prior.log_slope, prior.log_width, prior.log_own])
    operators = np.asarray(pool.operator)
    same = (operators[:, None] == operators).astype(float)
    return mean, (features * variances) @ features.T + np.exp(prior.log_operator) * same + np.eye(len(mean))


def log_likelihood(pool: Pool, final: Float[np.ndarray, " row"], prior: Prior) -> float:
    """Of the final scores that are known, under the prior; of a pool whose early scores tell nothing, 0."""
    if not np.isfinite(pool.spread):
        return 0.0
    known = np.isfinite(final)
    mean, kernel = _model(pool, prior)
    shape, scale = np.exp(prior.log_shape), np.exp(prior.log_scale)
    y = (final[known] - pool.now) / pool.spread
    of: Bool[np.ndarray, "row row"] = np.ix_(known, known)  # type: ignore[assignment]
    return float(stats.multivariate_t.logpdf(y, mean[known], scale / shape * kernel[of], df=2 * shape))


def fit(tasks: Sequence[tuple[Pool, np.ndarray]], ridge: float = 0.02) -> Prior:
    """The prior under which the final scores of these tasks are most likely.

    Args:
        ridge: a weak pull of all hyperparameters towards the default prior, for what few tasks do not tell.
    """
    start = np.array(astuple(Prior()))

    def lost(values: np.ndarray) -> float:
        prior = Prior(*values.tolist())
        likely = sum(log_likelihood(pool, final, prior) for pool, final in tasks)
        return -likely / len(tasks) + ridge * ((values - start) ** 2).sum()

    bounds = [(-20, 20), (0.01, 20), (-20, 20)] + [(-7, 7)] * 5 + [(0, 4), (-10, 8)]
    found = optimize.minimize(lost, start, method="L-BFGS-B", bounds=bounds)
    return Prior(*(round(float(value), 4) for value in found.x))
