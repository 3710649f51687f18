import functools as ft
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from jaxtyping import config
from torch import func
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import parafix.core
from parafix.core.testing.torch import (
    assert_close,
    assert_identical,
    dense_affine_scan,
    directional_derivative,
    largest_bytes,
    loop_affine_scan,
)
from parafix.core.torch import (
    AbstractScan,
    affine_scan,
    AssociativeScan,
    BlockedScan,
    SequentialScan,
)


SCANS = ("sequential", "associative", "blocked", "auto")
STRUCTURES = ("diagonal", "dense")


def normal(seed, shape, dtype):
    random = np.random.default_rng(seed)
    x = random.normal(size=shape)
    if dtype.is_complex:
        x = x + 1j * random.normal(size=shape)
    return torch.as_tensor(x, dtype=dtype)


def recurrence(structure, b_shape, dtype=torch.float64, a_lead=None, seed=0):
    """`a`, `b` and `init`, neither growing nor forgetting at once."""
    length, *batch, size = b_shape
    del length
    lead = tuple(b_shape[:-1] if a_lead is None else a_lead)
    tail = (size, size) if structure == "dense" else (size,)
    scale = 0.9 / (max(size, 1) ** 0.5 if structure == "dense" else 1)
    a = scale * normal(seed, lead + tail, dtype)
    return a, normal(seed + 1, b_shape, dtype), normal(seed + 2, (*batch, size), dtype)


