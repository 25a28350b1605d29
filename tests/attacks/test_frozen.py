import pytest
import torch
from torch import nn

from arnas.attacks import FGSM, PGD, AutoAttack, Square, frozen

ATTACKS = {
    "fgsm": FGSM(0.1),
    "pgd": PGD(0.1, 0.05, 3, restarts=2),
    "pgd-l2": PGD(0.1, 0.05, 3, restarts=2, norm="l2"),
    "square": Square(0.1, queries=20),
    "autoattack": AutoAttack(1.0),
}


def mixed_model():
    """A model in every state at once: modes, flags and gradients differ from part to part."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(144, 5),
    )
    model.train()
    model[3].eval()
    model[0].weight.requires_grad_(False)
    model[6].weight.grad = torch.ones(5, 144)
    model[1](torch.rand(3, 4, 6, 6))
    return model


def snapshot(model):
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [None if parameter.grad is None else parameter.grad.tolist() for parameter in model.parameters()],
        {name: value.tolist() for name, value in model.state_dict().items()},
        [list(module._forward_hooks) for module in model.modules()],
    )


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_an_attack_leaves_the_model_as_it_found_it(attack):
    model, images, labels = mixed_model(), torch.rand(8, 1, 8, 8), torch.arange(8) % 5
    before, original = snapshot(model), images.clone()
    attack(model, images, labels)
    assert snapshot(model) == before
    assert torch.equal(images, original) and not images.requires_grad


def test_an_exception_inside_leaves_the_model_as_it_was():
    model = mixed_model()
    before = snapshot(model)
    with pytest.raises(KeyError), frozen(model):
        model(torch.rand(8, 1, 8, 8))
        raise KeyError
    assert snapshot(model) == before


def test_inside_all_is_in_eval_mode_and_no_parameter_wants_a_gradient():
    model = mixed_model()
    with frozen(model):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
