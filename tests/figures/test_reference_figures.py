"""The figures of operators, estimators and the manifold, from the committed data: they can be read in a column."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from test_figures import assert_legible

from mmstudy.core import results
from mmstudy.figures import estimators, manifold, operators, training

DATA = Path(__file__).parents[2] / "outputs/reference/data"
SHOWN = ["net2net", "bert2bert", "zero_outgoing", "random", "deeper_identity", "deeper_random"]
FIGURES = {
    "expansion": (
        lambda data: operators.expansion(data, SHOWN),
        operators.expansion_all,
        operators.expansion_weights,
        operators.expansion_blocks,
        operators.expansion_contracts,
        operators.expansion_adam,
    ),
    "estimators": (
        estimators.estimators_truth,
        estimators.estimators_symmetries,
        estimators.estimators_normalization,
    ),
    "manifold": (manifold.manifold_plane, manifold.manifold_rays),
    "your_network": (training.curves,),
}


@pytest.mark.parametrize(("name", "draw"), [(name, draw) for name, some in FIGURES.items() for draw in some])
def test_it_is_legible(name, draw):
    figure = draw(results.load(DATA / f"{name}.nc"))
    seeming = figure.subfigs or name == "expansion"  # labels of ticks count twice, and a label's arrow belongs to it
    assert_legible(figure, may_touch=bool(seeming))
    plt.close(figure)
