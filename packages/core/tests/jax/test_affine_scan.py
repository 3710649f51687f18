import functools as ft
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import parafix.core
from parafix.core.jax import (
    AbstractScan,
    affine_scan,
    AssociativeScan,
    BlockedScan,
    SequentialScan,
)
from parafix.core.testing.jax import (
    assert_close,
    assert_identical,
    dense_affine_scan,
    loop_affine_scan,
    temporary_bytes,
)


SCANS = ("sequential", "associative", "blocked", "auto")
STRUCTURES = ("diagonal", "dense")


def normal(seed, shape, dtype):
    random = np.random.default_rng(seed)
    x = random.normal(size=shape)
    if np.issubdtype(dtype, np.complexfloating):
        x = x + 1j * random.normal(size=shape)
    return jnp.asarray(x, dtype)


def recurrence(structure, b_shape, dtype=np.float64, a_lead=None, seed=0):
    """`a`, `b` and `init`, neither growing nor forgetting at once."""
    length, *batch, size = b_shape
    del length
    lead = tuple(b_shape[:-1] if a_lead is None else a_lead)
    tail = (size, size) if structure == "dense" else (size,)
    scale = 0.9 / (max(size, 1) ** 0.5 if structure == "dense" else 1)
    a = scale * normal(seed, lead + tail, dtype)
    return a, normal(seed + 1, b_shape, dtype), normal(seed + 2, (*batch, size), dtype)


@ft.partial(jax.jit, static_argnames=("reverse", "scan"))
def solve(a, b, init, reverse, scan):
    return affine_scan(a, b, init, reverse=reverse, scan=scan)


class TestValues:
    @pytest.mark.parametrize("length", [0, 1, 2, 3, 7, 64, 100])
    @pytest.mark.parametrize("scan", SCANS)
    def test_agree_with_a_loop(self, scan, length):
        kinds = itertools.product(
            STRUCTURES, (np.float64, np.complex128), (False, True)
        )
        if length > 10:
            # Long ones take long to compile, and differ from short ones in length only.
            kinds = ("dense", np.float64, False), ("diagonal", np.complex128, True)
        cases = [
            (recurrence(structure, (length, 2), dtype), reverse)
            for structure, dtype, reverse in kinds
        ]

        @jax.jit
        def all_of_them(arguments):
            return [
                affine_scan(*each, reverse=reverse, scan=scan)
                for each, (_, reverse) in zip(arguments, cases, strict=True)
            ]

        results = all_of_them([arguments for arguments, _ in cases])
        for (arguments, reverse), x in zip(cases, results, strict=True):
            assert_close(x, jnp.asarray(loop_affine_scan(*arguments, reverse=reverse)))

    @settings(max_examples=40)
    @given(st.data())
    def test_every_shape_agrees_with_a_loop(self, data):
        length = data.draw(st.integers(0, 6), "length")
        batch = data.draw(st.lists(st.integers(0, 3), max_size=2), "batch")
        size = data.draw(st.integers(0, 3), "size")
        shape = (length, *batch, size)
        ones = data.draw(st.lists(st.booleans(), min_size=3, max_size=3), "ones")
        lead = [1 if one else axis for one, axis in zip(ones, shape[:-1], strict=False)]
        structure = data.draw(st.sampled_from(STRUCTURES), "structure")
        dtype = data.draw(st.sampled_from([np.float64, np.complex128]), "dtype")
        reverse = data.draw(st.booleans(), "reverse")
        scans = (
            *SCANS,
            BlockedScan(1),
            BlockedScan(4),
            BlockedScan(100),
            SequentialScan(1),
        )
        scan = data.draw(st.sampled_from(scans), "scan")
        a, b, init = recurrence(structure, shape, dtype, lead)
        init = init if data.draw(st.booleans(), "with init") else None
        x = solve(a, b, init, reverse, scan)
        assert_close(x, jnp.asarray(loop_affine_scan(a, b, init, reverse=reverse)))

    @pytest.mark.parametrize("scan", SCANS)
    def test_agree_with_dense_linear_algebra(self, scan):
        for structure in STRUCTURES:
            a, b, init = recurrence(structure, (9, 3, 2))
            assert_close(solve(a, b, init, False, scan), dense_affine_scan(a, b, init))

    @pytest.mark.parametrize("scan", SCANS)
    def test_dtypes_are_kept_and_mixed_ones_promoted(self, scan):
        a, b, init = recurrence("diagonal", (3, 2), np.float32)
        x = solve(a, b, init, False, scan)
        assert x.dtype == jnp.float32
        assert_close(x, jnp.asarray(loop_affine_scan(a, b, init)), 1e-6)
        wide = solve(a, b.astype(complex), init, False, scan)
        assert wide.dtype == jnp.complex128
        a, init = a.astype(complex), init.astype(complex)
        assert_close(wide, jnp.asarray(loop_affine_scan(a, b, init)))

    def test_numpy_arrays_are_taken(self):
        a, b, init = (np.asarray(x) for x in recurrence("diagonal", (5, 2)))
        assert_close(affine_scan(a, b, init), jnp.asarray(loop_affine_scan(a, b, init)))

    def test_a_growing_recurrence_agrees_to_rounding(self):
        # Powers of two are exact, so that the order of products does not matter.
        a, b = jnp.full((60, 1), 2.0), jnp.ones((60, 1))
        expected = 2.0 ** np.arange(1, 61) - 1
        for scan in SCANS:
            x = solve(a, b, None, False, scan)
            np.testing.assert_allclose(x[:, 0], expected, rtol=1e-15)


