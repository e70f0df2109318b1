"""What is measured on networks at one moment of their training, a batch of networks at once."""

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mmstudy.batched import ensemble as en
from mmstudy.batched import scoring
from mmstudy.batched.objective import Objective, of_networks
from mmstudy.core.seeds import generator
from mmstudy.core.tasks import Data, Task
from mmstudy.manifold import directions, profiles
from mmstudy.manifold.children import disagreement, offspring, spread
from mmstudy.manifold.curvature import quadratic_forms
from mmstudy.manifold.estimators import ESTIMATORS
from mmstudy.manifold.extent import ways_of
from mmstudy.study.draws import minibatch_order, probe_split, take
from mmstudy.study.protocol import Protocol

RANDOM_UNIT = 1 / 80  # of a filter's norm: random rays go from 0.0125 to 6.4 of it
GRADIENT_UNIT = 1 / 8  # of a training step: gradient rays go from an eighth of one to 64


def probe(
    task: Task,
    data: Data,
    networks: en.Ensemble,
    snapshots: Float[Tensor, "n k dim"],
    level: float,
    protocol: Protocol,
) -> xr.Dataset:
    """Losses, children and rays of so many networks, over (network); see `sweep.variables` for the variables.

    Where a network or one of its children has diverged, everything is NaN.

    Args:
        snapshots: points that each network's own training has come through.
        level: what the protocol's estimators go up to.
    """
    split, k = probe_split(task, data, protocol), protocol.children
    objective = of_networks(
        networks, split, training=data.training, minibatch=protocol.batch, take=take(data, protocol)
    )
    points = en.vectors(networks)
    order = minibatch_order(task, data, protocol, [f"child {i}" for i in range(k)], protocol.child_steps)
    rates = torch.full((len(networks),), protocol.step_size)
    ((_, children, seen),) = offspring(objective, points, order, rates, protocol.momentum)
    alive = children.isfinite().all(2).all(1)
    children = torch.where(alive.view(-1, 1, 1), children, 0.0)  # measured, and thrown away
    centre = en.at(networks, children.mean(1))
    found = {
        "training_loss": en.losses(networks, data.training),
        **_validation(networks, data, "validation"),
        "explorer_loss": seen.mean((1, 2)),
        **_validation(centre, data, "centre_validation"),
        "disagreement": _disagreement(networks, children, split.inputs),
        "validation_disagreement": _disagreement(networks, children, data.validation.inputs),
        "hessian_trace": quadratic_forms(objective, points, protocol.traces, generator("trace"))[0].mean(1),
    }
    measured = spread(torch.where(alive.unsqueeze(1), points, 0.0), children).rename(parent="network")
    measured = measured.assign({name: ("network", value.cpu().double().numpy()) for name, value in found.items()})
    measured = measured.merge(_rays(task, objective, networks, children, snapshots, protocol))
    measured = measured.where(xr.DataArray(alive.cpu().numpy(), dims="network"))
    return measured.merge(_estimates(task, objective, en.vectors(centre), alive.cpu(), level, protocol))


def _validation(networks: en.Ensemble, data: Data, name: str) -> dict[str, Tensor]:
    scores = scoring.evaluate(networks, data.validation)
    return {f"{name}_accuracy": scores["accuracy"], f"{name}_loss": scores["nll"]}


def _disagreement(networks: en.Ensemble, children: Float[Tensor, "n k dim"], inputs: Tensor) -> Float[Tensor, " n"]:
    """The share of predictions in which two children differ, family by family."""
    families = (en.at(networks, family, torch.full((len(family),), i)) for i, family in enumerate(children))
    return torch.cat([disagreement(en.outputs(family, inputs).flatten(1, -2).unsqueeze(0)) for family in families])


def _rays(
    task: Task,
    objective: Objective,
    networks: en.Ensemble,
    children: Float[Tensor, "n k dim"],
    snapshots: Float[Tensor, "n k dim"],
    protocol: Protocol,
) -> xr.Dataset:
    """Profiles of the loss along rays of all kinds.

    Returns `ray_loss` (network, ray, place); `ray_length`, of directions, and `ray_origin`, the loss where they start,
    (network, ray). NaN where there is no direction: a run that has not begun has no snapshots.
    """
    points, (along, _), (back, moved) = en.vectors(networks), ways_of(children), ways_of(snapshots)
    centre, middle = children.mean(1), snapshots.mean(1)
    stream = generator("random rays", task)
    random = RANDOM_UNIT * directions.filter_normalized(networks, centre, protocol.random_rays, stream)
    step = GRADIENT_UNIT * protocol.step_size * objective.gradient(points)[1].unsqueeze(1)
    kinds = {
        "children": (centre, along),
        "snapshots": (middle, torch.where(moved.view(-1, 1, 1), back, torch.nan)),
        "random": (centre, random),
        "gradient": (points, torch.cat([-step, step], dim=1)),
    }
    places, rows, dims = profiles.multiples(protocol.doublings), [], ("network", "ray", "place")
    for kind, (origin, ways) in kinds.items():
        loss = profiles.profiles(objective, origin, ways, places)
        start = objective(origin).unsqueeze(1).expand(ways.shape[:2])
        found = {"ray_length": ways.double().norm(dim=-1), "ray_origin": start, "ray_loss": loss}
        variables = {name: (dims[: value.ndim], value.cpu().numpy()) for name, value in found.items()}
        rows.append(xr.Dataset(variables, {"kind": ("ray", [kind] * ways.shape[1]), "place": places}))
    return xr.concat(rows, "ray")


def _estimates(
    task: Task, objective: Objective, centre: Tensor, alive: Tensor, level: float, protocol: Protocol
) -> xr.Dataset:
    """What the protocol's estimators say at the children's centre, over (network), and what each costs."""
    variables: dict[str, xr.DataArray] = {}
    for name in protocol.estimators:
        found = ESTIMATORS[name].measure(objective, centre, level, generator("estimator", name, task))
        found, known = found.rename(parent="network"), xr.DataArray(alive.numpy(), dims="network")
        for part in ("size", "size_se"):
            variables[f"{name}_{part}"] = found[part].where(known)
        variables[f"{name}_size_status"] = found["status"].where(known, "nan")
        variables[f"{name}_size_cost"] = found["cost"]
    return xr.Dataset(variables)
