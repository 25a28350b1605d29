"""How much faster our search step is than its published form, on this machine: `python benchmarks/search_step.py`.

The baseline is built here as the published code computes a step: attacks back-propagate into weights and architecture
too, and every objective takes a virtual step of its own. Both forms are first shown to be equal in float64.
"""

import argparse
import copy
import statistics
import time

import torch
from torch.nn import functional

from arnas import config, runtime
from arnas.search.combination import min_norm
from arnas.search.hypergradient import hypergradients
from arnas.search.loop import SearchStep
from arnas.space.layout import Layout
from arnas.space.supernet import Supernet


class PublishedStep(SearchStep):
    """The same step with the passes of the published code: 23 forward and 23 backward."""

    def __call__(self, train, validation):
        (train_images, train_labels), (images, labels) = train, validation
        train_adversarial = self.pgd(train_images, train_labels)
        adversarial = self.pgd(images, labels)
        train_loss = self._loss(train_adversarial, train_labels)
        gradients = []
        for objective in (self._loss(images, labels), self._loss(adversarial, labels)):
            found, _ = hypergradients([objective], train_loss, self.weights, self.architecture, self._virtual_step())
            gradients += found
        self._descend_architecture(min_norm(gradients[0], self.settings.adversarial_weight * gradients[1]))
        self._descend_weights(train_loss, "this step")

    def pgd(self, images, labels):
        settings = self.settings
        noise = torch.empty_like(images).uniform_(-settings.epsilon, settings.epsilon)
        adversarial = (images + noise).clamp(0, 1)
        for _ in range(settings.attack_steps):
            adversarial = adversarial.detach().requires_grad_()
            functional.cross_entropy(self.supernet(adversarial), labels).backward()
            step = settings.step_size * adversarial.grad.sign()
            lowest, highest = images - settings.epsilon, images + settings.epsilon
            adversarial = (adversarial.detach() + step).clamp(lowest, highest).clamp(0, 1)
        self.supernet.zero_grad()
        return adversarial.detach()


def batches(size, image_size, device, dtype=torch.float32):
    torch.manual_seed(0)
    images = torch.rand(2, size, 3, image_size, image_size, dtype=dtype)
    labels = torch.randint(10, (2, size))
    return [(x.to(device), y.to(device)) for x, y in zip(images, labels, strict=True)]


def show_equal():
    """In float64 on a tiny supernet, after two steps, weights and architecture of both forms agree within rounding."""
    torch.manual_seed(0)
    supernet = Supernet(Layout.parse("A1 D1 R1"), 2, 10).double()
    states = []
    for form in (PublishedStep, SearchStep):
        step = form(copy.deepcopy(supernet), config.Search())
        for number in range(2):
            torch.manual_seed(number)
            step(*batches(4, 8, "cpu", torch.float64))
        states.append(torch.cat([value.reshape(-1) for value in step.supernet.state_dict().values()]))
    difference = (states[0] - states[1]).abs().max().item()
    assert difference < 1e-9, f"the two forms differ by {difference}"
    print(f"after two float64 steps both forms agree within {difference:.1e}")


def seconds(step, arguments, device):
    begun = time.perf_counter()
    step(*arguments)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    told = parser.parse_args()
    device = runtime.prepare(told.device)
    show_equal()

    arguments = batches(told.batch_size, told.image_size, device)
    settings = config.Search(channels=told.channels, layers=told.layers)
    supernet = Supernet(Layout.paper(told.layers), told.channels, 10)
    forms = {
        "published": PublishedStep(copy.deepcopy(supernet).to(device), settings),
        "ours": SearchStep(runtime.place(supernet, device), settings),
    }
    times = {name: [] for name in forms}
    for repeat in range(told.repeats + 1):  # in turn, so that a slow moment of the machine hits both
        for name, step in forms.items():
            took = seconds(step, arguments, device)
            if repeat:
                times[name].append(took)
    sizes = f"C={told.channels}, L={told.layers}, batch {told.batch_size}, {told.image_size} pixels, {device}"
    print(f"search step, {sizes}")
    for name, taken in times.items():
        print(f"  {name:<10} median {statistics.median(taken):.3f} s  ({min(taken):.3f} to {max(taken):.3f})")
    ratios = [slow / fast for slow, fast in zip(*times.values(), strict=True)]
    print(f"  ratio      median {statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
