"""The face: one import, one call each; and bad calls, each answered by a sentence that names the value."""

import copy
import json
import subprocess
import sys
from collections import UserDict

import jaxtyping
import numpy as np
import pytest
import torch
from cases import CLASSES, INPUTS, batch, change, mlp, of_family
from torch import nn
from torch.nn import functional as F

import mmstudy as mm
from mmstudy.batched.ensemble import classification, losses, regression, stack
from mmstudy.core.networks import MLP
from mmstudy.core.sources import files
from mmstudy.expansion.candidate import Candidate
from mmstudy.manifold.asked import DEFAULT
from mmstudy.manifold.children import deviation
from mmstudy.manifold.estimators import ESTIMATORS

NETWORK, OTHER, THIRD = mlp(), mlp(seed=1), mlp(seed=2)
BATCH = batch()
X, Y = BATCH


def squared(model, part):
    return (model(part["x"]) - part["y"]).square().mean()


def test_a_network_in_which_nothing_gets_wider_says_where_the_reasons_are():
    with pytest.warns(UserWarning, match=r"no layer .* mm.coverage\(network, batch\) says why") as found:
        assert mm.couplings(nn.Linear(4, 2), torch.randn(5, 4)) == {}
    assert found[0].filename == __file__


def test_all_that_the_face_names_is_there():
    assert set(mm.__all__) <= set(dir(mm))
    assert all(callable(getattr(mm, name)) for name in mm.__all__)
    with pytest.raises(AttributeError, match="'nothing'"):
        mm.nothing  # noqa: B018


def test_the_table_of_names_says_what_type_checkers_see():
    for name, module in mm._MODULES.items():
        assert f"mmstudy.{module}" in sys.modules or getattr(mm, name)
        assert f"{module.replace('.', '/')}.py" in " ".join(map(str, files("import mmstudy")))
    assert set(mm._MODULES) == set(mm.__all__)


def test_the_bare_package_needs_no_torch():
    code = "import sys, mmstudy; print(mmstudy.__version__, 'torch' in sys.modules, 'xarray' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == [mm.__version__, "False", "False"]


def test_modules_do_not_depend_on_what_the_face_offers():
    assert not any(path.name == "between.py" for path in files("from mmstudy.core import seeds"))
    assert any(path.name == "between.py" for path in files("import mmstudy"))


def test_sizes_come_in_the_order_given_whatever_the_architectures():
    wider = mm.expand(NETWORK, BATCH, "lemon", {"hidden.0": 9})
    found = mm.size([NETWORK, wider, OTHER], BATCH, level=3.0, method="rays")
    assert dict(found.sizes) == {"network": 3}
    for i, network in enumerate((NETWORK, wider, OTHER)):
        alone = mm.size(network, BATCH, level=3.0, method="rays")
        assert found["size"].values[i] == pytest.approx(alone["size"].item(), rel=1e-4)
        assert found["status"].values[i] == alone["status"].item()
    assert (found["cost"] > 0).all()
    assert found["level"] == 3.0


def test_the_default_level_and_method_are_stated():
    found = mm.size(NETWORK, BATCH)
    assert found["level"].item() == pytest.approx(losses(stack([NETWORK]), BATCH).item() + 0.1, rel=1e-6)
    assert found.attrs["method"] == DEFAULT == "extent"


def test_a_seed_says_which_draws():
    first, again, other = (mm.size(NETWORK, BATCH, method="rays", seed=seed)["size"].item() for seed in (1, 1, 2))
    assert first == again != other


def test_several_sizes_take_the_samples_and_minibatches_that_one_takes():
    options = {"level": 2.0, "samples": 3, "minibatch": 5, "seed": 4}
    found = mm.sizes([NETWORK, OTHER], BATCH, methods=["children", "rays"], **options)
    for name in ("children", "rays"):
        alone = mm.size([NETWORK, OTHER], BATCH, method=name, **options)
        np.testing.assert_array_equal(found["size"].sel(estimator=name), alone["size"])
    with pytest.raises(ValueError, match=r"samples must be .*2.*; got 1"):
        mm.sizes(NETWORK, BATCH, samples=1)
    with pytest.raises(ValueError, match=r"minibatch must be .*; got 33"):
        mm.sizes(NETWORK, BATCH, minibatch=33)


