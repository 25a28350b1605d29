import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from arnas.attacks import FGSM


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.floats(0, 1), st.integers(0, 99))
def test_is_the_closed_form_for_a_linear_model(epsilon, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double()
    images, labels = torch.rand(6, 3, 2, 2, dtype=torch.float64), torch.randint(4, (6,))
    # d cross-entropy / dx = W^T (softmax - one-hot)
    surplus = model(images).softmax(1) - nn.functional.one_hot(labels, 4)
    expected = (images + epsilon * (surplus @ model[1].weight).sign().view_as(images)).clamp(0, 1).detach()
    torch.testing.assert_close(FGSM(epsilon)(model, images, labels), expected, rtol=0, atol=1e-12)


def test_needs_no_random_numbers(classifier, digits):
    model = classifier()
    state = torch.get_rng_state()
    FGSM(0.1)(model, digits[0][:4], digits[1][:4])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.filterwarnings("ignore")
def test_agrees_with_the_adversarial_robustness_toolbox(classifier, digits):
    from art.attacks.evasion import FastGradientMethod
    from art.estimators.classification import PyTorchClassifier

    model, images, labels = classifier(), digits[0][:500], digits[1][:500]
    estimator = PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu")
    reference = FastGradientMethod(estimator, eps=0.1, batch_size=500)
    theirs = torch.tensor(reference.generate(images.numpy(), np.eye(10, dtype=np.float32)[labels]))
    ours = FGSM(0.1)(model, images, labels)
    assert ((ours - theirs).abs() < 1e-6).float().mean() > 0.9999
    assert torch.equal(model(ours).argmax(1), model(theirs).argmax(1))
