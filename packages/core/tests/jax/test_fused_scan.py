"""Scans with a backward pass and a platform of their own, and the kernel among them."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parafix.core.jax import (
    AbstractFusedScan,
    affine_scan,
    SequentialScan,
    TritonScan,
)
from parafix.core.testing.jax import assert_close, dense_affine_scan, ScanContract


PASSES = []


class OwnPassScan(AbstractFusedScan):
    """Has a backward pass of its own, and notes what it is asked for."""

    platform: str = "cpu"

    def solve(self, a, b, init, reverse):
        PASSES.append("solve")
        return SequentialScan().solve(a, b, init, reverse)

    def vjp(self, a, x, init, g, reverse, with_a):
        PASSES.append("vjp with a" if with_a else "vjp")
        a_full = jnp.broadcast_to(a, x.shape)
        zero = jnp.zeros_like(a_full[:1])
        after = (
            jnp.concatenate([zero, a_full[:-1]])
            if reverse
            else jnp.concatenate([a_full[1:], zero])
        )
        of_b = SequentialScan().solve(after, g, jnp.zeros_like(init), not reverse)
        edge = -1 if reverse else 0
        of_init = a_full[edge] * of_b[edge]
        if not with_a:
            return None, of_b, of_init
        parts = [x[1:], init[None]] if reverse else [init[None], x[:-1]]
        of_a = of_b * jnp.concatenate(parts)
        axes = tuple(i for i, n in enumerate(a.shape) if n != x.shape[i])
        return of_a.sum(axes, keepdims=True) if axes else of_a, of_b, of_init

    def reasons_against(self, a, b):
        return ["dense matrices are not served"] if a.ndim > b.ndim else []

    def reasons_against_platform(self, platform):
        return [] if platform == self.platform else [f"{platform} is not its platform"]


class TestOwnPassScan(ScanContract):
    dense = False

    def make(self):
        return OwnPassScan()


def recurrence(shape, lead=None, seed=0):
    random = np.random.default_rng(seed)
    lead = shape[:-1] if lead is None else lead
    sizes = (*lead, shape[-1]), shape, shape[1:]
    return tuple(jnp.asarray(random.normal(size=size)) for size in sizes)


def loss_of(solver, reverse=False):
    def loss(a, b, init):
        x = solver(a, b, init, reverse=reverse)
        weights = jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
        return jnp.sum(weights * jnp.sin(x) * x)

    return loss


def by_own_pass(a, b, init, reverse=False):
    return affine_scan(a, b, init, reverse=reverse, scan=OwnPassScan())


def test_a_gradient_is_one_scan_and_one_pass():
    arguments = recurrence((5, 3, 2))
    for which, expected in (
        ((0, 1, 2), ["solve", "vjp with a"]),
        ((1,), ["solve", "vjp"]),
    ):
        PASSES.clear()
        jax.jit(jax.grad(loss_of(by_own_pass), which)).lower(*arguments)
        assert sorted(PASSES) == expected


@pytest.mark.parametrize(
    ("lead", "reverse"),
    [((4, 3), True), ((1, 3), False), ((4, 1), True), ((1, 1), False)],
)
def test_derivatives_of_one_argument_alone(lead, reverse):
    arguments = recurrence((4, 3, 1), lead)

    def derivatives(solver):
        loss = loss_of(solver, reverse)

        def everything(*arguments):
            for place in range(3):
                gradient = jax.grad(loss, place)
                yield gradient(*arguments)
                yield jax.jacfwd(gradient, place)(*arguments)
                yield jax.jacrev(gradient, place)(*arguments)
                yield jax.jacrev(jax.jacfwd(loss, place), place)(*arguments)

        return jax.jit(lambda *arguments: list(everything(*arguments)))(*arguments)

    assert_close(derivatives(by_own_pass), derivatives(dense_affine_scan))


def test_third_derivatives():
    arguments = recurrence((3, 2))
    found, expected = (
        jax.jit(jax.jacfwd(jax.hessian(loss_of(solver), (0, 1)), 0))(*arguments)
        for solver in (by_own_pass, dense_affine_scan)
    )
    assert_close(found, expected)


@pytest.mark.parametrize(
    "axes", [(0, None, None), (None, 1, None), (None, None, 0), (2, 0, None)], ids=str
)
def test_vmap_over_some_arguments(axes):
    samples = [recurrence((4, 3, 2), (4, 1), seed=i) for i in range(2)]
    arguments = [
        samples[0][i] if axis is None else jnp.stack([s[i] for s in samples], axis)
        for i, axis in enumerate(axes)
    ]
    every = lambda f: jax.vmap(f, axes)
    found, expected = (
        [
            jax.jit(every(jax.value_and_grad(loss_of(solver), (0, 1, 2))))(*arguments),
            jax.jit(every(jax.hessian(loss_of(solver), 0)))(*arguments),
        ]
        for solver in (by_own_pass, dense_affine_scan)
    )
    assert_close(found, expected)


def test_transposes_of_transposes():
    a, b, init = recurrence((5, 2))
    solve = lambda b: by_own_pass(a, b, init) - by_own_pass(a, 0 * b, init)
    pulled = lambda g: jax.linear_transpose(solve, b)(g)[0]
    (again,) = jax.linear_transpose(pulled, b)(b)
    assert_close(again, solve(b))


def test_without_jit():
    arguments = recurrence((3, 1))
    assert_close(
        jax.grad(loss_of(by_own_pass))(*arguments),
        jax.grad(loss_of(dense_affine_scan))(*arguments),
    )


def test_another_platform_raises_when_it_is_lowered():
    arguments = recurrence((5, 2))
    scan = OwnPassScan(platform="tpu")
    solve = jax.jit(lambda *x: affine_scan(*x, scan=scan))
    solve.trace(*arguments)
    with pytest.raises(ValueError, match="cpu is not its platform"):
        solve.lower(*arguments)
    text = solve.trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo" in text


class TestTheKernel:
    @pytest.fixture
    def libraries(self, monkeypatch):
        """As if Triton and jax-triton were installed."""
        module = importlib.import_module("parafix.core.jax._scan.triton")
        monkeypatch.setattr(module, "reasons_against_libraries", lambda *names: [])

    def test_says_what_is_not_installed(self, monkeypatch):
        available = importlib.import_module("parafix.core.kernels._available")
        monkeypatch.setattr(available, "installed", lambda module: False)
        b = jnp.ones((5, 2), jnp.float32)
        with pytest.raises(ValueError, match="pip install jax-triton") as caught:
            affine_scan(b, b, scan="triton")
        assert "pip install triton" in str(caught.value)

    @pytest.mark.usefixtures("libraries")
    def test_says_what_it_cannot_take(self):
        with pytest.raises(ValueError, match="'triton' cannot.*dense.*float64"):
            affine_scan(jnp.ones((5, 2, 2)), jnp.ones((5, 2)), scan="triton")

    @pytest.mark.usefixtures("libraries")
    def test_by_name_on_a_cpu_raises_when_it_is_lowered(self):
        b = jnp.ones((5, 2), jnp.float32)
        solve = jax.jit(lambda b: affine_scan(b, b, scan="triton"))
        solve.trace(b)
        with pytest.raises(ValueError, match="NVIDIA GPU, .* compiled for cpu"):
            solve.lower(b)

    @pytest.mark.usefixtures("libraries")
    @pytest.mark.parametrize(("platform", "loop"), [("cpu", True), ("tpu", False)])
    def test_auto_takes_another_one_elsewhere(self, platform, loop):
        b = jnp.ones((5000, 2), jnp.float32)
        solve = jax.jit(jax.grad(lambda b: affine_scan(b, b).sum()))
        text = solve.trace(b).lower(lowering_platforms=(platform,)).as_text()
        assert ("while" in text) == loop

    @pytest.mark.usefixtures("libraries")
    def test_auto_on_a_gpu_launches_it(self, monkeypatch):
        launched = []

        def launch(inputs, sizes, outputs, plan, meta):
            del inputs, plan
            launched.append((sizes[:2], meta["GRADIENT"]))
            return [jnp.zeros(x.shape, x.dtype) for x in outputs]

        module = importlib.import_module("parafix.core.jax._scan.triton")
        monkeypatch.setattr(module, "launch", launch)
        b = jnp.ones((50, 3, 2), jnp.float32)
        solve = jax.jit(jax.grad(lambda b: affine_scan(b, b).sum()))
        solve.trace(b).lower(lowering_platforms=("cuda",))
        assert sorted(launched) == [((50, 6), False), ((50, 6), True)]

    @pytest.mark.usefixtures("libraries")
    def test_auto_on_a_cpu_is_right(self):
        arguments = [x.astype(jnp.float32) for x in recurrence((40, 2))]
        value = lambda scan: jax.jit(
            jax.value_and_grad(loss_of(lambda *x, **k: affine_scan(*x, **k, scan=scan)))
        )(*arguments)
        assert_close(value("auto"), value("sequential"), 1e-5)


def test_its_plan_is_a_matter_of_compilation():
    assert hash(TritonScan()) == hash(TritonScan())
    assert TritonScan() == TritonScan()


def test_the_automatic_choice_is_told_with_reasons():
    from parafix.core.jax._affine_scan import automatic_choice

    assert automatic_choice().startswith("auto takes 'sequential' on cpu; not 'triton'")
    assert "NVIDIA GPU, and this is compiled for cpu" in automatic_choice()
