"""What members of a list are given is computed alike before and after an insertion, or the block is refused."""

import pytest
import torch
from cases import Wired
from torch import nn
from torch.nn import functional as F

import mmstudy as mm
from mmstudy.expansion import lineage
from mmstudy.tracing.calls import Call

WINDOW = 16


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x, mask):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return x + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def masks(words):
    place = torch.arange(words.shape[1])
    whole = place[:, None] >= place
    return whole, whole & (place[:, None] - place < WINDOW)


def decoder(given):
    """`given`: the number of a block, both masks → what it is given."""

    def forward(net, words):
        x = net.embedding(words)
        for i, block in enumerate(net.blocks):
            x = block(x, given(i, *masks(words)))
        return net.head(x)

    torch.manual_seed(0)
    blocks = nn.ModuleList(Block() for _ in range(4))
    return Wired(forward, embedding=nn.Embedding(11, 8), blocks=blocks, head=nn.Linear(8, 11)).double()


WORDS = torch.arange(18).view(3, 6) % 11
PLACES = {  # blocks see all that came before, or what is near, or the first one does
    "every second": lambda i, whole, near: near if i % 2 == 0 else whole,
    "every second, none": lambda i, whole, near: near if i % 2 == 0 else None,
    "the later ones": lambda i, whole, near: whole if i < 2 else near,
}


@pytest.mark.parametrize("given", PLACES.values(), ids=PLACES)
def test_blocks_whose_place_decides_what_they_see_are_not_moved(given):
    net = decoder(given)
    with pytest.raises(ValueError, match=r"blocks.\d.*: given other masks or positions than before|not exact here"):
        mm.expand(net, WORDS, "identity_block", {"blocks.0": 1})
    mm.expand(net, WORDS, "stack", {"blocks.0": 1})  # which promises nothing


def test_what_leaves_each_block_what_it_was_given_is_exact_on_long_texts():
    net, text = decoder(PLACES["every second"]), torch.randint(11, (2, 5 * WINDOW))
    for numbers in ({"blocks.0": 2}, {"blocks.3": 1}):
        new = mm.expand(net, WORDS, "identity_block", numbers)
        torch.testing.assert_close(new(text), net(text), atol=1e-12, rtol=0)


def test_masks_that_are_made_anew_for_each_block_are_the_same():
    new = mm.expand(decoder(lambda i, whole, near: near), WORDS, "identity_block", {"blocks.1": 1})
    assert len(new.blocks) == 5


def test_what_is_computed_alike_has_one_number():
    """Constants by their values, operations by what they are given; what parameters reach may be anything."""

    class Pair(nn.Module):
        def forward(self, one, other):
            return one + other

    def calls(pair):
        net = Wired(lambda net, x: net.inner(*pair(net, x)), inner=Pair(), weight=torch.ones(3))
        return lineage.given(net, {"inner": net.inner}, Call((torch.arange(3.0),)), known)["inner"]

    known: dict[tuple, int] = {}
    ways = {
        "twice": lambda net, x: (x * 2, x * 2),
        "thrice": lambda net, x: (x * 3, x * 2),
        "a sum": lambda net, x: (x + x, x * 2),
        "changed in place": lambda net, x: (x.clone().mul_(2), x * 2),
        "a constant": lambda net, x: (torch.tensor([0.0, 2, 4]), torch.tensor([0.0, 2, 4])),
        "learned": lambda net, x: (x * net.weight, x * 2),
    }
    found = {name: calls(way)[0] for name, way in ways.items()}
    assert found["twice"][0] == found["twice"][1] == found["thrice"][1]
    assert found["a constant"][0] == found["a constant"][1] != found["twice"][0]
    assert len({found[name][0] for name in ways}) == len(ways)
    assert found["learned"][0] == lineage.LEARNED
    assert lineage.moved({"a": [found["twice"]]}, {"a": [found["thrice"]]}) == ["a"]
    assert not lineage.moved({"a": [found["twice"]]}, {"a": [found["learned"]]})
    assert lineage.moved({"a": [found["twice"]]}, {"a": []}) == ["a"]
