import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import nn
from torch.nn import functional

from arnas.attacks import PGD, cross_entropy_per_sample

STARTS = ("uniform", "normal", "none")
epsilons = st.floats(0, 1)


def linear_model(seed, classes=3, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, classes)).to(dtype)


def random_images(count, dtype=torch.float32):
    """[count, 3, 2, 2] in [0, 1], with some pixels at the very ends, and labels in [0, 3)."""
    images = (1.4 * torch.rand(count, 3, 2, 2, dtype=dtype) - 0.2).clamp(0, 1)
    return images, torch.randint(3, (count,))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(epsilons, st.floats(0, 1), st.integers(0, 4), st.sampled_from(STARTS), st.integers(1, 3), st.integers(0, 99))
def test_result_is_in_the_ball_and_in_the_pixel_range(epsilon, step_size, steps, start, restarts, seed):
    for dtype in (torch.float32, torch.float64):
        model = linear_model(seed, dtype=dtype)
        images, labels = random_images(5, dtype)
        adversarial = PGD(epsilon, step_size, steps, start, restarts)(model, images, labels)
        assert adversarial.dtype == dtype and adversarial.shape == images.shape and not adversarial.requires_grad
        assert adversarial.min() >= 0 and adversarial.max() <= 1
        assert (adversarial - images).abs().max() <= epsilon + 4 * torch.finfo(dtype).eps


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.floats(0, 5), st.floats(0, 5), st.integers(0, 4), st.sampled_from(STARTS), st.integers(1, 2))
def test_in_l2_the_result_is_in_the_ball_and_in_the_pixel_range(epsilon, step_size, steps, start, restarts):
    for dtype in (torch.float32, torch.float64):
        model = linear_model(steps, dtype=dtype)
        images, labels = random_images(5, dtype)
        adversarial = PGD(epsilon, step_size, steps, start, restarts, "l2")(model, images, labels)
        assert adversarial.dtype == dtype and adversarial.shape == images.shape
        assert adversarial.min() >= 0 and adversarial.max() <= 1
        lengths = (adversarial - images).flatten(1).norm(dim=1)
        assert (lengths <= epsilon * (1 + 1e-6) + 0.01 * (start == "normal" and steps == 0) + 1e-6).all()


def test_in_l2_it_reaches_the_optimum_of_a_linear_model_along_its_gradient():
    model = linear_model(0, classes=2, dtype=torch.float64)
    images = torch.full((5, 3, 2, 2), 0.5, dtype=torch.float64)  # the ball does not leave the pixel range
    labels = torch.tensor([0, 1, 1, 0, 1])
    away = (model[1].weight[1 - labels] - model[1].weight[labels]).detach()
    optimum = images + 0.3 * (away / away.norm(dim=1, keepdim=True)).view_as(images)
    for start in ("uniform", "none"):
        adversarial = PGD(0.3, 0.1, 100, start, norm="l2")(model, images, labels)
        torch.testing.assert_close(adversarial, optimum, rtol=0, atol=1e-6)


def test_in_l2_a_uniform_start_fills_the_ball():
    images = torch.full((4000, 3, 2, 2), 0.5)
    torch.manual_seed(0)
    noise = PGD(0.4, 0.1, 0, norm="l2")(linear_model(0), images, torch.zeros(4000, dtype=torch.int64)) - images
    volumes = (noise.flatten(1).norm(dim=1) / 0.4) ** 12  # uniform, in twelve dimensions
    assert kstest(volumes.numpy(), "uniform").pvalue > 0.01
    assert noise.mean((0, 2, 3)).abs().max() < 0.01


@pytest.mark.filterwarnings("ignore")
def test_in_l2_it_agrees_with_the_adversarial_robustness_toolbox(classifier, digits):
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    model, images, labels = classifier(), digits[0][:200], digits[1][:200]
    estimator = PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu")
    reference = ProjectedGradientDescentPyTorch(
        estimator, norm=2, eps=0.5, eps_step=0.125, max_iter=20, batch_size=200, verbose=False
    )
    theirs = torch.tensor(reference.generate(images.numpy(), np.eye(10, dtype=np.float32)[labels]))
    ours = PGD(0.5, 0.125, 20, "none", norm="l2")(model, images, labels)
    accuracies = [(model(attacked).argmax(1) == labels).float().mean().item() for attacked in (ours, theirs)]
    assert 0.05 < accuracies[0] < 0.95 and accuracies[0] == pytest.approx(accuracies[1], abs=0.011)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.floats(0.01, 0.5), st.sampled_from(STARTS), st.integers(0, 99))
def test_reaches_the_optimum_of_a_linear_model(epsilon, start, seed):
    # two classes: the gradient's sign is that of the weights' difference, everywhere
    model = linear_model(seed, classes=2, dtype=torch.float64)
    images, _ = random_images(5, torch.float64)
    labels = torch.tensor([0, 1, 1, 0, 1])
    away = (model[1].weight[1 - labels] - model[1].weight[labels]).detach().sign().view_as(images)
    optimum = (images + epsilon * away).clamp(0, 1)
    adversarial = PGD(epsilon, epsilon / 4, 9, start)(model, images, labels)
    torch.testing.assert_close(adversarial, optimum, rtol=0, atol=1e-12)


