"""The candidates of a network whose owner names none."""

import torch
from cases import Wired, mlp
from torch import nn

import mmstudy as mm
from mmstudy.batched.ensemble import classification
from mmstudy.ranking import pool


def labels(network, inputs):
    batch = inputs, torch.arange(len(inputs)) % 2
    return set(pool.default(network, batch, classification, mm.coverage(network, batch)))


def test_a_few_groups_are_widened_alone_and_all_together():
    found = labels(mlp((6, 4)), torch.randn(7, 7))
    assert {"net2net hidden.0 ×2", "random hidden.1 ×4", "zero_outgoing hidden.0&hidden.1 ×2"} <= found
    assert "deeper_identity hidden.0 +1" in found


def test_many_groups_are_widened_as_their_layers_are_alike():
    network = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(6, 6), nn.ReLU())), nn.Linear(6, 2))
    found = labels(network, torch.randn(7, 6))
    assert "net2net * ×2" in found
    assert not [label for label in found if "&" in label]


def test_groups_that_one_size_serves_are_widened_at_once():
    def forward(net, x):
        return net.head(net.one(x).view(-1, net.width).relu()) + net.tail(net.two(x).view(-1, net.width).relu())

    parts = {"one": nn.Linear(3, 6), "two": nn.Linear(3, 6), "head": nn.Linear(6, 2), "tail": nn.Linear(6, 2)}
    found = labels(Wired(forward, width=6, **parts), torch.randn(7, 3))
    assert found == {f"{way} one&two ×{factor}" for way in ("net2net", "zero_outgoing", "random") for factor in (2, 4)}