def test_several_sizes_at_one_level():
    found = mm.sizes([NETWORK, OTHER], BATCH, methods=["rays", "curvature"])
    assert dict(found.sizes) == {"estimator": 2, "network": 2}
    assert list(found["unit"].values) == [ESTIMATORS[name].unit for name in ("rays", "curvature")]
    single = mm.size([NETWORK, OTHER], BATCH, method="curvature")
    assert np.array_equal(found.sel(estimator="curvature")["size"], single["size"], equal_nan=True)


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_a_batch_may_be_a_mapping(kind):
    examples = kind({"x": X, "y": torch.randn(len(X), CLASSES)})
    assert list(mm.couplings(NETWORK, examples, loss_fn=squared)) == ["hidden.0", "hidden.1"]
    assert mm.size(NETWORK, examples, method="rays", loss_fn=squared)["size"].item() > 0
    wider = mm.expand(NETWORK, examples, "gradmax", {"hidden.0": 8}, loss_fn=squared)
    assert change(NETWORK, wider, X) < 1e-5
    assert mm.barrier(NETWORK, NETWORK, examples, loss_fn=squared) == pytest.approx(0, abs=1e-6)


def test_expansions_are_those_of_candidates():
    expected = Candidate("lemon", ("hidden.0",), (9,), 5, Candidate("deeper_identity", ("hidden.0",), (1,), 5))
    steps = [("lemon", {"hidden.0": 9}), ("deeper_identity", {"hidden.0": 1})]
    by_steps, by_candidate = mm.expand(NETWORK, BATCH, steps, seed=5), mm.expand(NETWORK, X, expected)
    for p, q in zip(by_steps.parameters(), by_candidate.parameters(), strict=True):
        assert torch.equal(p, q)
    assert len(by_steps.hidden) == 3


@pytest.mark.parametrize("operator", ["firefly", "gradmax", "ligo"])
def test_operators_learn_from_the_same_loss_as_measurements(operator):
    found = mm.expand(NETWORK, BATCH, operator, {"hidden.0": 8})
    expected = Candidate(operator, ("hidden.0",), (8,)).expand(NETWORK, BATCH)
    assert change(expected, found, X) < 1e-5


def test_a_pool():
    assert all(isinstance(candidate, Candidate) for candidate in mm.candidate_pool(NETWORK, BATCH).values())


def test_a_line_ends_at_its_networks():
    along = mm.line(NETWORK, OTHER, BATCH)
    ends = losses(stack([NETWORK, OTHER]), BATCH)
    assert along["alpha"].values[[0, -1]].tolist() == [0, 1]
    assert along["loss"].values[[0, -1]] == pytest.approx(ends.numpy(), rel=1e-6)
    assert along.attrs["normalization"] == "none"


