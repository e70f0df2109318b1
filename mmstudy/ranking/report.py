"""What a ranking says: as a Dataset and a table; and the network to go on with."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mmstudy.core import arguments, results
from mmstudy.expansion.pools import Size
from mmstudy.ranking import policy
from mmstudy.ranking.policy import Plan
from mmstudy.ranking.posterior import Posterior
from mmstudy.ranking.rows import Row, Rows
from mmstudy.ranking.words import LEVEL, OWN, in_words

WORDS = {
    "gain": ("score", "expected gain in the final validation score over training the network on as it is"),
    "low": ("score", f"lower end of its {LEVEL:.0%} interval"),
    "high": ("score", f"upper end of its {LEVEL:.0%} interval"),
    "chance": ("1", "probability to have the highest final score of the pool"),
    "worth": ("score", "what training it, and no other, to the end too is expected to add to the score of the choice"),
    "early_score": ("score", "validation score after the first part of the training"),
    "early_loss": ("nat", "mean minibatch loss at the end of that part"),
    "final_score": ("score", "validation score after the full training, where it was done"),
    "order": ("1", "what the candidates were ordered by early: sums of ranks as shares"),
    "parameters": ("1", "number of parameters"),
    "flops": ("1", "floating-point operations of a forward pass of one example"),
    "steps": ("1", "steps that it was trained"),
    "seconds": ("s", "seconds that its training took"),
    "full_seconds": ("s", "seconds that training it to the end takes, at the pace so far"),
}


class Best(NamedTuple):
    """A network to go on with; the optimizer is None where the user's own loop trained it."""

    label: str
    network: nn.Module
    optimizer: Optimizer | None
    schedule: LRScheduler | None
    steps: int  # that it was trained


@dataclass(frozen=True)
class Seen:
    """What was seen of all rows, the network itself being the last, and what is known after that."""

    sizes: Sequence[Size]
    early: Sequence[Row]
    final: Sequence[Row | None]  # None: not trained to the end
    told: Posterior

    @property
    def status(self) -> list[str]:
        """Of each row: probed, trained (to the end) or diverged."""
        pairs = zip(self.early, self.final, strict=True)
        return ["diverged" if (last or first).diverged else "trained" if last else "probed" for first, last in pairs]

    @property
    def eligible(self) -> Bool[np.ndarray, " row"]:
        """Among which rows one chooses: those trained to the end; where none was, those of which something is expected.

        Where nothing is expected, the network itself.
        """
        status = np.array(self.status)
        whole, open_ones = status == "trained", (status == "probed") & np.isfinite(self.told.mean)
        own = np.arange(len(status)) == len(status) - 1
        return next(rows for rows in (whole, open_ones, own) if rows.any())

    @property
    def chosen(self) -> int:
        """The row with the highest score, known or expected, of those among which one chooses."""
        return max(np.flatnonzero(self.eligible).tolist(), key=lambda i: self.told.mean[i])


def early_order(
    early: Sequence[Row], sizes: Sequence[Size], anchored: bool
) -> tuple[Float[np.ndarray, " row"], Float[np.ndarray, " row"], Float[np.ndarray, " row"]]:
    """The early scores, the minibatch losses, and the order of rows that follows (`policy.order`)."""
    score, loss = (
        np.array([math.nan if row.diverged else getattr(row, name) for row in early])
        for name in ("score", "minibatch_loss")
    )
    parameters = np.array([float(size.parameters) for size in sizes])
    return score, loss, policy.order(anchored, score, loss, parameters)