@pytest.fixture
def unchecked():
    """Lets a test hand over what the annotations forbid, to see the error."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def leaves_of(*arguments):
    return tuple(x.clone().requires_grad_() for x in arguments)


class TestValues:
    @pytest.mark.parametrize("length", [0, 1, 2, 3, 7, 8, 9, 17, 18, 64, 100])
    @pytest.mark.parametrize("scan", SCANS)
    def test_agree_with_a_loop(self, scan, length):
        for structure, dtype, reverse in itertools.product(
            STRUCTURES, (torch.float64, torch.complex128), (False, True)
        ):
            arguments = recurrence(structure, (length, 2), dtype)
            x = affine_scan(*arguments, reverse=reverse, scan=scan)
            assert_close(x, loop_affine_scan(*arguments, reverse=reverse))

    @settings(max_examples=150)
    @given(st.data())
    def test_every_shape_agrees_with_a_loop(self, data):
        length = data.draw(st.integers(0, 20), "length")
        batch = data.draw(st.lists(st.integers(0, 3), max_size=2), "batch")
        size = data.draw(st.integers(0, 3), "size")
        shape = (length, *batch, size)
        ones = data.draw(st.lists(st.booleans(), min_size=3, max_size=3), "ones")
        lead = [1 if one else axis for one, axis in zip(ones, shape[:-1], strict=False)]
        structure = data.draw(st.sampled_from(STRUCTURES), "structure")
        dtype = data.draw(st.sampled_from([torch.float64, torch.complex128]), "dtype")
        reverse = data.draw(st.booleans(), "reverse")
        scans = (*SCANS, BlockedScan(1), BlockedScan(4), BlockedScan(100))
        scan = data.draw(st.sampled_from(scans), "scan")
        a, b, init = recurrence(structure, shape, dtype, lead)
        init = init if data.draw(st.booleans(), "with init") else None
        x = affine_scan(a, b, init, reverse=reverse, scan=scan)
        assert_close(x, loop_affine_scan(a, b, init, reverse=reverse))

    @pytest.mark.parametrize("scan", SCANS)
    def test_large_states(self, scan):
        # Products of matrices take other ways with more than sixteen entries, and
        # `auto` another scan.
        for lead in (None, (1, 5), (20, 1), (1, 1)):
            arguments = recurrence("dense", (20, 5, 40), a_lead=lead)
            x = affine_scan(*arguments, scan=scan)
            assert_close(x, loop_affine_scan(*arguments), 1e-11)

    @pytest.mark.parametrize("scan", SCANS)
    def test_agree_with_dense_linear_algebra(self, scan):
        for structure in STRUCTURES:
            arguments = recurrence(structure, (9, 3, 2))
            assert_close(
                affine_scan(*arguments, scan=scan), dense_affine_scan(*arguments)
            )

    @pytest.mark.parametrize("scan", SCANS)
    def test_dtypes_are_kept_and_mixed_ones_promoted(self, scan):
        a, b, init = recurrence("diagonal", (3, 2), torch.float32)
        x = affine_scan(a, b, init, scan=scan)
        assert x.dtype == torch.float32
        assert_close(x, loop_affine_scan(a, b, init), 1e-6)
        wide = affine_scan(a, b.to(torch.complex128), init, scan=scan)
        assert wide.dtype == torch.complex128
        a, init = a.to(torch.complex128), init.to(torch.complex128)
        assert_close(wide, loop_affine_scan(a, b, init))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("scan", SCANS)
    def test_of_half_precision(self, scan, dtype):
        for structure in STRUCTURES:
            arguments = [x.to(dtype) for x in recurrence(structure, (20, 3, 2))]
            x = affine_scan(*arguments, scan=scan)
            assert x.dtype == dtype
            expected = loop_affine_scan(*(x.double() for x in arguments))
            eps = torch.finfo(dtype).eps
            assert_close(x.double(), expected, 10 * eps)

    def test_numpy_arrays_are_taken(self):
        a, b, init = (x.numpy() for x in recurrence("diagonal", (5, 2)))
        assert_close(affine_scan(a, b, init), loop_affine_scan(a, b, init))

    def test_a_growing_recurrence_agrees_to_rounding(self):
        # Powers of two are exact, so that the order of products does not matter.
        a, b = torch.full((60, 1), 2.0).double(), torch.ones(60, 1).double()
        expected = 2.0 ** np.arange(1, 61) - 1
        for scan in SCANS:
            x = affine_scan(a, b, scan=scan)
            np.testing.assert_allclose(x[:, 0], expected, rtol=1e-15)


class TestPrecision:
    """What rounds the products of layers does not round those of a recurrence."""

    @pytest.mark.parametrize("scan", SCANS)
    def test_under_autocast(self, scan):
        for structure in STRUCTURES:
            arguments = recurrence(structure, (20, 3, 2), torch.float32)
            a, b, init = leaves_of(*arguments)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                x = affine_scan(a, b, init, scan=scan)
                gradients = torch.autograd.grad(x.sin().sum(), (a, b, init))
            exact = leaves_of(*(x.double() for x in arguments))
            y = affine_scan(*exact)
            assert x.dtype == torch.float32
            assert_close(x.double(), y, 1e-5)
            expected = torch.autograd.grad(y.sin().sum(), exact)
            assert_close(tuple(g.double() for g in gradients), expected, 1e-5)

    @pytest.mark.parametrize("lead", [None, (1, 3), (1, 1)])
    def test_where_products_may_be_rounded(self, lead):
        arguments = recurrence("dense", (20, 3, 5), torch.float32, lead)
        leaves = leaves_of(*arguments)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            x = affine_scan(*leaves)
            gradients = torch.autograd.grad(x.sin().sum(), leaves)
        finally:
            torch.set_float32_matmul_precision(before)
        exact = leaves_of(*(x.double() for x in arguments))
        y = affine_scan(*exact)
        assert_close(x.double(), y, 1e-5)
        expected = torch.autograd.grad(y.sin().sum(), exact)
        assert_close(tuple(g.double() for g in gradients), expected, 1e-5)


def loss_of(solver, reverse=False):
    """A real function of the arguments that weighs every entry of `x` differently."""

    def loss(*arguments):
        x = solver(*arguments, reverse=reverse)
        if x.is_complex():
            x = x.real + 2 * x.imag
        weights = torch.arange(x.numel(), dtype=x.dtype).cos().reshape(x.shape)
        return (weights * x.sin() * (1 + x)).sum()

    return loss


class TestDerivatives:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("lead", [None, (1, 3), (4, 1), (1, 1)])
    @pytest.mark.parametrize("structure", STRUCTURES)
    def test_agree_with_differences(self, structure, lead, reverse, dtype):
        leaves = leaves_of(*recurrence(structure, (4, 3, 2), dtype, lead))
        solve = ft.partial(affine_scan, reverse=reverse)
        for arguments in (leaves, leaves[:2]):
            assert gradcheck(solve, arguments, check_forward_ad=True, fast_mode=True)
            assert gradgradcheck(
                solve, arguments, check_fwd_over_rev=True, fast_mode=True
            )

    @pytest.mark.parametrize("scan", SCANS)
    def test_along_a_direction(self, scan):
        for structure in STRUCTURES:
            point = recurrence(structure, (20, 3, 2))
            direction = recurrence(structure, (20, 3, 2), seed=5)
            loss = loss_of(ft.partial(affine_scan, scan=scan))
            of_all = lambda p, loss=loss: loss(*p)
            expected = directional_derivative(of_all, point, direction, 1e-3)
            tangent = func.jvp(loss, point, direction)[1]
            leaves = leaves_of(*point)
            gradient = torch.autograd.grad(loss(*leaves), leaves)
            pairs = zip(gradient, direction, strict=True)
            cotangent = sum((g * v).sum() for g, v in pairs)
            assert_close((tangent, cotangent), (expected, expected), 1e-9)

    @pytest.mark.parametrize("name", ["a", "b", "init"])
    def test_of_one_argument_alone(self, name):
        # The others are constants then, whose tangents and cotangents are missing.
        names = ("a", "b", "init")
        arguments = dict(zip(names, recurrence("dense", (4, 2)), strict=True))

        def derivatives(solver):
            def loss(x):
                return loss_of(solver)(*{**arguments, name: x}.values())

            x = arguments[name].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(x), x, create_graph=True)
            everything = (
                func.jacfwd(func.jacfwd(loss)),
                func.jacfwd(func.jacrev(loss)),
                func.jacrev(func.jacfwd(loss)),
                func.jacrev(func.jacrev(loss)),
                func.jacfwd(func.jacrev(func.jacfwd(loss))),
            )
            twice = torch.autograd.grad(gradient.sin().sum(), x)[0]
            return gradient, twice, [each(arguments[name]) for each in everything]

        assert_close(derivatives(affine_scan), derivatives(dense_affine_scan))

    def test_of_third_order(self):
        arguments = recurrence("diagonal", (3, 1))
        places = (0, 1, 2)

        def third(solver):
            hessian = func.hessian(loss_of(solver), places)
            return func.jacfwd(hessian, places)(*arguments)

        assert_close(third(affine_scan), third(dense_affine_scan))

    def test_forward_mode_outside_torch_func(self):
        point = recurrence("dense", (4, 2))
        direction = recurrence("dense", (4, 2), seed=5)
        leaves = leaves_of(*point)
        with forward_ad.dual_level():
            duals = map(forward_ad.make_dual, leaves, direction)
            tangent = forward_ad.unpack_dual(loss_of(affine_scan)(*duals)).tangent
            gradient = torch.autograd.grad(tangent, leaves)
            gradient = [forward_ad.unpack_dual(g).primal for g in gradient]

        def push(*x):
            return func.jvp(loss_of(dense_affine_scan), x, direction)[1]

        expected = func.grad(push, (0, 1, 2))(*point)
        assert_close((tangent, tuple(gradient)), (push(*point), expected))

    @pytest.mark.parametrize("length", [0, 1])
    def test_are_defined_for_short_sequences(self, length):
        for structure in STRUCTURES:
            for count in (2, 3):
                leaves = leaves_of(*recurrence(structure, (length, 2))[:count])
                gradients = torch.autograd.grad(loss_of(affine_scan)(*leaves), leaves)
                assert_close(
                    gradients,
                    torch.autograd.grad(
                        loss_of(dense_affine_scan)(*leaves)
                        + 0 * sum(map(torch.sum, leaves)),
                        leaves,
                    ),
                )

    @pytest.mark.parametrize("shape", [(0, 3, 2), (5, 0, 2), (5, 3, 0)])
    def test_of_nothing_are_zero(self, shape):
        leaves = leaves_of(*recurrence("dense", shape))
        gradients = torch.autograd.grad(affine_scan(*leaves).sum(), leaves)
        assert_close(gradients, tuple(torch.zeros_like(x) for x in leaves))
        tangent = func.jvp(affine_scan, leaves, leaves)[1]
        assert tangent.shape == shape

    def test_without_init(self):
        arguments = recurrence("dense", (4, 2))[:2]
        actual, expected = (
            func.hessian(loss_of(solver, True), (0, 1))(*arguments)
            for solver in (affine_scan, dense_affine_scan)
        )
        assert_close(actual, expected)

    def test_nothing_is_kept_without_gradients(self):
        leaves = leaves_of(*recurrence("dense", (4, 2)))
        with torch.no_grad():
            assert not affine_scan(*leaves).requires_grad
        x = affine_scan(leaves[0].detach(), *leaves[1:])
        assert x.requires_grad
        x.sum().backward()
        assert leaves[0].grad is None
        assert leaves[1].grad is not None

    # PyTorch's compiler warns about what it does between graphs, and it cannot follow
    # the checks of annotations.
    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("scan", SCANS)
    def test_under_compile(self, scan, unchecked):
        leaves = leaves_of(*recurrence("dense", (4, 2)))
        loss = loss_of(ft.partial(affine_scan, scan=scan))
        compiled = torch.compile(loss, backend="eager")
        gradients = torch.autograd.grad(compiled(*leaves), leaves)
        assert_close(gradients, torch.autograd.grad(loss(*leaves), leaves))


class TestVmap:
    @pytest.mark.parametrize(
        "places",
        [(0, 0, 0), (1, 2, 1), (None, 0, None), (0, None, None), (None, None, 0)],
    )
    @pytest.mark.parametrize("structure", STRUCTURES)
    def test_over_some_arguments(self, structure, places):
        single = recurrence(structure, (4, 3, 2))
        many = [
            x if place is None else torch.stack([x, 0.5 * x, 0.1 * x], place)
            for x, place in zip(single, places, strict=True)
        ]
        for solver in (affine_scan, func.grad(loss_of(affine_scan), (0, 1, 2))):
            x = func.vmap(solver, places)(*many)
            for i in range(3):
                one = solver(
                    *(
                        x if place is None else x.select(place, i)
                        for x, place in zip(many, places, strict=True)
                    )
                )
                if isinstance(x, tuple):
                    assert_close(tuple(each[i] for each in x), one)
                else:
                    assert_close(x[i], one)

    def test_shared_matrices_are_not_repeated(self):
        a, b, init = recurrence("dense", (8, 16), torch.float32)
        many = torch.stack([b] * 64)

        def solve(many):
            return func.vmap(lambda b: affine_scan(a, b, init))(many)

        assert largest_bytes(solve, many) < 64 * a.nbytes / 2

    def test_twice(self):
        a, b, init = recurrence("dense", (4, 2))
        a = torch.stack([a, 0.5 * a])
        b = torch.stack([b, 2 * b, 3 * b])
        one = lambda a, b: affine_scan(a, b, init)
        x = func.vmap(func.vmap(one, (None, 0)), (0, None))(a, b)
        for i, j in itertools.product(range(2), range(3)):
            assert_close(x[i, j], loop_affine_scan(a[i], b[j], init))


class TestNaN:
    @pytest.mark.parametrize(
        ("structure", "reverse"), [("dense", False), ("diagonal", True)]
    )
    @pytest.mark.parametrize("scan", SCANS)
    def test_in_a_that_is_not_read_does_not_matter(self, scan, structure, reverse):
        a, b, _ = recurrence(structure, (7, 2))
        edge = -1 if reverse else 0

        def value_and_gradient(first):
            changed = a.clone()
            changed[edge] = first
            leaves = leaves_of(changed, b)
            x = affine_scan(*leaves, reverse=reverse, scan=scan)
            return x, torch.autograd.grad(x.sin().sum(), leaves)

        assert_identical(value_and_gradient(torch.nan), value_and_gradient(0))

    @pytest.mark.parametrize("scan", SCANS)
    def test_stays_in_its_sample(self, scan):
        a, b, init = recurrence("dense", (7, 3, 2))

        def value_and_gradient(b):
            leaves = leaves_of(a, b, init)
            x = affine_scan(*leaves, scan=scan)
            return x, *torch.autograd.grad(x.sin().sum(), leaves)

        bad = b.clone()
        bad[3, 1] = torch.nan
        clean, poisoned = value_and_gradient(b), value_and_gradient(bad)
        assert poisoned[0][3:, 1].isnan().all()
        for x, y in zip(poisoned, clean, strict=True):
            batch = 0 if x.shape == init.shape else 1
            others = lambda z, axis=batch: z.index_select(axis, torch.tensor([0, 2]))
            assert_identical(others(x), others(y))

    @pytest.mark.parametrize("scan", SCANS)
    def test_does_not_reach_earlier_times(self, scan):
        for length, time in ((7, 4), (40, 23)):
            a, b, init = recurrence("dense", (length, 2))
            clean = loop_affine_scan(a, b, init)
            b[time] = torch.nan
            x = affine_scan(a, b, init, scan=scan)
            assert_close(x[:time], clean[:time])
            assert x[time:].isnan().all()


class TestMemory:
    @pytest.mark.parametrize("scan", SCANS)
    def test_constant_dense_a_is_not_repeated_in_time(self, scan):
        length, size = 256, 16
        a = torch.eye(size)[None].requires_grad_()
        b = torch.zeros(length, size, requires_grad=True)
        blocks = length * size * size * b.itemsize

        def gradient(a, b):
            return torch.autograd.grad(affine_scan(a, b, scan=scan).sum(), (a, b))

        # The blocked scan keeps the products within a block.
        bound = blocks / 4 if scan == "blocked" else blocks / 8
        assert largest_bytes(gradient, a, b) < bound

    def test_dense_a_is_not_repeated_over_the_batch(self):
        length, batch, size = 8, 64, 16
        a = torch.zeros(length, 1, size, size, requires_grad=True)
        b = torch.zeros(length, batch, size, requires_grad=True)

        def gradient(a, b):
            return torch.autograd.grad(affine_scan(a, b, scan=scan).sum(), (a, b))

        for scan in SCANS:
            assert largest_bytes(gradient, a, b) < a.nbytes * batch / 8, scan

    def test_the_result_is_not_an_argument(self):
        for scan in SCANS:
            a, b, init = recurrence("diagonal", (1, 2))
            for arguments in ((a, b), (a, b, init)):
                x = affine_scan(*arguments, scan=scan)
                x.zero_()
                assert_close(b, recurrence("diagonal", (1, 2))[1])


class TestTheAutomaticChoice:
    def test_is_by_the_size_of_a_step(self):
        from parafix.core.torch._affine_scan import _automatic

        small, large = torch.zeros(20, 1, 8), torch.zeros(20, 1024, 8)
        assert _automatic(small, small) == AssociativeScan()
        assert _automatic(large, large) == SequentialScan()
        assert _automatic(large[:1], small) == AssociativeScan()

    def test_is_told_with_the_reasons_against_the_kernel(self):
        from parafix.core.torch._affine_scan import automatic_choice

        assert "'associative'" in automatic_choice()
        assert "not 'triton': " in automatic_choice()
        assert "NVIDIA GPU, and the tensors are on cpu" in automatic_choice()


class Refusing(AbstractScan):
    """Takes diagonal recurrences only."""

    def solve(self, a, b, init, reverse):
        return SequentialScan().solve(a, b, init, reverse)

    def reasons_against(self, a, b):
        reasons = []
        if a.ndim > b.ndim:
            reasons.append("it takes diagonal `a` only")
        if b.dtype == torch.complex128:
            reasons.append("it is afraid of complex numbers")
        return reasons


class Returning(AbstractScan):
    """Hands an argument back."""

    def solve(self, a, b, init, reverse):
        return b

    def reasons_against(self, a, b):
        return []


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
        init = None if init is None else torch.zeros(init)
        with pytest.raises(ValueError, match="shape|axes") as caught:
            affine_scan(torch.zeros(a), torch.zeros(b), init)
        for word in words:
            assert word in str(caught.value)

    @pytest.mark.parametrize("name", ["a", "b", "init"])
    def test_integers(self, name):
        arguments = dict(
            zip(("a", "b", "init"), recurrence("dense", (3, 2)), strict=True)
        )
        arguments[name] = arguments[name].long()
        with pytest.raises(TypeError, match=f"`{name}`.*int64"):
            affine_scan(**arguments)

    def test_two_devices(self):
        a, b, _ = recurrence("diagonal", (3, 2))
        with pytest.raises(ValueError, match=r"one device.*a: cpu, b: meta"):
            affine_scan(a, b.to("meta"))

    def test_a_device_without_values(self):
        arguments = [x.to("meta") for x in recurrence("dense", (20, 3, 2))]
        for scan in SCANS:
            x = affine_scan(*arguments, scan=scan)
            assert x.shape == (20, 3, 2)
            assert x.device.type == "meta"

    def test_an_unknown_scan(self):
        a, b, _ = recurrence("diagonal", (3, 2))
        with pytest.raises(parafix.core.UnknownComponentError, match="associative"):
            affine_scan(a, b, scan="asociative")

    def test_something_that_is_no_scan(self, unchecked):
        a, b, _ = recurrence("diagonal", (3, 2))
        with pytest.raises(TypeError, match="scan"):
            affine_scan(a, b, scan=3)

    def test_a_scan_that_cannot_serve_gives_all_its_reasons(self):
        arguments = recurrence("dense", (3, 2), torch.complex128)
        with pytest.raises(ValueError, match="diagonal `a` only.*complex"):
            affine_scan(*arguments, scan=Refusing())

    def test_a_scan_by_name_that_cannot_serve_raises_too(self):
        component = parafix.core.Component(
            "scan", "refusing", "torch", f"{__name__}:Refusing"
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
            affine_scan(*arguments, scan=Refusing()), loop_affine_scan(*arguments)
        )

    def test_a_scan_that_hands_an_argument_back(self):
        a, b, init = leaves_of(*recurrence("diagonal", (3, 2)))
        x = affine_scan(torch.zeros_like(a), b, init, scan=Returning())
        assert_close(x, b)
        assert x.data_ptr() != b.data_ptr()
        (gradient,) = torch.autograd.grad(x.sum(), b)
        assert gradient[-1].tolist() == [1, 1]

    @pytest.mark.parametrize("block", [0, -1])
    def test_a_block_without_steps(self, block):
        with pytest.raises(ValueError, match="`block`"):
            BlockedScan(block)

    def test_no_scan_of_the_library_has_reasons_against_what_is_checked(self):
        for structure in STRUCTURES:
            a, b, _ = recurrence(structure, (3, 2))
            for scan in (SequentialScan(), AssociativeScan(), BlockedScan()):
                assert scan.reasons_against(a, b) == []