def loss_of(solver, reverse, complex_valued):
    """A real function of real arguments that weighs every entry of `x` differently."""

    def loss(arguments):
        if complex_valued:
            arguments = [jax.lax.complex(x[0], x[1]) for x in arguments]
        x = solver(*arguments, reverse=reverse)
        weights = jnp.cos(jnp.arange(x.size, dtype=jnp.float64)).reshape(x.shape)
        return jnp.sum(weights * jnp.sin(x.real + 2 * x.imag) * (1 + x.real))

    return loss


@ft.cache
def derivatives_by(scan, structure, reverse, complex_valued):
    """Value, gradient, tangent and Hessian, and the same under `vmap`."""
    if scan == "dense algebra":
        solver = dense_affine_scan
    else:
        solver = ft.partial(affine_scan, scan=scan)
    loss = loss_of(solver, reverse, complex_valued)

    @jax.jit
    def everything(arguments, tangents, batch):
        return {
            "gradient": jax.value_and_grad(loss)(arguments),
            "tangent": jax.jvp(loss, (arguments,), (tangents,))[1],
            "hessian": None if complex_valued else jax.hessian(loss)(arguments),
            "batched": jax.vmap(jax.value_and_grad(loss))(batch),
        }

    dtype = np.complex128 if complex_valued else np.float64
    samples = [recurrence(structure, (4, 2), dtype, seed=7 * i) for i in range(3)]
    if complex_valued:
        samples = [tuple(jnp.stack([x.real, x.imag]) for x in s) for s in samples]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *samples)
    return everything(samples[0], samples[1], batch)


class TestDerivatives:
    @pytest.mark.parametrize(
        ("scan", "structure", "reverse"),
        [
            ("associative", "diagonal", False),
            ("associative", "diagonal", True),
            ("associative", "dense", False),
            ("associative", "dense", True),
            # The derivative belongs to the system: once through each other scan.
            ("sequential", "dense", False),
            ("blocked", "dense", True),
            ("auto", "diagonal", True),
        ],
    )
    def test_agree_with_dense_linear_algebra(self, scan, structure, reverse):
        expected = derivatives_by("dense algebra", structure, reverse, False)
        assert_close(derivatives_by(scan, structure, reverse, False), expected)

    @pytest.mark.parametrize("structure", STRUCTURES)
    def test_are_right_for_complex_numbers(self, structure):
        expected = derivatives_by("dense algebra", structure, False, True)
        assert_close(derivatives_by("associative", structure, False, True), expected)

    @pytest.mark.parametrize(
        ("lead", "reverse"), [((1, 3), False), ((4, 1), True), ((1, 1), True)]
    )
    def test_reach_an_axis_that_broadcasts(self, lead, reverse):
        for structure in STRUCTURES:
            arguments = recurrence(structure, (4, 3, 2), a_lead=lead)
            actual, expected = (
                jax.jit(jax.grad(loss_of(solver, reverse, False)))(arguments)
                for solver in (
                    ft.partial(affine_scan, scan="associative"),
                    dense_affine_scan,
                )
            )
            assert_close(actual, expected)

    @pytest.mark.parametrize("length", [0, 1])
    def test_are_defined_for_short_sequences(self, length):
        for structure in STRUCTURES:
            arguments = recurrence(structure, (length, 2))
            actual, expected = (
                jax.jit(jax.grad(loss_of(solver, False, False)))(arguments)
                for solver in (affine_scan, dense_affine_scan)
            )
            assert_close(actual, expected)

    @pytest.mark.parametrize("name", ["a", "b", "init"])
    def test_of_one_argument_alone(self, name):
        # The others are constants then, whose tangents and cotangents are missing.
        names = ("a", "b", "init")
        arguments = dict(zip(names, recurrence("dense", (4, 2)), strict=True))

        def derivatives(solver):
            def loss(x):
                replaced = {**arguments, name: x}
                return loss_of(solver, False, False)(tuple(replaced.values()))

            gradient = jax.grad(loss)
            everything = (
                gradient,
                jax.jacfwd(gradient),
                jax.jacrev(gradient),
                jax.jacrev(jax.jacfwd(loss)),
            )
            return jax.jit(lambda x: [each(x) for each in everything])(arguments[name])

        assert_close(derivatives(affine_scan), derivatives(dense_affine_scan))

    def test_without_init(self):
        a, b, _ = recurrence("dense", (4, 2))

        def loss(arguments, solver):
            return jnp.sum(jnp.sin(solver(*arguments, reverse=True)))

        actual, expected = (
            jax.jit(jax.hessian(ft.partial(loss, solver=solver)))((a, b))
            for solver in (affine_scan, dense_affine_scan)
        )
        assert_close(actual, expected)

    def test_under_vmap_over_one_argument(self):
        a, b, init = recurrence("dense", (4, 2))
        many = normal(5, (3, 2), np.float64)
        for scan in SCANS:

            @jax.jit
            @jax.vmap
            def samples(init, scan=scan):
                return affine_scan(a, b, init, scan=scan)

            x = samples(many)
            for i in range(3):
                assert_close(x[i], jnp.asarray(loop_affine_scan(a, b, many[i])))


