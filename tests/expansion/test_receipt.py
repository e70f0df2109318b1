"""What a receipt says, held against what was done to the networks by hand."""

import copy

import pytest
import torch
from cases import batch, convolutional, mlp
from torch import nn

import mmstudy as mm
from mmstudy.core.networks import Decoder
from mmstudy.expansion.receipt import receipt
from mmstudy.expansion.unchanged import changed, stayed
from mmstudy.tracing.calls import Call


def rows(found) -> dict[str, tuple[str, str]]:
    return {row.what: (row.before, row.after) for row in found.rows}


def test_a_network_that_has_grown_exactly():
    old, examples = mlp((6, 4)), batch()
    new = mm.expand(old, examples, "orthogonal", {"hidden.0": 9})
    found = receipt(old, new, examples)
    assert found.differences[("float64", "evaluation")][0] < 1e-15  # sums of another length may be ordered otherwise
    assert all(found.differences[(kind, "training")][0] <= 1e-2 for kind in ("float32", "bfloat16", "float16"))
    assert found.parameters == found.named == (96, 132)  # 7·6 + 6 + 6·4 + 4 + 4·4 + 4, then 9 for 6
    assert found.flops == (2 * (7 * 6 + 6 * 4 + 4 * 4), 2 * (7 * 9 + 9 * 4 + 4 * 4))
    assert found.wrong == []
    assert found.changed == ("hidden.0.out_features: 6 → 9", "hidden.1.in_features: 6 → 9")
    assert "largest difference of an output, evaluation, float64" in str(found)
    assert found._repr_html_().count("<tr>") == len(found.rows) + 1


def test_copies_that_are_left_equal_are_twins_and_those_that_are_parted_are_not():
    torch.manual_seed(0)
    old, examples = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 4)), batch()
    even, uneven, noisy = (mm.expand(old, examples, how, {"0": 8}) for how in ("bert2bert", "lemon", "net2net"))
    made = [tuple(row.tolist()) for row in even[0].weight]
    assert receipt(old, even, examples).twins["0"] == sum(made.count(row) > 1 for row in made) > 0
    assert receipt(old, uneven, examples).twins["0"] == receipt(old, noisy, examples).twins["0"] == 0


def test_units_that_get_no_gradient_are_counted():
    old, examples = mlp((6, 4)), batch()
    new = copy.deepcopy(old)
    with torch.no_grad():
        new.hidden[0].weight[:2], new.hidden[0].bias[:2] = 0, -1  # never active
        new.hidden[1].weight[:, 1] = 0
    before, after = (receipt(old, network, examples).still["hidden.0"] for network in (old, new))
    assert (before, after) == (0, 2)


def test_a_function_that_changed_shows_by_how_much():
    old, examples = mlp(dtype=torch.float64), batch(dtype=torch.float64)
    new = copy.deepcopy(old)
    with torch.no_grad():
        new.head.bias[0] += 0.25
    gap, spread = receipt(old, new, examples).differences[("float64", "evaluation")]
    outputs = old(examples[0]).detach()
    assert gap == pytest.approx(0.25, rel=1e-12)
    assert spread == pytest.approx(outputs.std(0, correction=0).square().mean().sqrt().item(), rel=1e-12)


class Returning(nn.Linear):
    """A layer that returns something of its output, whatever that is."""

    def __init__(self, what):
        super().__init__(7, 4)
        self.what = what

    def forward(self, x):
        return self.what(super().forward(x))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Returning(lambda y: None), "the default loss takes outputs .batch, classes.; got None"),
        (Returning(lambda y: "x"), "the default loss takes outputs .batch, classes.; got 'x'"),
        (Returning(lambda y: {"logits": y}), "the default loss takes outputs .batch, classes.; got {'logits'"),
        (nn.Linear(7, 4, dtype=torch.complex64), "new has complex parameters"),
    ],
)
def test_a_network_that_has_no_receipt_is_refused(network, message):
    with pytest.raises(ValueError, match=message):
        receipt(mlp(), network, batch())


@pytest.mark.parametrize(
    ("of_mean", "message"),
    [
        (lambda mean: mean.long(), "the loss must be one real number, a float tensor; got int64"),
        (lambda mean: mean.detach().numpy(), "the loss must be one real number, a float tensor; got array"),
        (lambda mean: mean.item(), "the loss must be one real number, a float tensor; got "),
        (lambda mean: mean.cfloat(), "the loss must be one real number, a float tensor; got complex64"),
        (lambda mean: mean.detach(), "has no gradient: it was detached"),
        (lambda mean: mean * torch.inf, "the loss is -?inf"),
    ],
)
def test_a_loss_that_nothing_can_be_learned_from_is_refused(of_mean, message):
    def loss(model, given):
        return of_mean(model(given[0]).mean())

    old, examples = mlp(), batch()
    with pytest.raises(ValueError, match=message):
        receipt(old, copy.deepcopy(old), examples, loss)
    for operator in ("gradmax", "ligo", "firefly"):
        with pytest.raises(ValueError, match=message):
            mm.expand(old, examples, operator, {"hidden.0": 9}, loss_fn=loss)
    assert "gradmax" not in mm.coverage(old, examples, loss)["hidden.0"].exact