class TwoHeads(torch.nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.trunk, self.one, self.two = (torch.nn.Linear(*sizes) for sizes in ((X.shape[1], 9), (9, 4), (9, 4)))

    def forward(self, x, task=0):
        return (self.two if task else self.one)(self.trunk(x).relu())


@pytest.mark.filterwarnings("ignore:.*no operation of this call reads it")
@pytest.mark.parametrize("constant", [1.0, torch.ones(9, dtype=torch.float32)])
def test_a_loss_that_calls_its_model_in_two_ways_is_not_matched_by_the_first(constant):
    def both(model, batch):
        inputs = batch[0] @ torch.diag(constant[: X.shape[1]]) if isinstance(constant, torch.Tensor) else batch[0]
        return sum(F.cross_entropy(model(inputs, task=task), batch[1]) for task in (0, 1))

    networks = TwoHeads(1), TwoHeads(2)
    assert mm.line(*networks, BATCH, loss_fn=both).sizes["alpha"] == 11
    with pytest.raises(ValueError, match=r"matching changes the loss of b, .*calls the model in other ways too"):
        mm.barrier(*networks, BATCH, match=True, loss_fn=both)


def test_matching_lowers_a_barrier_to_nothing_between_permuted_copies():
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    moved = mlp()
    moved.hidden[0].weight.data = NETWORK.hidden[0].weight[order]
    moved.hidden[0].bias.data = NETWORK.hidden[0].bias[order]
    moved.hidden[1].weight.data = NETWORK.hidden[1].weight[:, order]
    along, near = (mm.line(NETWORK, moved, BATCH, match=match)["loss"] for match in (False, True))
    assert abs(along - along[0]).max() > 1e-4
    assert abs(near - near[0]).max() == 0
    assert mm.barrier(NETWORK, moved, BATCH, match=True) == pytest.approx(0, abs=1e-12)


def test_a_plane_holds_its_networks_and_says_where():
    found = mm.plane(NETWORK, OTHER, THIRD, BATCH, points=5)
    assert found["loss"].sizes == {"y": 5, "x": 5}
    for axis in ("x", "y"):
        corners = found[f"corner_{axis}"]
        assert float(found[axis].min()) < float(corners.min()) < float(corners.max()) < float(found[axis].max())
    apart = [nn.utils.parameters_to_vector(n.parameters()) for n in (NETWORK, OTHER, THIRD)]
    places = torch.tensor([found["corner_x"].values, found["corner_y"].values])
    assert (places[:, 1] - places[:, 2]).norm().item() == pytest.approx((apart[1] - apart[2]).norm().item(), rel=1e-4)


@pytest.fixture(scope="module")
def normalized():
    _, first, inputs, targets = of_family("MLP, batch norm")
    return [first, *(of_family("MLP, batch norm", seed=seed)[1] for seed in (1, 2))], (inputs, targets)


def test_batch_normalization_is_named(normalized):
    (network, other, third), examples = normalized
    assert "batch" in mm.line(network, other, examples).attrs["normalization"]
    assert "interpolated" in mm.line(network, other, examples, normalization="frozen").attrs["normalization"]
    assert "batch" in mm.plane(network, other, third, examples, points=2).attrs["normalization"]
    with pytest.raises(ValueError, match=r"normalization.*'freezed'.*frozen"):
        mm.barrier(network, other, examples, normalization="freezed")


def test_a_line_uses_the_statistics_of_the_batch_or_interpolated_ones(normalized):
    (network, other, _), (inputs, targets) = normalized
    middle = copy.deepcopy(network)
    with torch.no_grad():
        for tensors in ("parameters", "buffers"):
            for mean, a, b in zip(*(getattr(each, tensors)() for each in (middle, network, other)), strict=True):
                mean.copy_((a + b) / 2)
        for mode, how in ((False, "frozen"), (True, "recomputed")):
            expected = nn.functional.cross_entropy(copy.deepcopy(middle).train(mode)(inputs), targets)
            found = mm.line(network, other, (inputs, targets), points=3, normalization=how)["loss"]
            assert found[1].item() == pytest.approx(expected.item(), rel=1e-5), how


def test_a_good_network_passes_the_check():
    mm.check([NETWORK, OTHER], BATCH)
    with pytest.raises(ValueError, match="mean over the examples"):
        mm.check(
            NETWORK, BATCH, lambda model, part: nn.functional.cross_entropy(model(part[0]), part[1], reduction="sum")
        )


def test_the_network_that_fails_a_check_is_named():
    fine, broken = mlp(), mlp()
    broken.head.register_forward_hook(lambda module, inputs, output: output + torch.rand_like(output))
    with pytest.raises(ValueError, match=r"network 1 \(MLP\): the loss is .*, then"):
        mm.check([fine, broken], batch())
    with pytest.raises(ValueError, match=r"^the loss is .*, then"):
        mm.check(broken, batch())


def call(name, *args, **options):
    return pytest.param(name, args, options, id=f"{name}-{len(CALLS)}")


BROKEN = mlp()
BROKEN.head.weight.data.fill_(float("nan"))
WRONG_NETWORKS = (None, "MLP", 3, X, [], [None], nn.ReLU())
WRONG_BATCHES = (
    None, "digits", 3, (), {}, (X[:0], Y[:0]), (X, Y[:5]), (X, -1 - Y), (X, Y + CLASSES), (X, Y.float()),
    (X, Y[:, None]), (X[:, :3], Y), (X.long(), Y), (X.double(), Y), (X * float("nan"), Y), (X, "y"), (X, Y, Y),
    torch.tensor(1.0), (X, Y.bool()),
)  # fmt: skip
CALLS = []
for wrong in WRONG_NETWORKS:
    for name in ("size", "couplings", "check"):
        CALLS.append(call(name, wrong, BATCH))
    CALLS.append(call("expand", wrong, BATCH, "lemon", {"hidden.0": 9}))
    CALLS.append(call("barrier", NETWORK, wrong, BATCH))
for wrong in WRONG_BATCHES:
    for name in ("size", "couplings", "check"):
        CALLS.append(call(name, NETWORK, wrong))
    CALLS.append(call("expand", NETWORK, wrong, "lemon", {"hidden.0": 9}))
    CALLS.append(call("line", NETWORK, OTHER, wrong))
for wrong in (None, 3, "lemmon", "", [], [("lemon",)], ["lemon"], ("lemon", {}), torch.Generator()):
    CALLS.append(call("expand", NETWORK, BATCH, wrong, {"hidden.0": 9}))
for wrong in (
    None, {}, "hidden.0", {"hidden.9": 9}, {"hidden.0": 6}, {"hidden.0": 0}, {"hidden.0": -1}, {"hidden.0": 2.5},
    {"hidden.0": None}, {"hidden.0": True}, {"hidden.0": 10**9}, {0: 9}, ["hidden.0"],
):  # fmt: skip
    CALLS.append(call("expand", NETWORK, BATCH, "lemon", wrong))
for options in (
    {"level": float("nan")}, {"level": float("inf")}, {"level": 0.01}, {"level": "high"}, {"level": True},
    {"method": "ray"}, {"method": None}, {"method": 3}, {"seed": None}, {"seed": -1}, {"seed": 0.5},
    {"seed": torch.Generator()}, {"samples": 0}, {"samples": 1}, {"samples": -3}, {"samples": 2.5}, {"samples": 10**9},
    {"minibatch": 0}, {"minibatch": 33}, {"minibatch": "8"}, {"loss_fn": None}, {"loss_fn": nn.CrossEntropyLoss()},
    {"loss_fn": lambda model, part: model(part[0])}, {"loss_fn": lambda model, part: 1.0},
    {"loss_fn": lambda model, part: model(part["x"]).mean()},
    {"loss_fn": lambda model, part: torch.tensor(float("nan"))},
):  # fmt: skip
    CALLS.append(call("size", NETWORK, BATCH, **options))
CALLS += [
    call("sizes", NETWORK, BATCH, methods=[]), call("sizes", NETWORK, BATCH, methods="rays"),
    call("sizes", NETWORK, BATCH, methods=["rayz"]), call("sizes", NETWORK, BATCH, methods=3),
    call("size", BROKEN, BATCH), call("check", BROKEN, BATCH), call("line", NETWORK, BROKEN, BATCH),
    call("check", NETWORK, BATCH, normalization="thawed"), call("line", NETWORK, mlp((6, 5)), BATCH),
    call("line", NETWORK, OTHER, BATCH, points=1), call("line", NETWORK, OTHER, BATCH, points=2.5),
    call("line", NETWORK, OTHER, BATCH, match="yes"), call("barrier", NETWORK, OTHER, BATCH, match=True, seed=None),
    call("line", NETWORK, OTHER, BATCH, seed="x"), call("candidate_pool", NETWORK, BATCH, locations=[]),
    call("plane", NETWORK, NETWORK, NETWORK, BATCH), call("plane", NETWORK, OTHER, OTHER, BATCH),
    call("plane", NETWORK, OTHER, NETWORK, BATCH), call("plane", NETWORK, OTHER, None, BATCH),
    call("plane", NETWORK, OTHER, THIRD, BATCH, points=0), call("plane", NETWORK, OTHER, mlp((5,)), BATCH),
    call("candidate_pool", None, BATCH), call("candidate_pool", NETWORK, None),
    call("candidate_pool", NETWORK, BATCH, loss_fn=3), call("couplings", NETWORK, {"inputs": X, "targets": Y}),
    call("expand", NETWORK, BATCH, "lemon", {"hidden.0": 9}, seed="one"),
    call("expand", NETWORK, BATCH, Candidate("lemon", ("hidden.0",), (9,)), {"hidden.0": 9}),
    call("expand", NETWORK, X, "gradmax", {"hidden.0": 9}), call("expand", NETWORK, BATCH, "stack", {"nowhere.0": 1}),
    call("expand", MLP(INPUTS, (5,), 4).double(), BATCH, "lemon", {"hidden.0": 9}),
    call("candidate_pool", NETWORK, BATCH, covered="all"), call("candidate_pool", NETWORK, BATCH, factors=b"x"),
    call("candidate_pool", NETWORK, BATCH, factors=[10**400]), call("candidate_pool", NETWORK, BATCH, matched=[1e300]),
    call("candidate_pool", NETWORK, BATCH, extra_layers=[10**400]), call("size", NETWORK, BATCH, level=10**400),
    call("size", NETWORK, BATCH, level=-10**400), call("size", NETWORK, BATCH, samples=10**400),
    call("size", NETWORK, BATCH, loss_fn=lambda model, part: classification(model, part).detach()),
    call("size", torch.jit.script(nn.Linear(INPUTS, CLASSES)), BATCH), call("receipt", NETWORK, None, BATCH),
    call("size", NETWORK, (X.to_sparse(), Y)), call("size", NETWORK, (X.to("meta"), Y.to("meta"))),
    call("size", NETWORK, torch.nested.nested_tensor([X[0], X[1]])),
]  # fmt: skip


GROWS = Candidate("lemon", ("hidden.0",), (9,))
ON_A_CANDIDATE = [
    *(lambda each=each: GROWS.expand(each, BATCH) for each in (None, "x", 3, [])),
    *(lambda each=each: GROWS.grow(NETWORK, each) for each in (None, "x", X[:, :3], X.long(), torch.tensor(1.0))),
    *(lambda each=each: GROWS.grow(NETWORK, BATCH, each) for each in (None, "x")),
    lambda: GROWS.grow(NETWORK, BATCH, keep="*.horizon"), lambda: GROWS.grow(NETWORK, BATCH, also=X),
    *(lambda each=each: GROWS.cost(each) for each in (None, "x", -1, 2.5)),
    *(lambda each=each: Candidate.from_dict(each) for each in (None, "x", 3, {}, {"operator": "lemon"})),
]  # fmt: skip


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("made", ON_A_CANDIDATE, ids=range(len(ON_A_CANDIDATE)))
def test_a_candidate_that_is_carried_out_checks_its_arguments(made):
    with pytest.raises((ValueError, TypeError)) as caught:
        made()
    assert type(caught.value) in (ValueError, TypeError)
    assert not str(caught.value).startswith(("mat1", "dictionary", "expected"))


@pytest.mark.parametrize("name", ["size", "couplings", "expand", "check"])
def test_another_type_of_numbers_is_named(name):
    double = MLP(INPUTS, (5,), CLASSES).double()
    more = ("lemon", {"hidden.0": 9}) if name == "expand" else ()
    with pytest.raises(ValueError, match=r"The network is float64 and the batch float32: convert one of them"):
        getattr(mm, name)(double, BATCH, *more)


def test_shapes_are_checked_while_tests_run():
    with pytest.raises(jaxtyping.TypeCheckError):
        deviation(torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("name", "args", "options"), CALLS)
def test_a_bad_call_is_answered_by_a_sentence(name, args, options):
    with pytest.raises((ValueError, TypeError)) as caught:
        getattr(mm, name)(*args, **options)
    said = str(caught.value)
    assert type(caught.value) in (ValueError, TypeError), type(caught.value)
    assert len(said) > 30
    assert "positional argument" not in said


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_had_in_whichever_mode_a_call_is_made(mode):
    def asked():
        grown = mm.expand(NETWORK, BATCH, "gradmax", {"hidden.0": 9})
        sizes = mm.sizes(NETWORK, BATCH, methods=["curvature", "extent"])
        return str(mm.receipt(NETWORK, grown, BATCH)), str(mm.coverage(NETWORK, BATCH)), sizes["size"].values.tolist()

    with mode():
        inside = asked()
        assert mm.size(NETWORK, (X * 1.0, Y), method="curvature")["status"] == "ok"  # made in this mode
    assert inside == asked()


def test_a_network_made_in_inference_mode_is_refused():
    with torch.inference_mode():
        network = mlp()
    with pytest.raises(ValueError, match=r"was made under torch\.inference_mode\(\)"):
        mm.size(network, BATCH)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("size", {"method": "ray"}, ["'ray'", "'rays'"]),
        ("size", {"minibatch": 33}, ["33", "32"]),
        ("size", {"level": float("nan")}, ["nan"]),
        ("size", {"samples": 10**9}, ["GB"]),
        ("expand", {"how": "lemmon", "where": {"hidden.0": 9}}, ["'lemmon'", "'lemon'"]),
        ("expand", {"how": "lemon", "where": {"hidden.9": 9}}, ["hidden.9", "hidden.0", "hidden.1"]),
        ("expand", {"how": "lemon", "where": {"hidden.0": 2.5}}, ["2.5", "whole"]),
        ("size", {"batch": (X, Y + CLASSES)}, ["0 … 3", "7"]),
        ("size", {"batch": (X[:, :3], Y)}, ["(32, 3)"]),
        ("size", {"loss_fn": nn.CrossEntropyLoss()}, ["CrossEntropyLoss", "loss_fn(model, batch)"]),
    ],
)
def test_a_message_names_the_value_and_what_to_give_instead(name, options, words):
    with pytest.raises((ValueError, TypeError)) as caught:
        getattr(mm, name)(**{"network": NETWORK, "batch": BATCH, **options})
    assert [word for word in words if word not in str(caught.value)] == []


