"""Threads that measure one network take turns: each gets its number, and the network stays as it is."""

import threading

import pytest
import torch

import mmstudy as mm
from mmstudy.batched import ensemble as en
from mmstudy.core.networks import MLP, initialize
from mmstudy.core.seeds import generator

THREADS = 4
X, Y = torch.randn(40, 6, generator=generator("inputs")), torch.arange(40) % 2
CALLS = {
    "barrier": lambda one, other: mm.barrier(one, other, (X, Y)),
    "size": lambda one, other: mm.size([one, other], (X, Y), method="rays", samples=2)["size"].values.tolist(),
    "check": lambda one, other: mm.check([one, other], (X, Y)),
    "expand": lambda one, other: [p.tolist() for p in mm.expand(one, (X, Y), "lemon", {"hidden.0": 12}).parameters()],
    "losses": lambda one, other: en.losses(en.stack([one, other]), (X, Y)).tolist(),
    "coverage": lambda one, other: str(mm.coverage(one, X)),
}


def drawn(seed: int) -> MLP:
    network = MLP(6, (8,), 2)
    initialize(network, generator("network", seed))
    return network


@pytest.mark.parametrize("name", CALLS)
def test_threads_take_turns_on_one_network(name):
    networks = [drawn(i) for i in range(2)]
    before = [[(p, p.detach().clone()) for p in network.parameters()] for network in networks]
    expected = CALLS[name](*networks)
    found: list = []

    def work():
        for _ in range(3):
            found.append(CALLS[name](*networks))

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 3 * THREADS
    for network, old in zip(networks, before, strict=True):
        now = list(network.parameters())
        assert len(now) == len(old) and all(a is b and torch.equal(a, c) for a, (b, c) in zip(now, old, strict=True))
        assert network.training and all(p.requires_grad for p in now)