class TestNaN:
    @pytest.mark.parametrize(
        ("structure", "reverse"), [("dense", False), ("diagonal", True)]
    )
    @pytest.mark.parametrize("scan", SCANS)
    def test_in_a_that_is_not_read_does_not_matter(self, scan, structure, reverse):
        a, b, _ = recurrence(structure, (7, 2))
        edge = -1 if reverse else 0
        poisoned = a.at[edge].set(jnp.nan)

        @jax.jit
        def value_and_gradient(a, b):
            def loss(a, b):
                x = affine_scan(a, b, reverse=reverse, scan=scan)
                return jnp.sum(jnp.sin(x)), x

            return jax.value_and_grad(loss, (0, 1), has_aux=True)(a, b)

        actual = value_and_gradient(poisoned, b)
        assert_identical(actual, value_and_gradient(a.at[edge].set(0), b))

    @pytest.mark.parametrize("scan", SCANS)
    def test_stays_in_its_sample(self, scan):
        a, b, init = recurrence("dense", (7, 3, 2))

        @jax.jit
        def value_and_gradient(a, b, init):
            def loss(a, b, init):
                x = affine_scan(a, b, init, scan=scan)
                return jnp.sum(jnp.sin(x)), x

            gradients, x = jax.grad(loss, (0, 1, 2), has_aux=True)(a, b, init)
            return x, *gradients

        clean = value_and_gradient(a, b, init)
        poisoned = value_and_gradient(a, b.at[3, 1].set(jnp.nan), init)
        assert np.isnan(poisoned[0][3:, 1]).all()
        for x, y in zip(poisoned, clean, strict=True):
            batch = 0 if x.shape == init.shape else 1
            others = ft.partial(jnp.delete, obj=1, axis=batch)
            assert_identical(others(x), others(y))

    @pytest.mark.parametrize("scan", SCANS)
    def test_does_not_reach_earlier_times(self, scan):
        a, b, init = recurrence("dense", (7, 2))
        x = solve(a, b.at[4].set(jnp.nan), init, False, scan)
        assert_close(x[:4], jnp.asarray(loop_affine_scan(a, b, init))[:4])
        assert np.isnan(x[4:]).all()


class TestMemory:
    @pytest.mark.parametrize("scan", SCANS)
    def test_constant_dense_a_is_not_repeated_in_time(self, scan):
        length, size = 256, 16
        a = jnp.eye(size)[None]
        b = jnp.zeros((length, size))

        def loss(a, b):
            return jnp.sum(jnp.sin(affine_scan(a, b, scan=scan)))

        blocks = length * size * size * b.itemsize
        assert temporary_bytes(ft.partial(affine_scan, scan=scan), a, b) < blocks / 2
        if scan == "associative":
            assert temporary_bytes(jax.grad(loss, 1), a, b) < blocks / 2

    def test_dense_a_is_not_repeated_over_the_batch(self):
        length, batch, size = 8, 64, 16
        a = jnp.zeros((length, 1, size, size))
        b = jnp.zeros((length, batch, size))
        repeated = a.nbytes * batch
        for scan in SCANS:
            used = temporary_bytes(ft.partial(affine_scan, scan=scan), a, b)
            assert used < repeated / 2, scan