def concluded(rows: Rows, how: Plan, full_steps: int, seen: Seen, refused: Mapping[str, str]) -> xr.Dataset:
    """What follows for every row, best first."""
    early, final, told, status, chosen = seen.early, seen.final, seen.told, seen.status, seen.chosen
    diverged = np.array([each == "diverged" for each in status])
    gain, low, high = (np.where(diverged | diverged[-1], np.nan, each) for each in told.gains(LEVEL))
    expected = told.mean - told.mean[-1]
    draws = np.where(diverged, -np.inf, told.draws())
    best = draws == draws.max(1, keepdims=True)  # several, where they are known to be equal
    chance = (best / np.maximum(best.sum(1, keepdims=True), 1)).mean(0)
    score, loss, order = early_order(early, seen.sizes, how.anchored)
    last = [late or first for first, late in zip(early, final, strict=True)]
    steps, seconds = (np.array([getattr(row, name) for row in last]) for name in ("steps", "seconds"))
    columns = {
        "gain": gain,
        "low": low,
        "high": high,
        "chance": np.where(np.isnan(draws).any() & ~diverged, np.nan, chance),
        "worth": np.where(diverged, 0.0, told.worth(seen.eligible)),
        "early_score": score,
        "early_loss": loss,
        "final_score": np.array([math.nan if row is None or row.diverged else row.score for row in final]),
        "order": order,
        "parameters": np.array([size.parameters for size in seen.sizes]),
        "flops": np.array([size.flops for size in seen.sizes]),
        "steps": steps,
        "seconds": seconds,
        "full_seconds": np.where(diverged, np.nan, full_steps * seconds / np.maximum(steps, 1)),
    }
    data = xr.Dataset(
        {name: ("candidate", values) for name, values in columns.items()},
        {
            "candidate": list(rows.candidates),
            "operator": ("candidate", [each.operator if each else OWN for each in rows.candidates.values()]),
            "status": ("candidate", status),
        },
    )
    places = sorted(range(len(early)), key=lambda i: (i != chosen, diverged[i], -np.nan_to_num(expected[i])))
    data = results.describe(data.isel(candidate=places), WORDS)
    data.attrs = {
        **results.provenance({"full_steps": full_steps, "seed": rows.training.seed}),
        "score": "metric" if rows.metric else "validation loss, turned round",
        "anchored": int(how.anchored),
        "probe_steps": how.probe_steps,
        "full_steps": full_steps,
        "share": how.share,
        "flag": policy.flag(score[:-1], loss[:-1]),
        "refused": json.dumps(dict(refused)),
    }
    return data


@dataclass(frozen=True)
class Ranking:
    """The candidates of a network in the order in which one should train them.

    `data` has a row for each, best first, and one for the network itself, `train on`.
    """

    data: xr.Dataset
    rows: Rows

    @property
    def summary(self) -> str:
        """What to do, and how sure that is."""
        return in_words(self.data)

    @property
    def table(self) -> pd.DataFrame:
        """One row for each network, best first.

        `gain` is expected over the network itself, in the unit of the score (`low` to `high`: 80%); `chance` that this
        row is the best; `status`: probed, or trained to the end; scores at the end and early; what it took.
        """
        columns = ["gain", "low", "high", "chance", "status", "final_score", "early_score", "parameters", "flops"]
        return self.data.to_dataframe()[[*columns, "steps", "seconds", "full_seconds"]]

    def best(self, label: str | None = None, trained: bool = True) -> Best:
        """The network to go on with, and its optimizer.

        Args:
            label: another row than the first.
            trained: as far as it was trained here; otherwise as it is right after its expansion, the optimizer's state
                carried along.

        Returns:
            The network, its optimizer and schedule, and the steps that they have behind them.

        Raises:
            ValueError: an unknown row.
        """
        name = arguments.one_of(label or str(self.data["candidate"].values[0]), self.rows.candidates, "candidate")
        run = self.rows.run(name) if trained else self.rows.start(name)
        return Best(name, run.network, run.optimizer, run.schedule, len(run.losses))

    def __str__(self) -> str:
        shown = self.table[["gain", "low", "high", "chance", "status", "parameters"]]
        return f"{self.summary}\n\n{shown.to_string(float_format=lambda value: f'{value:.4g}')}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        paragraphs = "".join(f"<p>{line}</p>" for line in self.summary.splitlines())
        return paragraphs + self.table.to_html(float_format=lambda value: f"{value:.4g}")