def test_examples_may_have_come_with_a_gradient():
    inputs, targets = batch()
    leading = inputs.clone().requires_grad_() * 1.0
    old = mlp()
    assert receipt(old, copy.deepcopy(old), (leading, targets)).flops == receipt(old, old, (inputs, targets)).flops
    assert receipt(old, old, Call((leading,))).wrong == []


def test_what_should_have_stayed_is_named():
    torch.manual_seed(0)
    old = Decoder(11, 8, 8, 2, 2).eval()
    old.embedding.padding_idx = 3
    old.position.requires_grad_(False)
    with torch.no_grad():
        old.embedding.weight[3] = 0
    tokens = torch.randint(11, (4, 8))
    kept = receipt(old, copy.deepcopy(old), tokens)
    assert kept.wrong == []
    assert (kept.parameters[0], kept.named[0]) == (kept.parameters[1], kept.parameters[0] + 11 * 8)
    broken = copy.deepcopy(old).train()
    broken.head.weight = nn.Parameter(broken.head.weight.detach().clone())
    broken.position.requires_grad_()
    with torch.no_grad():
        broken.embedding.weight[3] = 1
    found = receipt(old, broken, tokens)
    assert [each.split(":")[0] for each in found.wrong] == [
        "modes are as they were",
        "tied tensors stay tied",
        "frozen parameters stay frozen",
        "rows for padding stay zero",
    ]
    assert "embedding.weight = head.weight" in rows(found)["tied tensors stay tied"][1]
    assert "position" in rows(found)["frozen parameters stay frozen"][1]
    assert found.differences[("float32", "evaluation")][0] > 0


def test_types_of_numbers_and_kinds_of_buffers_are_told():
    old = convolutional()
    new = copy.deepcopy(old)
    new[2].weight.data = new[2].weight.data.double()
    new[2]._non_persistent_buffers_set.add("running_mean")
    found = {what: wrong for what, _, wrong in stayed(old, new) if wrong}
    assert found == {"types of numbers, and kinds of buffers, stay": ["2.weight", "2.running_mean"]}


def test_in_training_a_network_that_draws_random_numbers_is_not_compared_and_none_is_touched():
    old, examples = convolutional().train(), batch()
    before = copy.deepcopy(old.state_dict())
    found = receipt(old, copy.deepcopy(old), examples)
    assert found.differences[("float32", "training")] == "the network draws random numbers"
    assert found.differences[("float32", "evaluation")][0] == 0
    assert all(torch.equal(before[key], value) for key, value in old.state_dict().items())
    assert old.training
    assert all(p.grad is None for p in old.parameters())


def test_parameters_of_an_inserted_block_are_told_from_those_that_moved():
    torch.manual_seed(0)
    old = Decoder(11, 8, 8, 2, 2)
    for parameter in old.blocks[1].parameters():
        parameter.requires_grad_(False)
    for place, block in enumerate(old.blocks):
        block.layer_idx = place
    tokens = torch.randint(11, (4, 8))
    new = mm.expand(old, tokens, "identity_block", {"blocks.0": 1})
    assert not any(p.requires_grad for p in new.blocks[2].parameters())
    found = receipt(old, new, tokens)
    assert found.wrong == []
    assert found.changed == ("blocks: 2 → 3 members", "blocks.1.layer_idx: 1 → 2")


def test_each_number_that_changed_is_named_once():
    old, new = (nn.Sequential(nn.LayerNorm(4, eps=eps)) for eps in (1e-5, 2e-5))
    old[0]._slack, new[0]._slack = 0.5, 0.25
    assert changed(old, new) == ["0.eps: 1e-05 → 2e-05", "0._slack: 0.5 → 0.25"]


def test_an_embedding_with_sparse_gradients_has_a_receipt_and_learns():
    old = nn.Sequential(nn.Embedding(11, 6, sparse=True), nn.Flatten(), nn.Linear(24, 2)).double()
    words, targets = torch.randint(11, (5, 4), generator=torch.Generator().manual_seed(0)), torch.arange(5) % 2
    for operator in ("lemon", "firefly"):
        new = mm.expand(old, (words, targets), operator, {"0": 9})
        assert not mm.receipt(old, new, (words, targets)).wrong


def test_a_network_that_has_no_gradients_as_it_computes_in_place_has_a_receipt():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.same, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            x = self.stem(x)
            x += self.same(x)  # which needs x as it was
            return self.head(x)

    old, inputs = InPlace(), torch.randn(5, 3)
    found = receipt(old, mm.expand(old, inputs, "lemon", {"stem": 12}), inputs)
    assert not found.wrong
    assert rows(found)["units that get no gradient"][1].startswith(
        "not known: one of the variables needed for gradient"
    )
