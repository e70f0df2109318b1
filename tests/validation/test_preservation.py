from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from mmstudy.expansion.operators import OPERATORS
from mmstudy.validation import preservation

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def surveys() -> dict[str, pd.DataFrame]:
    return {name: preservation.untrained(name) for name in preservation.FAMILIES}


@pytest.mark.parametrize("name", preservation.FAMILIES)
def test_every_operator_keeps_its_promise(surveys, name):
    cells = preservation.table(surveys)[name]
    assert list(cells.index) == list(OPERATORS)
    assert not [operator for operator, cell in cells.items() if "broken" in cell]
    family, frame = preservation.FAMILIES[name], surveys[name]
    for operator, rows in frame.groupby("operator"):
        assert tuple(rows.place) == (family.wider if OPERATORS[operator].widens else family.deeper)
    done = frame[frame.refused == ""]
    assert done[list(preservation.COLUMNS)].notna().all(axis=None)
    assert (done.parameters > min(done.parameters.min(), 0)).all()
    assert frame[frame.refused != ""][list(preservation.COLUMNS)].isna().all(axis=None)


def test_the_table_of_the_readme_is_what_is_measured(surveys):
    shown = README.read_text().partition("<!-- contracts -->\n")[2].partition("\n<!-- /contracts -->")[0]
    assert shown == preservation.markdown(preservation.table(surveys)), (
        "python -m mmstudy.validation.preservation README.md makes it anew"
    )


def rows(operator: str, *changes: tuple[float, float] | None) -> pd.DataFrame:
    columns = ["operator", "refused", "change", "change_training"]
    return pd.DataFrame([(operator, "", *c) if c else (operator, "no", None, None) for c in changes], columns=columns)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (rows("lemon", (0, 0), (1e-13, 1e-14)), "="),
        (rows("lemon", (0, 0), None), "= 1/2"),
        (rows("lemon", (0, 0), (1e-13, 1e-3)), "=ᵉ"),
        (rows("lemon", (1e-11, 0), (0, 0)), "broken"),
        (rows("net2net", (1e-3, 1)), "≈"),
        (rows("net2net", (0.5, 0)), "broken"),
        (rows("random", (2, 2), (0, 0)), "≠"),
        (rows("random", None), "–"),
    ],
)
def test_a_cell_says_what_was_measured(frame, expected):
    assert preservation.cell(frame) == expected


def test_the_table_can_be_put_into_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(preservation, "FAMILIES", {"one": None, "two": None})
    monkeypatch.setattr(preservation, "untrained", lambda name: rows("lemon", (0, 0) if name == "one" else None))
    path = tmp_path / "R.md"
    path.write_text("before\n<!-- contracts -->\nold\n<!-- /contracts -->\nafter\n")
    preservation.write_into(path)
    table = "| operator | one | two |\n| --- | --- | --- |\n| `lemon` | = | – |"
    assert path.read_text() == f"before\n<!-- contracts -->\n{table}\n<!-- /contracts -->\nafter\n"
    again = path.read_text()
    preservation.write_into(path)
    assert path.read_text() == again


@pytest.mark.parametrize(("values", "rank"), [([1.0, 1, 1, 1], 4), ([5.0, 0, 0], 1), ([2.0, 2, 0], 2)])
def test_the_effective_rank_of_known_spectra(values, rank):
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(9, len(values)).double())
    right, _ = torch.linalg.qr(torch.randn(len(values), len(values)).double())
    assert preservation.effective_rank(left @ torch.tensor(values).double().diag() @ right) == pytest.approx(rank)


def test_activations_are_rows_of_units():
    network = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Linear(12, 5))
    x = torch.randn(4, 1, 3, 3)
    convolved = preservation.activations(network, "0", x)
    assert convolved.shape == (4 * 2 * 2, 3)
    assert torch.equal(convolved[:4], network[0](x)[0].permute(1, 2, 0).reshape(4, 3))
    assert preservation.activations(network, "2", x).shape == (4, 5)


def test_the_gradient_is_parted_into_new_and_old():
    """Against the definition: rows beyond the old units, columns that read them, whole inserted layers."""
    family = preservation.FAMILIES["MLP"]
    network, examples = family.network(), family.examples(30)
    frame = preservation.survey(family, network, examples, ["zero_outgoing", "deeper_random"])
    assert list(frame.place) == ["hidden.0", "hidden.1", "hidden.2", "hidden.0", "hidden.2"]
    for row in frame.itertuples():
        expanded = _again(row, network, examples, family)
        loss = family.loss_fn(expanded, examples)
        names, parameters = zip(*expanded.named_parameters(), strict=True)
        slopes = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
        index = int(row.place[-1])
        if row.operator == "zero_outgoing":
            reader = "head.weight" if index == 2 else f"hidden.{index + 1}.weight"
            parts = [slopes[f"hidden.{index}.weight"][12:], slopes[f"hidden.{index}.bias"][12:], slopes[reader][:, 12:]]
        else:
            parts = [slopes[f"hidden.{index + 1}.weight"], slopes[f"hidden.{index + 1}.bias"]]
        new = sum(float(part.square().sum()) for part in parts)
        whole = sum(float(slope.square().sum()) for slope in slopes.values())
        assert row.gradient_new**2 == pytest.approx(new, rel=1e-4)
        assert row.gradient_old**2 == pytest.approx(whole - new, rel=1e-3)


def _again(row, network, examples, family):
    size = 24 if OPERATORS[row.operator].widens else 1
    candidate = preservation.Candidate(row.operator, (row.place,), (size,))
    assert str(candidate) == row.candidate
    return candidate.expand(network, examples, family.loss_fn)


def test_training_lowers_the_loss_and_is_the_same_every_time():
    family = preservation.FAMILIES["decoder"]
    examples = family.examples(64)
    first, second = (preservation.trained(family, family.network(), examples, 20) for _ in range(2))
    loss = [family.loss_fn(n, examples).item() for n in (family.network(), first, second)]
    assert loss[1] == loss[2] < loss[0] - 0.3
