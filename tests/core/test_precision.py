import pytest
import torch
from torch import backends

from mmstudy.core import precision

GPU = [backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul]  # their settings are there without one
WAYS = {
    "nothing": lambda: None,
    "older, products": lambda: torch.set_float32_matmul_precision("medium"),
    "older, convolutions": lambda: setattr(backends.cudnn, "allow_tf32", False),
    "newer, convolutions": lambda: setattr(backends.cudnn.conv, "fp32_precision", "ieee"),
    "newer, products": lambda: setattr(backends.cuda.matmul, "fp32_precision", "tf32"),
    "newer, everything": lambda: setattr(backends, "fp32_precision", "tf32"),
    "both": lambda: (torch.set_float32_matmul_precision("high"), setattr(backends.cudnn.rnn, "fp32_precision", "ieee")),
}


def said() -> list:
    """All that torch can be asked about it, in either way; an error where it refuses to answer."""
    older = (
        lambda: backends.cudnn.allow_tf32, lambda: backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision,
    )  # fmt: skip
    answers = []
    for ask in older:
        try:
            answers.append(ask())
        except RuntimeError:
            answers.append(RuntimeError)
    return [precision.settings(), *answers]


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(precision, "_SETTINGS", [backends.mkldnn.conv, backends.mkldnn.matmul, *GPU])
    everything, before = backends.fp32_precision, precision.settings()
    yield
    backends.fp32_precision = everything
    backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")
    precision._set(before)


@pytest.mark.parametrize("way", WAYS)
def test_all_digits_are_kept_for_a_while_and_then_all_is_as_it_was_said(way, gpu):
    WAYS[way]()
    before = said()
    with pytest.raises(ZeroDivisionError), precision.full():  # noqa: PT012
        inside = said()
        assert set(inside[0]) <= {"ieee", "none"} and inside[1:] == [False, False, "highest"]
        with precision.full():
            assert said() == inside
        assert said() == inside
        1 / 0  # noqa: B018
    assert said() == before


def test_products_on_a_processor_lose_no_digits_either(gpu):
    torch.set_float32_matmul_precision("medium")
    assert backends.mkldnn.matmul.fp32_precision == "bf16"
    with precision.full():
        assert backends.mkldnn.matmul.fp32_precision == "ieee"


def test_without_autocast_nothing_runs_under_it_for_a_while():
    x = torch.randn(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with precision.autocast(off=True) as met:
            assert met == ["cpu"]  # what was on before
            with torch.autocast("cpu", torch.bfloat16):
                assert (x @ x).dtype == torch.float32
            assert (x @ x).dtype == torch.float32
            with torch.autocast("cpu", torch.bfloat16, enabled=False):
                assert met == ["cpu", "cpu"]
            torch.set_autocast_enabled(True)  # of a GPU, as older programs say it
            assert met[-1] == "cuda" and not torch.is_autocast_enabled()
        assert (x @ x).dtype == torch.bfloat16
    with precision.autocast(off=True) as met:
        pass
    assert not met
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16


def test_what_runs_under_autocast_is_noted_and_goes_on():
    x = torch.randn(2, 2)
    with precision.autocast() as met:
        assert (x @ x).dtype == torch.float32
        assert not met
        with torch.autocast("cpu", torch.bfloat16):
            assert (x @ x).dtype == torch.bfloat16
        assert met == ["cpu"]
        with precision.autocast(off=True) as inside, torch.autocast("cpu", torch.bfloat16):
            assert (x @ x).dtype == torch.float32
        assert inside == ["cpu"]
    with torch.autocast("cpu", torch.bfloat16), precision.autocast() as met:
        assert met == ["cpu"]
        assert (x @ x).dtype == torch.bfloat16
