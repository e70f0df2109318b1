"""What the literature computes on a network that is not trained yet: zero-cost proxies, and the geometry of gradients.

Each is a function (networks, probe examples) → one number for each network, in evaluation mode, of the mean
cross-entropy; a network that is not finite has NaN. `predictors.PREDICTORS` says what is expected of each.

What needs the gradients of single examples looks at the first `EXAMPLES` of them, in float64. It follows from
the inner products of these gradients, so that no more than one network's gradients are kept at a time. Costs count
passes through a network, and not the linear algebra on what comes out of them.

SMAD (the mean height of saddles over their minima in a plane of losses; Landscaper, 2026) is left out: it takes many
points for each network, and packages of computational topology.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from mmstudy.batched import engine
from mmstudy.batched.engine import Batch, LossFn, Model
from mmstudy.batched.ensemble import Ensemble, at, classification, losses_of, vectors
from mmstudy.batched.modes import measuring
from mmstudy.batched.objective import of_networks
from mmstudy.core.seeds import generator
from mmstudy.manifold.curvature import quadratic_forms, top

EXAMPLES = 64  # whose own gradients are computed
MINIBATCHES = 8  # that these examples make
KERNEL = 16  # examples of the neural tangent kernel: with more, small networks' are singular
RADIUS = 0.05  # of the step in SAM, its authors' default
ITERATIONS = 10  # of the power method
DAMPING = 1e-2  # added to the Fisher matrix, in nats per squared distance
LAYERS = (nn.Linear, nn.Conv2d)  # whose outputs are linear in their weights
OFFSET = 1e-5  # added to eigenvalues of a correlation matrix, its authors' choice


def snip(ensemble: Ensemble, batch: Batch) -> Float[Tensor, " k"]:
    """Σ_i |θ_i ∂L/∂θ_i|: how much the loss hangs on the connections (SNIP), in nats.

    Lee et al. 2019, arXiv 1810.02340; summed over the network by Abdelfattah et al. 2021, arXiv 2101.08134.
    """
    points = vectors(ensemble)
    _, gradient = of_networks(ensemble, batch).gradient(points)
    return (points * gradient).abs().sum(1)


def grasp(ensemble: Ensemble, batch: Batch) -> Float[Tensor, " k"]:
    """−θᵀHg: the change of ½‖g‖² when all parameters shrink, per unit of shrinking (GraSP), in nats².

    Wang et al. 2020, arXiv 2002.07376; summed over the network, with this sign, by Abdelfattah et al. 2021.
    """
    objective, points = of_networks(ensemble, batch), vectors(ensemble)
    _, gradient = objective.gradient(points)
    product = objective.hessian_vector(points, gradient.unsqueeze(1)).squeeze(1)
    return -(points * product).sum(1)


def synflow(ensemble: Ensemble, batch: Batch) -> Float[Tensor, " k"]:
    """ln Σ_i |θ_i ∂R/∂θ_i| at |θ|, R the sum of the outputs for an input of ones (SynFlow); NaN for tokens.

    Tanaka et al. 2020, arXiv 2006.05467; summed over the network by Abdelfattah et al. 2021. No example is looked at,
    only its shape. Normalizations stay, batch normalization with its stored statistics; they can turn terms negative,
    hence the absolute value, which changes nothing without them. Rescaling ReLUs changes nothing.
    """
    if not batch[0].is_floating_point():
        return _undefined(ensemble)
    networks, ones = _double(ensemble, torch.ones_like(batch[0][:1]))
    points = vectors(networks).abs().requires_grad_()
    with torch.enable_grad(), measuring(ensemble.network):
        flow = losses_of(at(networks, points, torch.arange(len(points))), ones, _summed)
        (gradient,) = torch.autograd.grad(flow.sum(), points)
    score = (points * gradient).abs().sum(1).detach().log()
    return score.where(score.isfinite(), torch.nan)


def fisher(ensemble: Ensemble, batch: Batch) -> Float[Tensor, " k"]:
    """(1/n) Σ_i ‖∇l_i‖²: the trace of the empirical Fisher matrix of the parameters, in nats².

    The proxy of Abdelfattah et al. 2021 (after Turner et al. 2020, arXiv 1906.04113) is the same for the scales of
    channels; this is the form in parameter space, which any network has.
    """
    return _squares(_gram(ensemble, batch)).mean(1)


def jacobian_covariance(ensemble: Ensemble, batch: Batch) -> Float[Tensor, " k"]:
    """−Σ_i (ln(σ_i + k) + 1/(σ_i + k)), σ the eigenvalues of how the examples' input Jacobians correlate, k = 10⁻⁵.

    The Jacobian of an example is that of the sum of its outputs. Larger where examples are told apart. NaN for tokens,
    which have no derivative. An example whose Jacobian is constant correlates with none. Mellor et al. 2021,
    arXiv 2006.04647v1; `jacob_cov` of Abdelfattah et al. 2021.
    """
    if not batch[0].is_floating_point():
        return _undefined(ensemble)
    networks, inputs = _double(ensemble, batch[0][:EXAMPLES])
    inputs, found = inputs.requires_grad_(), []
    with torch.enable_grad(), measuring(ensemble.network):
        for one in (networks[i] for i in range(len(networks))):
            output = engine.mapped(one.network, _summed, one.parameters, one.buffers, inputs, shared=True)
            (jacobian,) = torch.autograd.grad(output, inputs)
            found.append(jacobian.flatten(1))
    rows = torch.stack(found)
    rows = F.normalize(rows - rows.mean(2, keepdim=True), dim=2)
    spectrum = _spectrum(rows @ rows.mT) + OFFSET
    return -(spectrum.log() + 1 / spectrum).sum(1)


def gradient_confusion(ensemble: Ensemble, batch: Batch) -> Float[Tensor, " k"]:
    """η = −min ⟨g_a, g_b⟩ over pairs of minibatches: the bound on how far their gradients disagree, in nats².

    Negative where all agree; NaN of fewer than two minibatches. Sankararaman et al. 2020, arXiv 1904.06963.
    """
    return -_least(_between_minibatches(_gram(ensemble, batch)))


def gradient_cosine(ensemble: Ensemble, batch: Batch) -> Float[Tensor, " k"]:
    """The minimum, over pairs of minibatches, of the cosine of their gradients: confusion without their lengths.

    NaN of fewer than two minibatches. Sankararaman et al. 2020, arXiv 1904.06963.
    """
    products = _between_minibatches(_gram(ensemble, batch))
    lengths = _squares(products).sqrt()
    return _least(products / (lengths.unsqueeze(1) * lengths.unsqueeze(2)))


def gradient_diversity(ensemble: Ensemble, batch: Batch) -> Float[Tensor, " k"]:
    """Σ_i ‖∇l_i‖² / ‖Σ_i ∇l_i‖²: how many examples the gradients are worth, per example; 1/n where all are the same.

    Infinite where they cancel. Yin et al. 2018, arXiv 1706.05699.
    """
    products = _gram(ensemble, batch)
    return _squares(products).sum(1) / products.sum((1, 2)).clamp(min=0)


def ntk_condition(ensemble: Ensemble, batch: Batch) -> Float[Tensor, " k"]:
    """λ_max/λ_min of the empirical neural tangent kernel of the sum of the outputs; infinite if singular to rounding.

    Chen et al. 2021 (TE-NAS), arXiv 2102.11535.
    """
    spectrum = _spectrum(_gram(ensemble, batch[0][:KERNEL], _summed))
    lowest, highest = spectrum[:, 0], spectrum[:, -1]
    rounding = spectrum.shape[1] * torch.finfo(spectrum.dtype).eps * highest
    return (highest / lowest).masked_fill(lowest <= rounding, torch.inf)


def sam_sharpness(ensemble: Ensemble, batch: Batch) -> Float[Tensor, " k"]:
    """L(θ + ρ g/‖g‖) − L(θ): the rise of the loss at SAM's ascent step, ρ = 0.05, in nats.

    Foret et al. 2021, arXiv 2010.01412: the maximum over the ball to first order.
    """
    objective, points = of_networks(ensemble, batch), vectors(ensemble)
    loss, gradient = objective.gradient(points)
    return objective(points + RADIUS * F.normalize(gradient, dim=1)) - loss


def hessian_top(ensemble: Ensemble, batch: Batch) -> Float[Tensor, " k"]:
    """The eigenvalue of the Hessian that is largest in magnitude, by the power method; nats per squared distance.

    Ten steps from random signs, as in `manifold.curvature`: approached from below.
    """
    objective, points = of_networks(ensemble, batch), vectors(ensemble)
    _, product = quadratic_forms(objective, points, 1, generator("hessian_top"))
    return top(objective, points, product, ITERATIONS)


def natural_gain(ensemble: Ensemble, batch: Batch) -> Float[Tensor, " k"]:
    """gᵀ(F + λ)⁻¹g: twice the gain promised to a damped natural-gradient step, in nats; λ = 0.01.

    F = JᵀJ/n is the empirical Fisher matrix, J the gradients of the n examples, g = Jᵀ1/n their mean. In the space of
    examples (Woodbury), with A = JJᵀ/n: (1/n) 1ᵀA(A + λ)⁻¹1, from 0 to 1, where it saturates if λ is small against A
    and the examples' gradients are independent. Mitchell et al. 2023 (SENN), arXiv 2307.04526, who factorize F.
    """
    products = _gram(ensemble, batch)
    n = products.shape[1]
    kernel = products / n
    ones, damping = products.new_ones(n), DAMPING * torch.eye(n, dtype=products.dtype, device=products.device)
    weights, _ = torch.linalg.solve_ex(kernel + damping, ones.expand(len(kernel), n))
    return (kernel @ weights.unsqueeze(2)).sum((1, 2)) / n


def tiny(ensemble: Ensemble, batch: Batch) -> Float[Tensor, " k"]:
    """Σ_l (1/n) Σ_i ‖P_l ∇_l l_i‖²: what the layers' best updates gain at first order (TINY), in nats².

    ∇_l l_i is the gradient of an example's loss by what layer l gives it, and P_l projects, over all n examples, onto
    what a change of the layer's weights and bias can do to its outputs; the rest is the layer's expressivity
    bottleneck. New units whose outgoing weights are zero enlarge what the layer that reads them can do, and copies do
    not. Layers are linear ones, at each token, and convolutions of images, at each place. Verbockhaven et al. 2024,
    arXiv 2405.19816, whose units are the best for one layer of the base network: here they are those that the operator
    has made, and the sum is over all layers, so that every candidate has a number.

    Raises:
        ValueError: a convolution in groups, or one whose border is not zeros: what it can do is not worked out here.
    """
    networks, examples = _double(ensemble, batch)
    with torch.enable_grad(), measuring(ensemble.network):
        found = [_granted(member, examples) for member in networks.members()]
    return torch.stack(found) / engine.count(batch)


def _granted(network: nn.Module, examples: Batch) -> Float[Tensor, ""]:
    """Σ_l Σ_i ‖P_l ∇_l l_i‖² of one network."""
    calls: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def note(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        calls.setdefault(layer, []).append((given[0].detach(), output))
        return output.clone()  # what is done to it in place leaves the noted one as it was

    for layer in network.modules():
        if isinstance(layer, LAYERS):
            layer.register_forward_hook(note)
    loss = classification(network, examples) * engine.count(examples)
    outputs = [output for noted in calls.values() for _, output in noted]
    wishes = iter(torch.autograd.grad(loss, outputs))
    parts = []
    for layer, noted in calls.items():
        given = torch.cat([_features(layer, x) for x, _ in noted])
        wanted = torch.cat([_rows(layer, next(wishes)) for _ in noted])
        parts.append(_projected(given, wanted))
    return torch.stack(parts).sum()


def _features(layer: nn.Module, x: Tensor) -> Float[Tensor, "places features"]:
    """What each row of a layer's output is linear in: its inputs, and 1 if there is a bias."""
    if isinstance(layer, nn.Conv2d):
        if layer.groups > 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise ValueError(f"`tiny` takes convolutions of one group, bordered by zeros; got {layer}")
        x = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT
    x = x.flatten(0, -2)
    return x if layer.bias is None else torch.cat([x, x.new_ones(len(x), 1)], dim=1)


