"""What the README says of rankings is what the reference's results say."""

import re
from pathlib import Path

import pytest

from mmstudy.core import results

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text().partition("## Which expansion of yours")[2].partition("## Expanding")[0]
DATA = ROOT / "outputs" / "reference" / "data"


def said(pattern: str) -> list[float]:
    found = re.search(pattern, TEXT)
    assert found, pattern
    return [float(each.replace("−", "-")) for each in found.groups()]


@pytest.mark.parametrize(
    ("policy", "pattern"),
    [
        ("anchored loss, 5%", r"“anchored loss, 5%”, (\d+)% in all\) it lost ([\d.]+) points"),
        ("rank by flagged loss", r"flagged training loss, which lost ([\d.]+) points at (\d+)%"),
        ("rank by loss", r"training loss alone lost ([\d.]+) at (\d+)%"),
        ("anchored parameters", r"“anchored parameters” ([\d.]+) at (\d+)%"),
    ],
)
def test_the_policies_lose_and_take_what_it_says(policy, pattern):
    choice = results.load(DATA / "choice.nc")
    mean = choice.isel(task=choice["part"].values == "confirmation").sel(policy=policy).mean("task")
    share, lost = said(pattern) if policy == "anchored loss, 5%" else said(pattern)[::-1]
    assert share == round(100 * float(mean["total"]))
    assert lost == round(float(mean["regret"]), 1)


def test_the_best_from_15_percent_on_and_the_better_order_are_as_it_says():
    choice = results.load(DATA / "choice.nc")
    mean = choice.isel(task=choice["part"].values == "confirmation").mean("task")
    cheap = mean.isel(policy=mean["total"].values < 0.9)
    assert cheap["policy"].values[cheap["regret"].values.argmin()] == "anchored loss, 5%"
    flagged, alone = (round(float(mean["spearman"].sel(policy=p)), 2) for p in ("rank by flagged loss", "rank by loss"))
    assert said(r"\(ρ = ([\d.]+) against ([\d.]+)\)") == [flagged, alone]


def test_the_worst_case_is_named_with_what_it_lost():
    verdict = results.load(DATA / "verdicts.nc")
    lost = verdict["regret_share"].sel(anchored=True)
    assert lost["case"].values[lost.values.argmax()] == "characters"
    one = verdict.sel(case="characters")
    with_anchors, without = (one.sel(anchored=each) for each in (True, False))
    numbers = said(
        r"with anchors it lost (\d+)% of the range, as much .* \((\d+)%\), .* \(ρ = (\S+)\); "
        r"without, (\d+)% \(ρ = ([\d.]+)\)"
    )
    assert numbers == [
        round(100 * float(with_anchors["regret_share"])),
        round(100 * float(with_anchors["random"])),
        round(float(with_anchors["spearman"]), 2),
        round(100 * float(without["regret_share"])),
        round(float(without["spearman"]), 2),
    ]
