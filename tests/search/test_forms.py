"""The fast form of a search step is the plain one: whole steps in double precision."""

import pytest
import torch

from arnas import config, runtime
from arnas.search.loop import SearchStep
from arnas.space.layout import Layout
from arnas.space.supernet import Supernet

SETTINGS = {"attack_steps": 3, "epsilon": 0.1, "step_size": 0.03}


def begin(method="finite_difference"):
    torch.manual_seed(0)
    supernet = runtime.place(Supernet(Layout.parse("A1 D2 R2"), 3, 4).double(), torch.device("cpu"))
    return SearchStep(supernet, config.Search(hypergradient=method, **SETTINGS))


def batch(number, size=3):
    generator = torch.Generator().manual_seed(number)
    images = torch.rand(2, size, 3, 9, 7, dtype=torch.float64, generator=generator)
    return tuple(zip(images, torch.randint(4, (2, size), generator=generator), strict=True))


def take(step, number, form, monkeypatch, found=None):
    """A step in a form, whose adversarial images and hypergradients go to `found`."""
    monkeypatch.setenv("ARNAS_FORM", form)
    torch.manual_seed(number)
    if found is not None:
        attack, combine = step.attack, step.combine
        step.attack = lambda *given: found.extend(attack(*given)) or found[-2:]
        step.combine = lambda *gradients: found.extend(gradients) or combine(*gradients)
    step(*batch(number))


def test_joined_attacks_start_where_single_ones_do():
    step = begin()
    attack, batches = step.attack._attack, batch(0)
    torch.manual_seed(5)
    alone = [attack(step.model, *one) for one in batches]
    torch.manual_seed(5)
    for mine, reference in zip(step.attack(step.model, *batches), alone, strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-15)


def test_where_memory_is_short_attacks_stay_apart_and_it_is_said(monkeypatch, capsys):
    step = begin()
    monkeypatch.setattr(runtime, "free_memory", lambda device: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**29)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**29 + 2**30)
    step.attack._measured(step.model, batch(0), torch.device("cuda"))
    assert step.attack._joins is False
    assert "3.0 GiB of the GPU are free and one takes 1.0" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["finite_difference", "exact", "first_order"])
def test_pixels_are_identical_hypergradients_and_weights_equal(method, monkeypatch):
    found = {}
    for form in ("fast", "plain"):
        step, found[form] = begin(method), []
        take(step, 0, form, monkeypatch, found[form])
        found[form] += step.supernet.state_dict().values()
    for place, (mine, plain) in enumerate(zip(found["fast"], found["plain"], strict=True)):
        if place < 2:  # the adversarial images of both halves
            torch.testing.assert_close(mine, plain, rtol=0, atol=1e-15)
        torch.testing.assert_close(mine, plain, rtol=0, atol=1e-12)


def test_a_search_begun_in_one_form_goes_on_in_the_other(monkeypatch):
    states = []
    for forms in (("plain", "plain"), ("plain", "fast"), ("fast", "plain")):
        step = begin()
        take(step, 0, forms[0], monkeypatch)
        resumed = begin()
        resumed.load(step.state())
        take(resumed, 1, forms[1], monkeypatch)
        states.append(resumed.supernet.state_dict())
    for other in states[1:]:
        for name, value in states[0].items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-11, msg=name)