def _rows(layer: nn.Module, output: Tensor) -> Float[Tensor, "places outputs"]:
    return (output.flatten(2).mT if isinstance(layer, nn.Conv2d) else output).flatten(0, -2)


def _projected(given: Float[Tensor, "m features"], wanted: Float[Tensor, "m outputs"]) -> Float[Tensor, ""]:
    """‖P wanted‖², P the projection onto the columns of `given`, of any length; NaN where one is not finite."""
    lengths = given.norm(dim=0)
    given = given / lengths.where(lengths > 0, 1.0)
    if not (given.isfinite().all() and wanted.isfinite().all()):
        return given.new_tensor(torch.nan)
    spectrum, ways = torch.linalg.eigh(given.T @ given)
    rounding = len(spectrum) * torch.finfo(spectrum.dtype).eps * spectrum[-1]
    along = (ways.T @ (given.T @ wanted)).square().sum(1)
    return (along / spectrum).where(spectrum > rounding, 0.0).sum()


def _gram(ensemble: Ensemble, batch: Batch, loss_fn: LossFn = classification) -> Float[Tensor, "k n n"]:
    """⟨∇l_i, ∇l_j⟩ of the losses of the first examples, each alone, by all parameters; float64."""
    networks, some = _double(ensemble, engine.take(batch, slice(EXAMPLES)))
    single, n = tree_map(lambda leaf: leaf.unsqueeze(1), some), engine.count(some)
    found = []
    with torch.enable_grad(), measuring(ensemble.network):
        for i, point in enumerate(vectors(networks)):
            copies = point.repeat(n, 1).requires_grad_()  # one for each example
            alone = losses_of(at(networks, copies, torch.full((n,), i)), single, loss_fn, shared=False)
            (gradients,) = torch.autograd.grad(alone.sum(), copies)
            found.append(gradients @ gradients.T)
    return torch.stack(found)


