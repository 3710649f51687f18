"""`invert` beside the inverses of nflows, normflows and zuko."""

import functools
from typing import NamedTuple

import nflows.distributions
import nflows.flows
import nflows.transforms as nflows_transforms
import normflows
import pytest
import torch
import zuko
from torch import nn

from parafix.core.torch import RESULTS
from parafix.feedforward.torch import invert


FEATURES, CONTEXT, SAMPLES = 16, 3, 5


class Case(NamedTuple):
    """A flow, what its library calls the inverse, and whether it takes contexts."""

    flow: object
    inverse: object
    conditional: bool


def spread(module, by):
    """Larger weights, so that a solve takes more than a few sweeps."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(by)
    return module


def nflows_layers(context):
    size = {"context_features": CONTEXT if context else None}
    affine = nflows_transforms.MaskedAffineAutoregressiveTransform
    spline = nflows_transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
    return [
        spread(affine(FEATURES, 32, **size), 1.3),
        nflows_transforms.RandomPermutation(FEATURES),
        spline(FEATURES, 32, tails="linear", tail_bound=3.0, **size),
        nflows_transforms.ReversePermutation(FEATURES),
        affine(FEATURES, 32, use_residual_blocks=False, random_mask=True)
        if not context
        else affine(FEATURES, 32, **size),
    ]


def of_nflows(transform, conditional=False):
    return Case(transform, lambda y, c: transform.inverse(y, c), conditional)


def nflows_composition(context):
    layers = nflows_layers(context)
    return of_nflows(nflows_transforms.CompositeTransform(layers), context)


def nflows_multiscale(context):
    transform = nflows_transforms.MultiscaleCompositeTransform(2)
    for size in (FEATURES, FEATURES // 2):
        layer = nflows_transforms.MaskedAffineAutoregressiveTransform(size, 32)
        transform.add_transform(layer, (size,))
    return of_nflows(transform)


def nflows_other_way(context):
    layer = nflows_transforms.MaskedAffineAutoregressiveTransform(FEATURES, 32)
    transform = nflows_transforms.InverseTransform(
        nflows_transforms.InverseTransform(layer)
    )
    return of_nflows(transform)


def nflows_flow(context):
    flow = nflows.flows.Flow(
        nflows_transforms.CompositeTransform(nflows_layers(context)),
        nflows.distributions.StandardNormal([FEATURES]),
        nn.Linear(CONTEXT, CONTEXT) if context else None,
    )
    inverse = lambda y, c: flow._transform.inverse(y, flow._embedding_net(c))
    return Case(flow, inverse, context)


def normflows_affine(context):
    size = CONTEXT if context else None
    flow = normflows.flows.MaskedAffineAutoregressive(
        FEATURES, 32, context_features=size
    )
    spread(flow, 2.0)
    return Case(flow, lambda y, c: flow.inverse(y, c), context)


def normflows_spline(context, permuted=True):
    return normflows.flows.AutoregressiveRationalQuadraticSpline(
        FEATURES,
        2,
        32,
        num_context_channels=CONTEXT if context else None,
        permute_mask=permuted,
        init_identity=False,
    )


def normflows_permuted(context):
    flow = normflows_spline(context).mprqat
    return Case(flow, lambda y, c: flow.inverse(y, c), context)


def normflows_model(context):
    layers = [normflows_affine(context).flow for _ in range(2)]
    layers.insert(1, normflows.flows.Permute(FEATURES))
    base = normflows.distributions.DiagGaussian(FEATURES)
    if context:
        model = normflows.ConditionalNormalizingFlow(base, layers)
        return Case(model, model.inverse_and_log_det, True)
    layers.append(normflows.flows.Reverse(normflows_spline(False)))
    model = normflows.NormalizingFlow(base, layers)
    return Case(model, lambda y, c: model.inverse_and_log_det(y), False)


def of_zuko(flow, conditional):
    lazy = getattr(flow, "transform", flow)
    return Case(flow, lambda y, c: lazy(c).inv.call_and_ladj(y), conditional)


def zuko_flow(kind, spread_by, context, **options):
    flow = getattr(zuko.flows, kind)(FEATURES, CONTEXT if context else 0, **options)
    return of_zuko(spread(flow, spread_by), context)


def zuko_graph(context, **options):
    order = torch.randperm(FEATURES)
    adjacency = torch.rand(FEATURES, FEATURES).tril(-1) < 0.7
    adjacency = adjacency.tril(-1) | torch.eye(FEATURES, dtype=torch.bool)
    transform = zuko.flows.MaskedAutoregressiveTransform(
        FEATURES,
        CONTEXT if context else 0,
        adjacency=adjacency[order][:, order],
        **options,
    )
    return of_zuko(spread(transform, 1.3), context)


def zuko_built(context):
    transform = zuko.flows.MAF(FEATURES, transforms=2).transform(None)
    both = torch.distributions.ComposeTransform([transform.inv.inv])
    return Case(both, lambda y, c: transform.inv.call_and_ladj(y), False)


CASES = {
    "nflows composition": nflows_composition,
    "nflows multiscale": nflows_multiscale,
    "nflows other way": nflows_other_way,
    "nflows flow": nflows_flow,
    "normflows affine": normflows_affine,
    "normflows permuted spline": normflows_permuted,
    "normflows model": normflows_model,
    "zuko MAF": functools.partial(zuko_flow, "MAF", 1.5),
    "zuko MAF permuted": functools.partial(zuko_flow, "MAF", 1.5, randperm=True),
    "zuko MAF passes": functools.partial(zuko_flow, "MAF", 1.5, passes=4),
    "zuko NSF": functools.partial(zuko_flow, "NSF", 1.0),
    "zuko NAF": functools.partial(zuko_flow, "NAF", 1.0, transforms=2),
    "zuko SOSPF": functools.partial(zuko_flow, "SOSPF", 1.0, transforms=2),
    "zuko graph": zuko_graph,
    "zuko graph residual": functools.partial(
        zuko_graph, residual=True, hidden_features=(48, 48)
    ),
    "zuko built": zuko_built,
}
WITH_CONTEXT = [
    name
    for name in CASES
    if name not in ("nflows multiscale", "nflows other way", "zuko built")
]
ALL = [
    *((name, False) for name in CASES),
    *((name, True) for name in WITH_CONTEXT),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def drawn(case, dtype=torch.float32):
    y = torch.randn(SAMPLES, FEATURES, dtype=dtype)
    c = torch.randn(SAMPLES, CONTEXT, dtype=dtype) if case.conditional else None
    return y, c


@pytest.mark.parametrize(("name", "context"), ALL)
def test_same_bits(name, context):
    case = CASES[name](context)
    y, c = drawn(case)
    expected = case.inverse(y, c)
    x, log_abs_det, solution = invert(case.flow, y, c)
    for found, wanted in zip((x, log_abs_det), expected, strict=True):
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)
    assert bool(torch.isfinite(x).all())
    assert solution.value is x
    assert solution.result.tolist() == [RESULTS.successful] * SAMPLES
    assert not torch.equal(x, y)
    each = solution.stats["num_steps_each"]
    assert torch.equal(each.sum(0), solution.stats["num_steps"])
    # A sweep that confirms, and never more than the loop takes.
    assert bool((each > 1).all())
    assert bool((each <= FEATURES + 1).all())
    assert torch.equal(
        solution.stats["num_evals"], solution.stats["num_steps"] + 2 * len(each)
    )
    shortest = FEATURES // 2 if name == "nflows multiscale" else FEATURES
    assert solution.stats["exact_prefix"].tolist() == [shortest] * SAMPLES


def gradients(inverse, flow, y, c):
    y, c = y.clone().requires_grad_(), c.clone().requires_grad_()
    x, log_abs_det = inverse(y, c)[:2]
    weights = torch.linspace(0.5, 1.5, FEATURES, dtype=y.dtype)
    loss = (x.sin() * weights).sum() + log_abs_det.square().sum()
    return torch.autograd.grad(loss, [y, c, *flow.parameters()], allow_unused=True)


@pytest.mark.parametrize(
    "name",
    ["nflows flow", "normflows permuted spline", "zuko MAF permuted", "zuko NSF"],
)
def test_gradients_are_those_through_the_loop(name):
    torch.set_default_dtype(torch.float64)
    try:
        case = CASES[name](True)
        y, c = drawn(case, torch.float64)
        expected = gradients(case.inverse, case.flow, y, c)
        found = gradients(functools.partial(invert, case.flow), case.flow, y, c)
    finally:
        torch.set_default_dtype(torch.float32)
    assert sum(g is not None and bool(g.any()) for g in expected) > 4
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            error = (ours - theirs).abs().max()
            assert error <= 1e-10 * theirs.abs().max().clamp(min=1.0)


def test_gradients_of_an_inverse_by_bisection():
    # Its `autograd.Function` takes `y` itself.
    case = of_zuko(zuko.flows.BPF(FEATURES, CONTEXT, transforms=1).double(), True)
    y, c = drawn(case, torch.float64)
    expected = gradients(case.inverse, case.flow, y, c)
    found = gradients(functools.partial(invert, case.flow), case.flow, y, c)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)


def test_gradients_that_cannot_be_had_are_refused():
    # Its bisection takes parameters that are no arguments of anything else.
    flow = zuko.flows.NAF(FEATURES, transforms=1)
    x, _, _ = invert(flow, torch.randn(SAMPLES, FEATURES))
    with pytest.raises(RuntimeError, match="requires gradients and was not seen"):
        x.sum().backward()


def test_second_derivatives():
    case = of_zuko(zuko.flows.MAF(6, transforms=1).double(), False)
    y = torch.randn(2, 6, dtype=torch.float64)
    weight = next(case.flow.parameters())

    def second(inverse):
        given = y.clone().requires_grad_()
        x, log_abs_det = inverse(given, None)[:2]
        loss = x.sin().sum() + log_abs_det.square().sum()
        (gradient,) = torch.autograd.grad(loss, given, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), [given, weight])

    expected = second(case.inverse)
    found = second(functools.partial(invert, case.flow))
    for ours, theirs in zip(found, expected, strict=True):
        assert bool(theirs.any())
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["nflows flow", "normflows model", "zuko MAF"])
def test_the_inverse_of_the_forward_pass(name):
    torch.set_default_dtype(torch.float64)
    try:
        case = CASES[name](False)
        x = torch.randn(SAMPLES, FEATURES)
        if name == "nflows flow":
            y, log_abs_det = case.flow._transform(x)
        elif name == "normflows model":
            y, log_abs_det = case.flow.forward_and_log_det(x)
        else:
            y, log_abs_det = case.flow.transform().call_and_ladj(x)
        found, negative, _ = invert(case.flow, y)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.allclose(found, x, rtol=1e-8, atol=1e-8)
    # normflows keeps the logarithms of its models in the default dtype.
    assert torch.allclose(negative.double(), -log_abs_det.double(), rtol=1e-8)


@pytest.mark.parametrize("name", ["nflows composition", "normflows model", "zuko MAF"])
def test_the_flow_stays_as_it_is(name):
    case = CASES[name](False)
    modules = list(case.flow.modules())
    before = [dict(module.__dict__) for module in modules]
    children = [dict(module._modules) for module in modules]
    invert(case.flow, torch.randn(SAMPLES, FEATURES))
    after = [module.__dict__ for module in modules]
    assert [list(x) for x in before] == [list(x) for x in after]
    assert children == [module._modules for module in modules]


@pytest.mark.parametrize("name", ["nflows composition", "zuko MAF"])
def test_the_loop_itself_gives_the_same_bits(name):
    case = CASES[name](False)
    y, _ = drawn(case)
    x, log_abs_det, _ = invert(case.flow, y)
    looped, again, solution = invert(case.flow, y, solver="sequential")
    assert torch.equal(looped, x)
    assert torch.equal(again, log_abs_det)
    assert solution.stats["num_steps"].tolist() == [3 * FEATURES] * SAMPLES


def test_layouts_in_memory():
    # A matrix product may round otherwise if its argument lies otherwise in memory.
    case = normflows_affine(False)
    y = torch.randn(FEATURES, SAMPLES).T
    expected, logarithm = case.inverse(y, None)
    x, log_abs_det, _ = invert(case.flow, y)
    assert torch.equal(x, expected)
    assert torch.equal(log_abs_det, logarithm)
    assert x.stride() == expected.stride()


def test_batch_shapes_of_zuko():
    flow = zuko.flows.MAF(FEATURES, CONTEXT, transforms=2)
    y, c = torch.randn(SAMPLES, FEATURES), torch.randn(2, 1, CONTEXT)
    x, log_abs_det, solution = invert(flow, y, c)
    expected = flow.transform(c).inv.call_and_ladj(y)
    assert torch.equal(x, expected[0])
    assert torch.equal(log_abs_det, expected[1])
    assert solution.result.shape == (2, SAMPLES)
    assert solution.stats["num_steps_each"].shape == (2, 2, SAMPLES)
    x, log_abs_det, solution = invert(flow, y[0], c[0, 0])
    assert x.shape == (FEATURES,)
    assert solution.message() == ""


def test_nothing_autoregressive():
    flow = zuko.flows.NICE(FEATURES)
    y = torch.randn(SAMPLES, FEATURES)
    x, log_abs_det, solution = invert(flow, y)
    expected = flow.transform().inv.call_and_ladj(y)
    assert torch.equal(x, expected[0])
    assert torch.equal(log_abs_det, expected[1])
    assert solution.stats["num_steps"].tolist() == [0] * SAMPLES
    assert solution.stats["num_steps_each"].shape == (0, SAMPLES)
    assert solution.stats["exact_prefix"].tolist() == [FEATURES] * SAMPLES


def test_an_empty_batch():
    case = nflows_other_way(False)
    x, log_abs_det, solution = invert(case.flow, torch.zeros(0, FEATURES))
    assert x.shape == (0, FEATURES)
    assert log_abs_det.shape == solution.result.shape == (0,)


def test_a_subclass_with_an_inverse_of_its_own():
    class Quick(nflows_transforms.MaskedAffineAutoregressiveTransform):
        def inverse(self, inputs, context=None):
            return inputs + 1, inputs.sum(1)

    y = torch.randn(SAMPLES, FEATURES)
    both = nflows_transforms.CompositeTransform(
        [Quick(FEATURES, 32), nflows_transforms.ReversePermutation(FEATURES)]
    )
    x, log_abs_det, solution = invert(both, y)
    assert torch.equal(x, y.flip(1) + 1)
    assert solution.stats["num_steps_each"].shape == (0, SAMPLES)


@pytest.mark.parametrize(
    ("noise", "match"),
    [
        ({"dropout_probability": 0.5}, "draws random numbers"),
        ({"use_batch_norm": True}, "mixes the samples"),
    ],
)
def test_noise(noise, match):
    flow = nflows_transforms.MaskedAffineAutoregressiveTransform(FEATURES, 32, **noise)
    y = torch.randn(SAMPLES, FEATURES)
    with pytest.raises(ValueError, match=match):
        invert(flow, y)
    x, _, _ = invert(flow.eval(), y)
    assert torch.equal(x, flow.inverse(y)[0])


def test_a_failure_names_the_entry_and_stays_with_its_sample():
    case = normflows_affine(False)
    y, _ = drawn(case)
    expected = invert(case.flow, y)[0]
    y[2, 5] = torch.nan
    with pytest.raises(RuntimeError, match="Transform 1 .* sample 2: .* position: 5"):
        invert(case.flow, y)
    x, _, solution = invert(case.flow, y, throw=False)
    assert solution.result.tolist() == [0, 0, RESULTS.nonfinite, 0, 0]
    assert int(solution.position[2]) == 5
    assert torch.equal(x[[0, 1, 3, 4]], expected[[0, 1, 3, 4]])
    assert torch.equal(x[2, :5], expected[2, :5])


def test_positions_are_those_of_the_flow_where_masks_are_permuted():
    flow = zuko.flows.MaskedAutoregressiveTransform(
        FEATURES, order=torch.arange(FEATURES).flip(0)
    )
    y = torch.randn(SAMPLES, FEATURES)
    y[1, 4] = torch.nan
    _, _, solution = invert(flow, y, throw=False)
    assert solution.result.tolist() == [0, RESULTS.nonfinite, 0, 0, 0]
    assert int(solution.position[1]) == 4


def test_budget():
    case = nflows_composition(False)
    y, _ = drawn(case)
    _, _, solution = invert(case.flow, y, mode="budget", max_steps=2)
    assert solution.result.tolist() == [RESULTS.max_steps_reached] * SAMPLES
    assert solution.stats["num_steps"].tolist() == [6] * SAMPLES
    with pytest.raises(RuntimeError, match="max_steps"):
        invert(case.flow, y, max_steps=2)


def test_a_transform_that_is_built_takes_no_context():
    transform = zuko.flows.MAF(FEATURES, CONTEXT).transform(torch.randn(CONTEXT))
    with pytest.raises(TypeError, match="built for a context already"):
        invert(transform, torch.randn(FEATURES), torch.randn(CONTEXT))