def margins(model, part):
    return F.multi_margin_loss(model(part[0]), part[1])


def test_a_method_that_cannot_measure_is_named():
    with pytest.raises(
        NotImplementedError, match=r"^curvature takes a derivative .*multi_margin_loss.* Leave curvature"
    ):
        mm.sizes(nn.Linear(INPUTS, CLASSES), BATCH, methods=["rays", "curvature"], loss_fn=margins, samples=2)
    one, data = nn.Linear(1, 1, bias=False), (X[:, :1], X[:, 1:2])
    with pytest.raises(ValueError, match=r"^simplex cannot .*as many parameters as corners; got 1 for corners=2"):
        mm.sizes(one, data, methods=["rays", "simplex"], loss_fn=regression, samples=2)


def test_what_needs_no_training_is_measured_where_nothing_can_be_trained():
    network = nn.Sequential(nn.Linear(INPUTS, 3), nn.BatchNorm1d(3), nn.Linear(3, CLASSES))
    assert mm.size(network, (X[:3], Y[:3]), method="rays", samples=2)["size"].notnull().all()  # in minibatches of one
    with pytest.raises(ValueError, match=r"^children cannot .*more than 1 value per channel"):
        mm.size(network, (X[:3], Y[:3]), method="children", samples=2)


def test_a_mask_may_leave_nothing_of_the_first_half():
    masked = Y.clone()
    masked[: len(Y) // 2] = -100
    mm.check(NETWORK, (X, masked), lambda model, part: F.cross_entropy(model(part[0]), part[1], ignore_index=-100))
    with pytest.raises(ValueError, match="reduction='sum'"):
        mm.check(NETWORK, (X, masked), lambda model, part: len(part[1]) * F.cross_entropy(model(part[0]), part[1]))


def test_what_is_wrong_is_named_where_it_lies():
    with pytest.raises(TypeError, match=r"wrapped by DataParallel: give network\.module"):
        mm.size(nn.DataParallel(copy.deepcopy(NETWORK)), BATCH)  # which moves it to a GPU
    with pytest.raises(TypeError, match=r"also\[1\]: batch must be a tensor"):
        mm.expand(NETWORK, BATCH, "lemon", {"hidden.0": 9}, also=[BATCH, None])


def test_whole_numbers_of_numpy_are_those_of_python():
    two, three, nine = map(np.int64, (2, 3, 9))
    found = mm.size(NETWORK, BATCH, np.float32(3), "rays", three, samples=two)
    assert found.identical(mm.size(NETWORK, BATCH, 3, "rays", 3, samples=2))
    assert type(found.attrs["seed"]) is int
    one, other = (Candidate("lemon", ("hidden.0",), (size,), seed) for size, seed in ((nine, three), (9, 3)))
    assert one == other
    assert json.dumps(one.as_dict()) == json.dumps(other.as_dict())
    grown = mm.expand(NETWORK, BATCH, "lemon", {"hidden.0": nine}, seed=three)
    assert change(grown, one.expand(NETWORK, BATCH), X) == 0
    assert mm.line(NETWORK, OTHER, BATCH, points=three, match=True, seed=two).sizes["alpha"] == 3
    for wrong in (np.bool_(True), np.float64(3), np.array([1, 2]), torch.tensor(True)):
        with pytest.raises(TypeError, match="seed must be a whole number"):
            mm.size(NETWORK, BATCH, seed=wrong)


def test_the_default_loss_is_named_once():
    assert mm.size(NETWORK, BATCH, method="rays", loss_fn=classification).identical(
        mm.size(NETWORK, BATCH, method="rays")
    )
