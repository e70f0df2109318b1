import pytest
from cases import batch, mlp

from mmstudy.core.networks import ResNet, count_flops, count_parameters
from mmstudy.expansion import pools


def test_the_pool_of_the_design():
    network, inputs = mlp((16, 16)), batch()[0]
    pool = pools.candidate_pool(network, inputs)
    assert len(pool) >= 40
    assert len(set(map(str, pool.values()))) == len(pool)
    assert list(pool)[:3] == ["net2net hidden.0 ×1.5", "zero_outgoing hidden.0 ×1.5", "random hidden.0 ×1.5"]
    assert pool["random hidden.0&hidden.1 ×1.5"].sizes == (24, 24)
    assert pool["deeper_identity hidden.1 +2"].sizes == (2,)


@pytest.mark.parametrize("factor", [1.5, 2, 4])
def test_matched_candidates_have_as_many_parameters_as_what_they_match(factor):
    network, (inputs, targets) = mlp((16, 12)), batch()
    pool = pools.candidate_pool(network, inputs, (factor,), (), (factor,))
    table = pools.pool_table(pool, network, (inputs, targets))
    for operator in ("net2net", "zero_outgoing", "random"):
        one = table.loc[f"{operator} hidden.0 ×{factor:g}", "parameters"]
        other = table.loc[f"{operator} hidden.1 ≈ hidden.0 ×{factor:g}", "parameters"]
        assert abs(one / other - 1) <= 0.02
    assert table["refused"].eq("").all()


def test_a_size_that_no_whole_number_of_units_matches_is_left_out():
    network, inputs = mlp((2, 3)), batch()[0]
    labels = pools.candidate_pool(network, inputs, (), (1,), (1.5,))
    assert not [label for label in labels if "≈" in label]
    assert len(labels) == 4


def test_the_table_counts_what_is_built_and_says_what_is_refused():
    network, (inputs, targets) = mlp((6, 4)), batch()
    pool = pools.candidate_pool(network, inputs, (1.5,), (1,), (), wider=("lemon", "hypercloning"))
    table = pools.pool_table(pool, network, (inputs, targets))
    assert list(table.index) == list(pool)
    for label, candidate in pool.items():
        row = table.loc[label]
        if candidate.operator == "hypercloning":
            assert "no multiple" in row["refused"]
            continue
        built = candidate.expand(network, inputs)
        assert (row["parameters"], row["flops"]) == (count_parameters(built), count_flops(built, inputs[:1]))


def test_a_convolutional_network_has_a_pool_too():
    network = ResNet(1, (4, 8), (1, 1), 3, image=(4, 4))
    inputs = batch()[0].new_zeros(2, 16)
    pool = pools.candidate_pool(network, inputs, (2,), (1,), (2,), deeper=("zero_residual",))
    assert {place for c in pool.values() if c.operator == "zero_residual" for place in c.locations} == {
        "stages.0.0", "stages.1.0",
    }  # fmt: skip
    assert any("&" in label for label in pool)
    with pytest.raises(ValueError, match="empty pool"):
        pools.candidate_pool(network, inputs, (), (), ())
