import os
import random
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import batch, mlp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, Dataset, TensorDataset

from mmstudy.batched.ensemble import classification
from mmstudy.ranking import training as tr
from mmstudy.ranking.training import Training

STEPS = 12


class Noisy(Dataset):
    """Examples with noise from torch, numpy and Python, fresh at each reading."""

    def __init__(self, count: int = 40):
        self.inputs, self.targets = batch(count)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(7) + np.random.normal() + random.gauss(0, 1)  # noqa: NPY002
        return self.inputs[i] + 0.1 * noise, self.targets[i]


def dropping() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 4))


OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, 1e-2),
}


def as_run(optimizer: str = "SGD", **options) -> Training:
    shuffled = DataLoader(Noisy(), 8, shuffle=True)
    return Training(
        classification, shuffled, OPTIMIZERS[optimizer], lambda o: CosineAnnealingLR(o, STEPS), clip=1.0, **options
    )


def started(how: Training) -> tr.Run:
    network = dropping()
    return tr.begun(network, how.optimizer(network.parameters()), how)


def numbers(network: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(network.parameters()).detach()


def test_it_is_the_loop_that_one_would_write(tmp_path):
    network, other = mlp(), mlp()
    data = [batch(8, seed) for seed in range(5)]
    how = Training(classification, data, OPTIMIZERS["AdamW"], clip=0.5)
    run = tr.begun(network, how.optimizer(network.parameters()), how)
    tr.advance([run], how, 7, tmp_path / "state.pt")
    optimizer = OPTIMIZERS["AdamW"](other.parameters())
    losses = []
    for inputs, targets in (data * 2)[:7]:
        optimizer.zero_grad()
        loss = F.cross_entropy(other(inputs), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        optimizer.step()
        losses.append(loss.item())
    torch.testing.assert_close(numbers(network), numbers(other), rtol=1e-6, atol=1e-7)
    assert run.losses == pytest.approx(losses, rel=1e-5)


def test_accumulated_batches_are_one_step(tmp_path):
    network, other = mlp(), mlp()
    data, whole = [batch(8, 0), batch(8, 1)], tuple(map(torch.cat, zip(batch(8, 0), batch(8, 1), strict=True)))
    for each, how in ((network, Training(classification, data, OPTIMIZERS["SGD"], accumulate=2)),
                      (other, Training(classification, [whole], OPTIMIZERS["SGD"]))):  # fmt: skip
        tr.advance([tr.begun(each, how.optimizer(each.parameters()), how)], how, 3, tmp_path / f"{how.accumulate}.pt")
    torch.testing.assert_close(numbers(network), numbers(other))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("pauses", [(5,), (1, 2, 7, 10)], ids=str)
def test_with_pauses_it_is_the_same_to_the_last_bit(optimizer, pauses, tmp_path):
    how = as_run(optimizer)
    once = started(how)
    tr.advance([once], how, STEPS, tmp_path / "once.pt")
    for steps in (*pauses, STEPS):
        again = started(how)  # as a new process would
        tr.resume([again], tmp_path / "paused.pt")
        torch.manual_seed(steps)  # what others draw meanwhile
        random.seed(steps)
        tr.advance([again], how, steps, tmp_path / "paused.pt")
    assert torch.equal(numbers(once.network), numbers(again.network))
    assert once.losses == again.losses


def test_all_networks_meet_the_same_examples():
    how = as_run()
    first, second = ([tuple(b) for b in islice(tr._batches(how, tr.Run(dropping())), 9)] for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_a_loader_with_a_generator_of_its_own_starts_anew(tmp_path):
    data = TensorDataset(*batch(40))
    loader = DataLoader(data, 8, shuffle=True, generator=torch.Generator().manual_seed(3))
    one, two = ([b[1].tolist() for b in tr.epoch_of(loader, 0, 0)] for _ in range(2))
    assert one == two
    assert one != [b[1].tolist() for b in tr.epoch_of(loader, 0, 1)]


def test_the_users_random_numbers_go_on(tmp_path):
    how = as_run()
    run = started(how)
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    tr.advance([run], how, 3, tmp_path / "state.pt")
    assert torch.equal(torch.rand(3), expected)


def test_a_training_that_diverges_ends_and_says_so(tmp_path):
    how = Training(lambda model, b: classification(model, b) * torch.inf, [batch(8)], OPTIMIZERS["SGD"])
    run = started(how)
    tr.advance([run], how, 5, tmp_path / "state.pt")
    assert run.diverged
    assert len(run.losses) == 1
    again = started(how)
    tr.resume([again], tmp_path / "state.pt")
    assert again.diverged


def test_a_half_written_state_is_named(tmp_path):
    how = as_run()
    tr.advance([started(how)], how, 2, tmp_path / "state.pt")
    whole = (tmp_path / "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"state\.pt cannot be read .* delete it to train this network again"):
        tr.resume([started(how)], tmp_path / "state.pt")


def own_loop(network, state, steps, seed):
    """Plain SGD with a state that counts its steps."""
    done = (state or {"steps": 0})["steps"]
    losses = []
    for step in range(done, done + steps):
        loss = classification(network, batch(8, step % 5))
        loss.backward()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
        losses.append(loss)
    return network, losses, {"steps": done + steps}


def test_a_loop_of_ones_own_gets_its_state_back(tmp_path):
    how = Training(classification, [batch(8)], train=own_loop)
    once, paused = tr.begun(mlp(), None, how), tr.begun(mlp(), None, how)
    tr.advance([once], how, 7, tmp_path / "once.pt")
    tr.advance([paused], how, 3, tmp_path / "paused.pt")
    again = tr.begun(mlp(), None, how)
    tr.resume([again], tmp_path / "paused.pt")
    tr.advance([again], how, 7, tmp_path / "paused.pt")
    assert torch.equal(numbers(once.network), numbers(again.network))
    assert again.own == {"steps": 7}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda network, state, steps, seed: network, r"train must return \(network, losses\)"),
        (lambda network, state, steps, seed: (network, [0.1]), "asked for 4 steps and returned 1 losses"),
        (lambda network, state, steps, seed: (network, [None] * steps), "must return a number for each step"),
        (lambda network, state, steps, seed: (network, None), "must return a number for each step; got None"),
        (
            lambda network, state, steps, seed: (network, [0.1] * steps, {"best": [np.float64(1.0)]}),
            r"train must hand back tensors and plain values .* got .*1.0.*float64, at \['best'\]\[0\]",
        ),
        (
            lambda network, state, steps, seed: (network, [0.1] * steps, Path("state")),
            "train must hand back tensors and plain values .* as its state; got .*Path",
        ),
        (
            lambda network, state, steps, seed: (nn.Linear(3, 3), [0.1] * steps),
            "must return the network .* got another",
        ),
        (
            lambda network, state, steps, seed: (network.double(), [0.1] * steps),
            "must return the network in its type and place: .* was torch.float32 on cpu, and is torch.float64 on cpu",
        ),
    ],
)
def test_a_loop_that_returns_something_else_is_refused(returned, message, tmp_path):
    how = Training(classification, [batch(8)], train=returned)
    with pytest.raises(ValueError, match=message):
        tr.advance([tr.begun(mlp(), None, how)], how, 4, tmp_path / "state.pt")
    assert not (tmp_path / "state.pt").exists()


def test_states_of_optimizers_and_of_random_numbers_can_be_handed_back(tmp_path):
    def train(network, state, steps, seed):
        network, losses, _ = own_loop(network, None, steps, seed)
        optimizer = torch.optim.Adam(network.parameters())
        classification(network, batch(8)).backward()
        optimizer.step()
        return network, losses, {"optimizer": optimizer.state_dict(), "random": torch.get_rng_state(), "name": "a"}

    how = Training(classification, [batch(8)], train=train)
    run = tr.begun(mlp(), None, how)
    tr.advance([run], how, 4, tmp_path / "state.pt")
    assert (tmp_path / "state.pt").exists()


KILLED = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {here!r}]
from mmstudy.ranking import training as tr
import test_training
tr.KEEP_EVERY = 0.0
how = test_training.as_run()
run = test_training.started(how)
tr.resume([run], Path({path!r}))
tr.advance([run], how, {steps}, Path({path!r}), lambda count: print(len(run.losses), flush=True))
"""


def test_killed_at_any_moment_it_goes_on_to_the_same_end(tmp_path):
    how, steps = as_run(), 60
    once = started(how)
    tr.advance([once], how, steps, tmp_path / "once.pt")
    here = Path(__file__).parent
    code = KILLED.format(tests=str(here.parent), here=str(here), path=str(tmp_path / "killed.pt"), steps=steps)
    for moment in (7, 31):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for line in process.stdout:
            if int(line) >= moment:
                os.kill(process.pid, signal.SIGKILL)
                break
        process.wait()
    again = started(how)
    tr.resume([again], tmp_path / "killed.pt")
    assert 7 <= len(again.losses) <= steps
    tr.advance([again], how, steps, tmp_path / "killed.pt")
    assert torch.equal(numbers(once.network), numbers(again.network))
    assert once.losses == again.losses
