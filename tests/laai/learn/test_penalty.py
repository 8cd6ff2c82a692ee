"""The sparse group lasso against a numerical minimiser."""

import pytest
import torch

from laai.learn.penalty import proximal_step, value

CASES = [(1, 0.3, 0.0), (1, 0.0, 0.4), (3, 0.0, 0.7), (3, 0.2, 0.5), (4, 0.6, 0.1), (12, 0.3, 0.3), (3, 0.0, 0.0)]


def draw(seed=0):
    return torch.randn(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def objective(point, vector, groups, l1, group_l2, step):
    lasso = sum(part.norm() for part in point.chunk(groups))
    return 0.5 * (point - vector).square().sum() + step * (l1 * point.abs().sum() + group_l2 * lasso)


@pytest.mark.parametrize(("groups", "l1", "group_l2"), CASES)
def test_value_is_its_formula(groups, l1, group_l2):
    vector = draw()
    expected = l1 * sum(abs(x) for x in vector.tolist())
    expected += group_l2 * sum(sum(x * x for x in part.tolist()) ** 0.5 for part in vector.chunk(groups))
    assert value(vector, groups, l1, group_l2).item() == pytest.approx(expected)


@pytest.mark.parametrize(("groups", "l1", "group_l2"), CASES)
@pytest.mark.parametrize("step", [0.1, 1.0, 3.0])
def test_prox_is_the_minimiser(groups, l1, group_l2, step):
    """Against L-BFGS on the objective with smoothed corners, and against every neighbour."""
    vector = draw()
    found = proximal_step(vector, groups, l1, group_l2, step)
    lowest = objective(found, vector, groups, l1, group_l2, step)
    point = vector.clone().requires_grad_()
    solver = torch.optim.LBFGS([point], max_iter=500, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def smooth():
        solver.zero_grad()
        size = (point.square() + 1e-8).sqrt().sum()
        lasso = (point.view(groups, -1).square().sum(-1) + 1e-8).sqrt().sum()
        loss = 0.5 * (point - vector).square().sum() + step * (l1 * size + group_l2 * lasso)
        loss.backward()
        return loss

    solver.step(smooth)
    torch.testing.assert_close(found, point.detach(), rtol=0, atol=5e-3)
    assert lowest <= objective(point.detach(), vector, groups, l1, group_l2, step) + 1e-12
    for k in range(12):  # no better point nearby, along any axis
        for epsilon in (-1e-4, 1e-4):
            moved = found.clone()
            moved[k] += epsilon
            assert objective(moved, vector, groups, l1, group_l2, step) > lowest


def test_zeros_are_exact():
    vector = torch.tensor([0.5, -0.2, 0.05, 3.0, -0.01, 0.3])
    assert proximal_step(vector, 1, 0.3, 0.0, 1.0).eq(0).tolist() == [False, True, True, False, True, True]
    grouped = proximal_step(vector, 3, 0.0, 0.4, 1.0)
    assert grouped.eq(0).tolist() == [False] * 4 + [True] * 2
    torch.testing.assert_close(grouped[:2], vector[:2] * (1 - 0.4 / vector[:2].norm()))
    assert not proximal_step(vector, 2, 10.0, 10.0, 1.0).any()
    assert not proximal_step(torch.zeros(6), 3, 0.1, 0.1, 1.0).any()
    assert torch.equal(proximal_step(vector, 3, 0.0, 0.0, 1.0), vector)


def test_gradient_of_the_value_is_right_and_finite_at_zero():
    vector = draw().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: value(v, 3, 0.2, 0.5), vector)
    half = torch.cat([torch.zeros(4), torch.tensor([3.0, 4.0, 0.0, 0.0])]).requires_grad_()
    value(half, 2, 0.0, 1.0).backward()
    torch.testing.assert_close(half.grad, torch.tensor([0.0] * 4 + [0.6, 0.8, 0.0, 0.0]))


def test_dtype_and_shape_are_kept():
    for dtype in (torch.float32, torch.float64):
        found = proximal_step(draw().to(dtype), 3, 0.1, 0.1, 0.5)
        assert (found.dtype, found.shape) == (dtype, (12,))