def _squares(products: Float[Tensor, "k n n"]) -> Float[Tensor, "k n"]:
    return products.diagonal(dim1=1, dim2=2)


def _between_minibatches(products: Float[Tensor, "k n n"]) -> Float[Tensor, "k m m"]:
    """⟨g_a, g_b⟩ of the mean gradients of up to `MINIBATCHES` runs of examples."""
    n = products.shape[1]
    parts = engine.pieces(n, -(-n // MINIBATCHES))
    means = torch.stack([products[:, part].mean(1) for part in parts], dim=1)
    return torch.stack([means[:, :, part].mean(2) for part in parts], dim=2)


def _least(pairs: Float[Tensor, "k m m"]) -> Float[Tensor, " k"]:
    """The smallest entry beside the diagonal; NaN if there is none."""
    first, second = torch.triu_indices(pairs.shape[1], pairs.shape[2], offset=1)
    beside = pairs[:, first, second]
    return beside.amin(1) if len(first) else beside.new_full((len(pairs),), torch.nan)


def _spectrum(matrices: Float[Tensor, "k n n"]) -> Float[Tensor, "k n"]:
    """Eigenvalues of symmetric matrices, ascending; NaN where an entry is not finite."""
    broken = ~matrices.isfinite().flatten(1).all(1)
    spectrum = torch.linalg.eigvalsh(matrices.masked_fill(broken[:, None, None], 0))
    return spectrum.masked_fill(broken[:, None], torch.nan)


def _double(ensemble: Ensemble, batch: Batch) -> tuple[Ensemble, Batch]:
    """Networks and examples in float64: small eigenvalues and long products want it."""
    kinds = (ensemble.parameters, ensemble.buffers, batch)
    parameters, buffers, examples = tree_map(lambda t: t.double() if t.is_floating_point() else t, kinds)
    return Ensemble(ensemble.network, parameters, buffers), examples


def _summed(model: Model, inputs: Tensor) -> Tensor:
    return model(inputs).sum()


def _undefined(ensemble: Ensemble) -> Float[Tensor, " k"]:
    return vectors(ensemble).new_full((len(ensemble),), torch.nan)
