"""The published form of every step: the baselines of the ratios, to be read beside what they are compared with.

Nothing is spared here on purpose. Attacks back-propagate into every parameter and not only to the pixels, each
objective of the search takes a virtual step of its own, in a second network, batch norms are not folded, and tensors
stay in torch's default memory format. In two points the form is kinder than the published code, and so the ratios are
smaller: the second network is made once and not at every step, and the supernet keeps no running statistics.
"""

import copy

import torch
from torch import nn
from torch.nn import functional

from arnas.config import Retrain, Search
from arnas.search.combination import min_norm


def pgd(model, images, labels, noise, settings):
    """Projected gradient ascent from `images + noise`; leaves gradients in the model's parameters."""
    adversarial = (images + noise).clamp(0, 1)
    for _ in range(settings.attack_steps):
        adversarial = adversarial.detach().requires_grad_()
        functional.cross_entropy(model(adversarial), labels).backward()
        stepped = adversarial.detach() + settings.step_size * adversarial.grad.sign()
        adversarial = stepped.clamp(images - settings.epsilon, images + settings.epsilon).clamp(0, 1)
    return adversarial.detach()


def uniform(images, settings):
    return torch.empty_like(images).uniform_(-settings.epsilon, settings.epsilon)


class SearchStep:
    """A step of the search by 23 forward and 23 backward passes.

    14 for the attacks on two batches, and for each of the two objectives 1 for the virtual step, 1 at its end, and 2
    for the finite difference; 1 for the weights.
    """

    def __init__(self, supernet, settings: Search):
        self.supernet, self.virtual, self.settings = supernet, copy.deepcopy(supernet), settings
        self.weights, self.architecture = supernet.weights(), list(supernet.architecture.values())
        self.weight_optimizer = torch.optim.SGD(
            self.weights, settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay
        )
        self.architecture_optimizer = torch.optim.Adam(
            self.architecture,
            settings.architecture_learning_rate,
            betas=(0.5, 0.999),
            weight_decay=settings.architecture_weight_decay,
        )

    def __call__(self, train, validation):
        train_adversarial, adversarial = self._attack(train), self._attack(validation)
        natural_gradient = self._hypergradient(train_adversarial, validation, 1)
        adversarial_gradient = self._hypergradient(train_adversarial, adversarial, self.settings.adversarial_weight)
        direction = min_norm(natural_gradient, adversarial_gradient)
        for alpha, part in zip(self.architecture, direction.split([a.numel() for a in self.architecture]), strict=True):
            alpha.grad = part.view_as(alpha)
        self.architecture_optimizer.step()

        self.supernet.zero_grad()
        self._loss(self.supernet, train_adversarial).backward()
        nn.utils.clip_grad_norm_(self.weights, self.settings.gradient_clip)
        self.weight_optimizer.step()

    def _attack(self, batch):
        images, labels = batch
        return pgd(self.supernet, images, labels, uniform(images, self.settings), self.settings), labels

    def _loss(self, supernet, batch):
        images, labels = batch
        return functional.cross_entropy(supernet(images), labels)

    def _hypergradient(self, train, batch, factor):
        """Of `factor` times the loss of `batch` after a virtual step on `train`."""
        self._take_virtual_step(train)
        self.virtual.zero_grad()
        (factor * self._loss(self.virtual, batch)).backward()
        direct = torch.cat([alpha.grad.reshape(-1) for alpha in self.virtual.architecture.values()])
        sensitivity = [weight.grad for weight in self.virtual.weights()]

        radius = 0.01 / torch.cat([part.reshape(-1) for part in sensitivity]).norm()
        self._move(radius, sensitivity)
        above = self._architecture_gradient(train)
        self._move(-2 * radius, sensitivity)
        below = self._architecture_gradient(train)
        self._move(radius, sensitivity)
        return direct - self.weight_optimizer.param_groups[0]["lr"] * (above - below) / (2 * radius)

    def _take_virtual_step(self, train):
        self.supernet.zero_grad()
        self._loss(self.supernet, train).backward()
        group, state = self.weight_optimizer.param_groups[0], self.weight_optimizer.state
        with torch.no_grad():
            for weight, virtual in zip(self.weights, self.virtual.weights(), strict=True):
                velocity = state[weight]["momentum_buffer"] if weight in state else torch.zeros_like(weight)
                descent = group["momentum"] * velocity + weight.grad + group["weight_decay"] * weight
                virtual.copy_(weight - group["lr"] * descent)
            for alpha, virtual in zip(self.architecture, self.virtual.architecture.values(), strict=True):
                virtual.copy_(alpha)

    @torch.no_grad()
    def _move(self, distance, direction):
        for weight, part in zip(self.weights, direction, strict=True):
            weight.add_(distance * part)

    def _architecture_gradient(self, train):
        gradients = torch.autograd.grad(self._loss(self.supernet, train), self.architecture)
        return torch.cat([gradient.reshape(-1) for gradient in gradients])


class RetrainStep:
    """A step of adversarial training: the attack in evaluation mode, then SGD with the auxiliary head; 8 passes."""

    def __init__(self, network, recipe: Retrain):
        self.network, self.recipe = network, recipe
        self.optimizer = torch.optim.SGD(
            network.parameters(), recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay
        )

    def __call__(self, images, labels):
        self.network.eval()
        adversarial = pgd(self.network, images, labels, 0.001 * torch.randn_like(images), self.recipe)
        self.network.train()
        self.optimizer.zero_grad()
        logits, auxiliary = self.network.with_auxiliary(adversarial)
        loss = functional.cross_entropy(logits, labels)
        loss = loss + self.recipe.auxiliary_weight * functional.cross_entropy(auxiliary, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.gradient_clip)
        self.optimizer.step()
