"""What a ranking says in words: what to do, how sure that is, and what it took."""

import math
from typing import Literal

import numpy as np
import xarray as xr

from mmstudy.ranking import policy

OWN = "train on"  # the network as it is, trained like its candidates
LEVEL = 0.8  # the probability of the intervals
RARE = 0.05  # what chance does more rarely is said to mean something


def in_words(data: xr.Dataset) -> str:
    """What to do, how sure that is, whether the early order can be trusted, what more would tell, and what it took."""
    lines = [*_advice(data), *_agreement(data)]
    status = data["status"].values
    open_ones = data.isel(candidate=status == "probed")
    if np.isfinite(open_ones["worth"]).any():
        ask = open_ones.isel(candidate=int(np.nanargmax(open_ones["worth"].values)))
        more = " as well" if (status == "trained").any() else ""
        left = (1 - float(ask["steps"]) / data.attrs["full_steps"]) / data.sizes["candidate"]
        lines.append(
            f"To train “{ask['candidate'].item()}” to the end{more}, {left:.1%} of the pool's steps more, is expected "
            f"to add {_number(float(ask['worth']), '.2g')} to the score of the choice."
        )
    share, flops = (spent(data, each) for each in ("steps", "flops"))
    lines.append(
        f"All this took {share:.1%} of the steps, and {flops:.1%} of the floating-point operations, of training all "
        f"{data.sizes['candidate']} networks to the end."
    )
    return "\n".join(lines)


def spent(data: xr.Dataset, unit: Literal["steps", "flops"]) -> float:
    """The share of training all rows to the end that has been done, in steps or in floating-point operations."""
    price = data["flops"].astype(float) if unit == "flops" else xr.ones_like(data["steps"], float)
    return float((price * data["steps"]).sum() / (price.sum() * data.attrs["full_steps"]))


def _agreement(data: xr.Dataset) -> list[str]:
    """Whether low training losses go with high validation scores, and what that may mean."""
    flag, others = data.attrs["flag"], data.isel(candidate=data["candidate"].values != OWN)
    known = int((np.isfinite(others["early_score"]) & np.isfinite(others["early_loss"])).sum())
    found = f"(ρ = {_number(flag, '.2f')})"
    if math.isnan(flag):
        return [
            "Whether training losses and validation scores agree in this pool is unknown: all of one kind are equal, "
            "or fewer than three are known."
        ]
    if flag >= policy.DISAGREE:
        return [f"Training losses and validation scores agree in this pool {found}."]
    chance = policy.chance_of(flag, known)
    disagree = f"Lower training loss and higher validation scores hardly agree in this pool {found}"
    if chance < RARE:
        lines = [f"{disagree}. This may mean noisy labels, where a low training loss can mean that noise was learnt."]
    else:
        lines = [
            f"{disagree}; so do {chance:.0%} of pools of {known} in which they have nothing to do with each other."
        ]
    if (data["status"].values == "probed").any():
        lines[0] += " Do not trust the order of those that were not trained to the end."
    return lines


def _expected(words: str, row: xr.Dataset) -> list[str]:
    """What a candidate that was not trained to the end is expected to gain; and whether that may be nothing."""
    gain, low, high = (float(row[name]) for name in ("gain", "low", "high"))
    interval = f"[{_number(low)}, {_number(high)}]"
    lines = [f"{words} {_number(gain)} {interval} over training the network on as it is ({LEVEL:.0%} interval)."]
    if low <= 0 <= high:
        lines.append("That interval holds zero: whether expanding is worth it at all is open.")
    return lines


def _next(row: xr.Dataset) -> list[str]:
    """What is to be said of the first candidate behind the network itself; nothing if it diverged."""
    name = row["candidate"].item()
    if row["status"].item() == "trained":
        gain = _number(float(row["gain"]))
        return [f"“{name}”, trained to the end, comes next: its score gains {gain} over that."]
    return _expected(f"“{name}” comes next: its score is expected to gain", row) if np.isfinite(row["gain"]) else []


def _advice(data: xr.Dataset) -> list[str]:
    """What to do, and how probable it is that this is the best."""
    first = data.isel(candidate=0)
    label, gain = str(first["candidate"].values), _number(float(first["gain"]))
    others = data.isel(candidate=data["candidate"].values != label)
    lines = []
    trained = str(first["status"].values) == "trained"
    unknown = bool(np.isnan(data["chance"]).any())
    alone = data["status"].sel(candidate=OWN).item() == "diverged"  # what gains are measured by
    if unknown:
        lines.append(
            "The early scores tell nothing, as all are equal or fewer than two are known: no gain can be expected of "
            "any candidate that was not trained to the end. Give more steps or a finer metric, such as the loss turned "
            "round."
        )
    if label == OWN and (trained or not unknown):
        open_above = unknown or bool((others["gain"] > 0).any())
        who = "that was trained to the end has" if open_above else "is expected to end with"
        lines.append(f"Train the network on as it is: no candidate {who} a higher score.")
        lines += [] if unknown else _next(others.isel(candidate=0))
    elif trained and not alone:
        lines.append(
            f"Take “{label}”: trained to the end, its score gains {gain} over training the network on as it is."
        )
    elif trained:
        score = _number(float(first["final_score"]))
        lines.append(f"Take “{label}”: of those that were trained to the end, it has the highest score, {score}.")
    elif alone and not unknown:
        lines.append(f"Train “{label}”: it is expected to end with the highest score.")
    elif not unknown:
        lines += _expected(f"Train “{label}”: its score is expected to gain", first)
    if alone:
        lines.append("The network itself, trained on as it is, diverged: no gain over it is known.")
    if not unknown:
        best = others.isel(candidate=int(others["chance"].values.argmax()))
        name, chance = best["candidate"].item(), float(best["chance"])
        lines.append(
            f"The probability that it is the best of the pool is {float(first['chance']):.0%}; of all others "
            f"“{name}” has the highest, {chance:.0%}."
        )
        if chance > first["chance"] and best["gain"] < first["gain"]:
            lines.append(
                f"“{label}” has the higher expected gain; “{name}” is less certain, so that it is the best more often."
            )
    return lines


def _number(value: float, digits: str = ".3g") -> str:
    """So many digits, three by default, and a sign that is no hyphen."""
    return f"{value:{digits}}".replace("-", "\u2212")
