import pytest
import torch
from torch.nn import functional

from arnas.config import Retrain
from arnas.space import genotype
from arnas.space.folding import attackable
from arnas.space.network import build
from arnas.training.losses import LOSSES, Objective, divergence, pgd_at


def network(auxiliary=False):
    torch.manual_seed(0)
    cells = genotype.load("arnas-cifar10")[0].to_json()
    sizes = {"channels": 2, "classes": 4, "channels_in": 1}
    extra = {"layout": "A1 D1 R1", "auxiliary": auxiliary, "drop_path": 0.0}
    return build({"architecture": "genotype", "cells": cells} | extra | sizes).train()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.rand(16, 1, 8, 8), torch.randint(4, (16,))


RECIPE = Retrain(auxiliary_weight=0.4, attack_steps=3, epsilon=0.1, step_size=0.03)


@pytest.mark.parametrize("name", LOSSES)
def test_without_room_to_attack_every_loss_is_about_the_clean_images(name, batch):
    """At epsilon 0 there is no adversarial image: PGD-AT is the natural loss, TRADES adds a divergence of zero."""
    recipe = RECIPE.model_copy(update={"epsilon": 0.0})
    net = network()
    loss, logits = LOSSES[name](net, attackable(net), *batch, recipe)
    clean = network().train()(batch[0])
    torch.testing.assert_close(logits, clean)
    natural = functional.cross_entropy(clean, batch[1])
    if name == "mart":
        others = clean.softmax(-1).masked_fill(functional.one_hot(batch[1], 4).bool(), 0)
        natural = natural - (1 - others.amax(-1)).log().mean()
    torch.testing.assert_close(loss, natural)


@pytest.mark.parametrize("name", ["pgd_at", "trades", "mart"])
def test_attacks_cost(name, batch):
    """TRADES in particular must look at adversarial logits: on clean ones its second term would vanish."""
    losses = []
    for epsilon in (0.0, 0.3):
        net = network()
        for _ in range(30):
            net(batch[0])  # so that the attack in evaluation mode sees the network that is trained
        recipe = RECIPE.model_copy(update={"epsilon": epsilon, "step_size": 0.1})
        losses.append(LOSSES[name](net, attackable(net), *batch, recipe)[0].item())
    assert losses[1] > losses[0] + 0.01


def test_the_auxiliary_head_adds_its_weighted_cross_entropy(batch):
    recipe = RECIPE.model_copy(update={"epsilon": 0.0})
    net = network(auxiliary=True)
    loss, _ = pgd_at(net, attackable(net), *batch, recipe)
    logits, auxiliary = network(auxiliary=True).train().with_auxiliary(batch[0])
    expected = functional.cross_entropy(logits, batch[1]) + 0.4 * functional.cross_entropy(auxiliary, batch[1])
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_the_attack_leaves_batch_norm_statistics_to_the_training_pass(name, batch):
    """Each pass in training mode counts a batch: one for a loss on one kind of images, two where both are seen."""
    net = network()
    LOSSES[name](net, attackable(net), *batch, RECIPE)
    counts = {module.num_batches_tracked.item() for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)}
    assert counts == {2 if name in ("trades", "mart") else 1}


@pytest.mark.parametrize("name", LOSSES)
def test_a_training_against_the_folded_copy_is_the_plain_one(name, batch, monkeypatch):
    """In double precision, where rounding does not hide a mistake; several steps, since the copy must keep step."""
    images, labels = batch[0].double(), batch[1]
    ends = []
    for form in ("plain", "fast"):
        monkeypatch.setenv("ARNAS_FORM", form)
        net = network(auxiliary=True).double()
        objective = Objective(net, RECIPE.model_copy(update={"loss": name}))
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        for step in range(4):
            torch.manual_seed(step)
            optimizer.zero_grad()
            objective(images, labels)[0].backward()
            optimizer.step()
        ends.append(objective.state_dict())
    assert list(ends[0]) == list(ends[1]) == [f"network.{key}" for key in network(auxiliary=True).state_dict()]
    for key, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][key], tensor, rtol=0, atol=1e-10, msg=key)


def test_divergence_is_the_distributions_of_torch():
    reference, logits = torch.randn(5, 4), torch.randn(5, 4)
    distribution = torch.distributions.Categorical
    expected = torch.distributions.kl_divergence(distribution(logits=reference), distribution(logits=logits))
    torch.testing.assert_close(divergence(reference, logits), expected)


def test_divergence_has_finite_gradients_where_probabilities_underflow():
    reference = torch.tensor([[200.0, 0.0, -200.0, 0.0]], requires_grad=True)
    logits = torch.tensor([[0.0, 200.0, 0.0, -200.0]], requires_grad=True)
    divergence(reference, logits).sum().backward()
    assert reference.grad.isfinite().all() and logits.grad.isfinite().all()
