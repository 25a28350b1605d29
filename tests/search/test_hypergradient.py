"""Hypergradients in float64 on a tiny supernet, against the unrolled objective itself."""

import pytest
import torch
from torch.nn import functional

from arnas.search.hypergradient import VirtualStep, hypergradients
from arnas.space.layout import Layout
from arnas.space.supernet import Supernet


class Problem:
    """A supernet, a training and a validation batch, and a virtual step with momentum and weight decay."""

    def __init__(self):
        torch.manual_seed(0)
        self.net = Supernet(Layout.parse("A1 D1"), 2, 3, 1).double()
        for alpha in self.net.architecture.values():
            alpha.data.normal_(0, 0.5)
        self.weights, self.architecture = self.net.weights(), list(self.net.architecture.values())
        images = torch.rand(3, 6, 1, 8, 8, dtype=torch.float64)
        labels = torch.randint(3, (3, 6))
        self.train, self.first, self.second = ((x, y) for x, y in zip(images, labels, strict=True))
        velocity = [0.01 * torch.randn_like(w) for w in self.weights]
        self.step = VirtualStep(learning_rate=0.05, momentum=0.9, weight_decay=0.01, velocity=velocity)

    def loss(self, batch):
        return lambda: functional.cross_entropy(self.net(batch[0]), batch[1])

    def hypergradients(self, method):
        objectives = [self.loss(self.first), self.loss(self.second)]
        return hypergradients(objectives, self.loss(self.train), self.weights, self.architecture, self.step, method)

    def unrolled(self, batch):
        """The objective after a real virtual step, as a function of the architecture of the moment."""
        gradient = torch.autograd.grad(self.loss(self.train)(), self.weights)
        before = [w.detach().clone() for w in self.weights]
        with torch.no_grad():
            for w, g, m in zip(self.weights, gradient, self.step.velocity, strict=True):
                w -= self.step.learning_rate * (self.step.momentum * m + g + self.step.weight_decay * w)
            value = self.loss(batch)().item()
            for w, b in zip(self.weights, before, strict=True):
                w.copy_(b)
        return value

    def moved(self, direction, distance, batch):
        sizes = [alpha.numel() for alpha in self.architecture]
        parts = direction.split(sizes)
        for alpha, part in zip(self.architecture, parts, strict=True):
            alpha.data += distance * part.view_as(alpha)
        value = self.unrolled(batch)
        for alpha, part in zip(self.architecture, parts, strict=True):
            alpha.data -= distance * part.view_as(alpha)
        return value


@pytest.fixture
def problem():
    return Problem()


def test_the_exact_hypergradient_is_the_derivative_of_the_unrolled_objective(problem):
    found, values = problem.hypergradients("exact")
    for gradient, value, batch in zip(found, values, (problem.first, problem.second), strict=True):
        assert value == pytest.approx(problem.unrolled(batch), abs=1e-12)
        for _ in range(3):
            direction = torch.randn_like(gradient)
            slope = (problem.moved(direction, 1e-6, batch) - problem.moved(direction, -1e-6, batch)) / 2e-6
            assert slope == pytest.approx(gradient.dot(direction).item(), rel=1e-4)


def test_the_virtual_step_matters_to_the_exact_hypergradient(problem):
    """The claim above could not fail if the second-order term were negligible here."""
    exact, first_order = (problem.hypergradients(method)[0][0] for method in ("exact", "first_order"))
    assert torch.linalg.vector_norm(exact - first_order) > 0.05 * torch.linalg.vector_norm(exact)


def test_first_order_is_the_plain_gradient(problem):
    found, values = problem.hypergradients("first_order")
    loss = problem.loss(problem.first)()
    expected = torch.cat(
        [g.reshape(-1) for g in torch.autograd.grad(loss, problem.architecture, materialize_grads=True)]
    )
    torch.testing.assert_close(found[0], expected)
    assert values[0] == loss.item()


def test_finite_differences_approach_the_exact_product_where_the_network_is_smooth():
    """A central difference at radius 0.01 is close to double backward, but for the kinks of ReLU."""
    torch.manual_seed(0)
    w, a = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    train = lambda: (w * a).sin().sum() + (w**2 * a).sum()  # noqa: E731
    objective = lambda: (w.cos() * a).sum() + w.exp().sum()  # noqa: E731
    step = VirtualStep(0.1, 0.9, 0.01, [torch.randn(5, dtype=torch.float64)])
    difference, exact = (
        hypergradients([objective], train, [w], [a], step, m)[0][0] for m in ("finite_difference", "exact")
    )
    torch.testing.assert_close(difference, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["finite_difference", "exact", "first_order"])
def test_weights_are_put_back_to_the_bit_and_no_gradient_is_left(problem, method):
    before = [w.detach().clone() for w in problem.weights]
    problem.hypergradients(method)
    assert all(torch.equal(w, b) for w, b in zip(problem.weights, before, strict=True))
    assert all(p.grad is None for p in problem.net.parameters())


def test_objectives_share_the_virtual_step_and_do_not_disturb_each_other(problem):
    together, _ = problem.hypergradients("finite_difference")
    for alone, batch in zip(together, (problem.first, problem.second), strict=True):
        found, _ = hypergradients(
            [problem.loss(batch)], problem.loss(problem.train), problem.weights, problem.architecture, problem.step
        )
        assert torch.equal(found[0], alone)


def test_finite_differences_compute_nothing_for_gradients_of_the_weights(problem):
    train, seen = problem.loss(problem.train), []

    def watched():
        seen.append({weight.requires_grad for weight in problem.weights})
        return train()

    hypergradients(
        [problem.loss(problem.first)], watched, problem.weights, problem.architecture, problem.step, "finite_difference"
    )
    assert seen == [{True}, {False}, {False}]  # the virtual step, and both ends of the difference
    assert all(weight.requires_grad for weight in problem.weights)