@settings(derandomize=True, deadline=None, max_examples=15)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 99), st.sampled_from(("uniform", "normal")))
def test_more_restarts_never_lower_the_loss_of_a_sample(restarts, more, seed, start):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))
    images, labels = random_images(16)

    def losses(count):
        torch.manual_seed(seed)
        return cross_entropy_per_sample(model(PGD(0.3, 0.2, 2, start, count)(model, images, labels)), labels)

    assert (losses(restarts + more) >= losses(restarts)).all()


def test_restarts_find_something_that_one_start_does_not(classifier, digits):
    model, images, labels = classifier(), digits[0][:64], digits[1][:64]

    def losses(count):
        torch.manual_seed(0)
        return cross_entropy_per_sample(model(PGD(0.3, 0.2, 1, "uniform", count)(model, images, labels)), labels)

    assert (losses(4) > losses(1)).any()


def test_same_seed_gives_the_same_images_and_another_seed_others(classifier, digits):
    model, images, labels = classifier(), digits[0][:16], digits[1][:16]

    def attack(seed):
        torch.manual_seed(seed)
        return PGD(0.1, 0.03, 3)(model, images, labels)

    assert torch.equal(attack(1), attack(1))
    assert not torch.equal(attack(1), attack(2))


def test_moves_away_from_the_given_labels(classifier, digits):
    model, images, labels = classifier(), digits[0][:256], digits[1][:256]
    before = cross_entropy_per_sample(model(images), labels)
    after = cross_entropy_per_sample(model(PGD(0.1, 0.025, 10)(model, images, labels)), labels)
    assert (after >= before).float().mean() > 0.99 and after.mean() > 2 * before.mean()


def test_normal_start_has_the_deviation_of_adversarial_training():
    model = linear_model(0)
    images = torch.full((2000, 3, 2, 2), 0.5)
    torch.manual_seed(0)
    noise = PGD(0.1, 0.1, 0, "normal")(model, images, torch.zeros(2000, dtype=torch.int64)) - images
    assert noise.std().item() == pytest.approx(0.001, rel=0.03) and abs(noise.mean().item()) < 5e-5


def test_uniform_start_fills_the_ball():
    images = torch.full((2000, 3, 2, 2), 0.5)
    torch.manual_seed(0)
    noise = PGD(0.1, 0.1, 0)(linear_model(0), images, torch.zeros(2000, dtype=torch.int64)) - images
    assert noise.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.02) and noise.max() > 0.099 and noise.min() < -0.099


def test_a_loss_may_compare_with_clean_logits(classifier, digits):
    # the KL divergence of TRADES, whose gradient is zero at the clean image: hence the random start
    model, images, labels = classifier(), digits[0][:64], digits[1][:64]
    clean = functional.log_softmax(model(images), 1).detach()

    def divergence(logits, labels):
        return functional.kl_div(functional.log_softmax(logits, 1), clean, reduction="none", log_target=True).sum(1)

    torch.manual_seed(0)
    attacked = PGD(0.1, 0.025, 10, "normal", loss=divergence)(model, images, labels)
    at_random = PGD(0.1, 0.1, 0, "uniform")(model, images, labels)
    found, random = (divergence(model(changed), labels) for changed in (attacked, at_random))
    assert (found > random).all() and found.mean() > 20 * random.mean()


def test_the_attack_sees_the_model_in_eval_mode_and_with_gradients():
    seen = []

    class Spy(nn.Module):
        def forward(self, images):
            seen.append((self.training, torch.is_grad_enabled()))
            return images.flatten(1)

    model = nn.Sequential(nn.BatchNorm2d(3), Spy()).train()
    images, labels = random_images(4)
    with torch.no_grad():
        PGD(0.1, 0.1, 2)(model, images, labels)
    assert seen == [(False, True)] * 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [1, 20])
def test_agrees_with_the_adversarial_robustness_toolbox(classifier, digits, steps):
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    model, images, labels = classifier(), digits[0][:200], digits[1][:200]
    estimator = PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu")
    reference = ProjectedGradientDescentPyTorch(
        estimator, eps=0.1, eps_step=0.025, max_iter=steps, batch_size=200, verbose=False
    )
    theirs = torch.tensor(reference.generate(images.numpy(), np.eye(10, dtype=np.float32)[labels]))
    ours = PGD(0.1, 0.025, steps, "none")(model, images, labels)
    assert ((ours - theirs).abs() < 1e-6).float().mean() > 0.9999  # a gradient of zero to rounding has either sign
    assert torch.equal(model(ours).argmax(1), model(theirs).argmax(1))


@pytest.mark.filterwarnings("ignore")
def test_robust_accuracy_with_random_starts_is_that_of_the_toolbox(classifier, digits):
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    model, images, labels = classifier(), digits[0][:500], digits[1][:500]
    estimator = PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu")
    reference = ProjectedGradientDescentPyTorch(
        estimator, eps=0.1, eps_step=0.025, max_iter=20, num_random_init=1, batch_size=500, verbose=False
    )
    np.random.seed(0)
    theirs = torch.tensor(reference.generate(images.numpy(), np.eye(10, dtype=np.float32)[labels]))
    torch.manual_seed(0)
    ours = PGD(0.1, 0.025, 20)(model, images, labels)
    accuracies = [(model(attacked).argmax(1) == labels).float().mean().item() for attacked in (ours, theirs)]
    assert 0.05 < accuracies[0] < 0.95 and accuracies[0] == pytest.approx(accuracies[1], abs=0.006)
