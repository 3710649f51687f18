"""What is read off a carry and a step before anything is solved."""

import pytest
import torch
from torch.utils import _pytree as pytree

from parafix.core.testing.torch import assert_identical
from parafix.deer.torch._carry import Layout
from parafix.deer.torch._drivers import Drivers


CARRIES = {
    "flat": torch.tensor([0.5]),
    "tree": {"a": torch.arange(12.0).reshape(2, 2, 3), "b": [torch.ones(2), None]},
    "integers": (torch.arange(3), torch.ones(3), torch.ones(3, 1, dtype=torch.bool)),
    "complex": {"z": torch.tensor([[1 + 2j, 3 - 1j]]), "h": torch.tensor([2.0])},
    "empty": (torch.zeros(2, 0, 2), torch.ones(2)),
    "nothing": (),
    "half": (
        torch.tensor([0.1, 3], dtype=torch.float16),
        torch.tensor([2.5, 1], dtype=torch.bfloat16),
    ),
}


@pytest.mark.parametrize("name", CARRIES)
def test_split_and_join_are_inverse(name):
    carry = CARRIES[name]
    layout = Layout.of(carry)
    state, drivers = layout.split(carry)
    assert state.shape == (layout.samples, layout.size)
    assert state.dtype == layout.dtype
    assert_identical(layout.join(state, drivers), carry)


def test_leading_axes_are_kept():
    carry = CARRIES["complex"]
    layout = Layout.of(carry)
    many = {name: torch.stack([x, 2 * x, 3 * x]) for name, x in carry.items()}
    state, drivers = layout.split(many)
    assert state.shape == (3, 1, layout.size)
    assert_identical(layout.join(state, drivers), many)


@pytest.mark.parametrize("count", [0, 2])
def test_an_axis_may_be_empty(count):
    for name in ("complex", "integers"):
        carry = CARRIES[name]
        layout = Layout.of(carry)
        leaves = [x.expand(count, *x.shape) for x in pytree.tree_leaves(carry)]
        several = pytree.tree_unflatten(leaves, layout.treedef)
        state, drivers = layout.split(several)
        assert state.shape == (count, layout.samples, layout.size)
        assert_identical(layout.join(state, drivers), several)


def test_states_are_wide_enough_for_every_leaf():
    double = torch.ones(1, dtype=torch.float64)
    assert Layout.of(CARRIES["half"]).dtype == torch.float32
    assert Layout.of((torch.ones(1), double)).dtype == torch.float64
    assert Layout.of(torch.ones(1, dtype=torch.complex64)).dtype == torch.float32
    assert Layout.of(torch.ones(1, dtype=torch.complex128)).dtype == torch.float64


def test_rounding_is_that_of_each_leaf():
    found = {leaf.eps for leaf in Layout.of(CARRIES["half"]).leaves}
    assert found == {torch.finfo(x.dtype).eps for x in CARRIES["half"]}


def test_a_complex_number_counts_twice():
    layout = Layout.of(CARRIES["complex"])
    assert layout.size == 5
    sizes = {leaf.name: leaf.size for leaf in layout.leaves}
    assert sizes == {"carry['h']": 1, "carry['z']": 4}


def test_leaves_are_called_by_their_paths():
    assert Layout.of(CARRIES["flat"]).names == ("carry",)
    names = ("carry['a']", "carry['b'][0]", "carry['b'][1]")
    assert Layout.of(CARRIES["tree"]).names == names


def found(f, carry, x=None):
    return Drivers.of(f, Layout.of(carry), carry, x)


def in_place(n, h):
    n = n.clone()
    n[0:1].add_(h.long()[0:1])
    return n


def by_another(n, h):
    # Memory that is shared is followed, whatever it is called.
    box = torch.zeros(2, dtype=torch.int64)
    view = box.view(2, 1)[:, 0]
    view.copy_(h.long())
    return n + box


class TestTaint:
    """Which integers depend on floats, however the dependence is hidden."""

    CARRY = {"h": torch.tensor([0.5, -1.0]), "n": torch.tensor([1, 2])}

    @pytest.mark.parametrize(
        "hidden",
        [
            lambda n, h: n + (h > 0).long(),
            lambda n, h: torch.where(h > 0, n, 2),
            lambda n, h: h.detach().long(),
            lambda n, h: torch.stack([h, -h]).argmax(0),
            lambda n, h: h.view(torch.int32).long(),
            lambda n, h: torch.func.vmap(lambda n, h: n + h.long())(n, h),
            lambda n, h: n.index_put((h.long().clamp(0, 1),), n),
            lambda n, h: n + 0 * h.long(),
            in_place,
            by_another,
        ],
        ids=[
            *("add", "where", "detached", "argmax", "bits", "vmap", "place", "zero"),
            *("in place", "by another"),
        ],
    )
    def test_is_found(self, hidden):
        def f(carry, x):
            h, n = carry["h"], carry["n"]
            return {"h": 0.5 * h, "n": hidden(n, h)}, None

        assert found(f, self.CARRY).tainted == (("carry['n']", "carry['h']"),)

    @pytest.mark.parametrize(
        "hidden",
        [
            lambda n, h: n + 1 if h[0] > 0 else n,
            lambda n, h: n + int(h[0].item()),
            lambda n, h: n + torch.tensor(h.tolist()).long(),
            lambda n, h: n + torch.from_numpy(h.numpy()).long(),
            lambda n, h: n + len(h.nonzero()),
        ],
        ids=["if", "item", "list", "numpy", "count"],
    )
    def test_by_way_of_python_is_not_overlooked(self, hidden):
        def f(carry, x):
            h, n = carry["h"], carry["n"]
            return {"h": 0.5 * h, "n": hidden(n, h)}, None

        assert found(f, self.CARRY).tainted == (("carry['n']", None),)

    def test_is_not_imagined(self):
        layer = torch.nn.LSTMCell(1, 1)

        def f(carry, x):
            h, n = carry["h"], carry["n"].clone()
            out, _ = layer(h[:, None])
            # What is written to what depends on floats changes no integer.
            buffer = out[:, 0].detach().clone()
            buffer += n
            n += 1
            return {"h": torch.tanh(h) + buffer, "n": n + x}, None

        drivers = found(f, self.CARRY, torch.tensor([3, 4]))
        assert drivers.tainted == ()
        xs = torch.tensor([[3, 4], [5, 6], [7, 8]])
        (before,), (after,) = drivers.run(self.CARRY, xs, 3)
        assert before.tolist() == [[1, 2], [5, 7], [11, 14]]
        assert after.tolist() == [[5, 7], [11, 14], [19, 23]]

    def test_inputs_do_not_count(self):
        def f(carry, x):
            return {"h": carry["h"] + x, "n": carry["n"] + (x > 0)}, None

        assert found(f, self.CARRY, torch.tensor([0.1, -1])).tainted == ()

    def test_what_runs_ahead_does_not_compute_the_floats(self):
        def f(carry, x):
            h = carry["h"]
            for _ in range(50):
                h = torch.tanh(h)
            return {"h": h, "n": carry["n"] + 1}, None

        program = found(f, self.CARRY).program
        assert "tanh" not in program.__self__.code
        assert "add" in program.__self__.code