class Refusing(AbstractScan):
    """Takes diagonal recurrences only."""

    def solve(self, a, b, init, reverse):
        return SequentialScan().solve(a, b, init, reverse)

    def reasons_against(self, a, b):
        reasons = []
        if a.ndim > b.ndim:
            reasons.append("it takes diagonal `a` only")
        if b.dtype == jnp.complex128:
            reasons.append("it is afraid of complex numbers")
        return reasons


class TestArguments:
    @pytest.mark.parametrize(
        ("a", "b", "init", "words"),
        [
            ((5, 2), (2,), None, ["`b`", "(T, *batch, n)"]),
            ((2,), (5, 2), None, ["`a`", "(2,)", "(5, 2)"]),
            ((5, 2, 2, 2), (5, 2), None, ["`a`", "(5, 2, 2, 2)"]),
            ((4, 2), (5, 2), None, ["`a`", "(4, 2)"]),
            ((5, 1), (5, 2), None, ["`a`", "(5, 1)"]),
            ((5, 2, 1), (5, 2), None, ["`a`", "(5, 2, 1)"]),
            ((5, 2, 2), (5, 3, 2), None, ["`a`", "(5, 2, 2)"]),
            ((5, 2), (5, 2), (3,), ["`init`", "(2,)", "(3,)"]),
            ((5, 2), (5, 2), (1, 2), ["`init`", "(1, 2)"]),
            ((5, 3, 2), (5, 3, 2), (2,), ["`init`", "(3, 2)"]),
        ],
    )
    def test_shapes_that_do_not_fit(self, a, b, init, words):
        init = None if init is None else jnp.zeros(init)
        with pytest.raises(ValueError, match="shape|axes") as caught:
            affine_scan(jnp.zeros(a), jnp.zeros(b), init)
        for word in words:
            assert word in str(caught.value)

    @pytest.mark.parametrize("name", ["a", "b", "init"])
    def test_integers(self, name):
        arguments = dict(
            zip(("a", "b", "init"), recurrence("dense", (3, 2)), strict=True)
        )
        arguments[name] = arguments[name].astype(int)
        with pytest.raises(TypeError, match=f"`{name}`.*int64"):
            affine_scan(**arguments)

    def test_an_unknown_scan(self):
        a, b, _ = recurrence("diagonal", (3, 2))
        with pytest.raises(parafix.core.UnknownComponentError, match="associative"):
            affine_scan(a, b, scan="asociative")

    def test_something_that_is_no_scan(self):
        a, b, _ = recurrence("diagonal", (3, 2))
        with pytest.raises(TypeError, match="scan"):
            affine_scan(a, b, scan=3)

    def test_a_scan_that_cannot_serve_gives_all_its_reasons(self):
        arguments = recurrence("dense", (3, 2), np.complex128)
        with pytest.raises(ValueError, match="diagonal `a` only.*complex"):
            affine_scan(*arguments, scan=Refusing())

    def test_a_scan_by_name_that_cannot_serve_raises_too(self):
        component = parafix.core.Component(
            "scan", "refusing", "jax", f"{__name__}:Refusing"
        )
        undo = parafix.core.register(component)
        try:
            arguments = recurrence("dense", (3, 2))
            with pytest.raises(ValueError, match="'refusing'.*diagonal `a` only"):
                affine_scan(*arguments, scan="refusing")
        finally:
            undo()

    def test_a_scan_from_outside_serves(self):
        arguments = recurrence("diagonal", (3, 2))
        assert_close(
            affine_scan(*arguments, scan=Refusing()),
            jnp.asarray(loop_affine_scan(*arguments)),
        )

    @pytest.mark.parametrize("block", [0, -1])
    def test_a_block_without_steps(self, block):
        with pytest.raises(ValueError, match="`block`"):
            BlockedScan(block)

    def test_no_scan_of_the_library_has_reasons_against_what_is_checked(self):
        for structure in STRUCTURES:
            a, b, _ = recurrence(structure, (3, 2))
            for scan in (SequentialScan(), AssociativeScan(), BlockedScan()):
                assert scan.reasons_against(a, b) == []
