"""Only what can change the outcome passes through a model, in full batches; in float64, where rounding is no excuse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from arnas.attacks import AutoAttack, Square
from arnas.attacks.autoattack import PARTS
from arnas.config import Blackbox, Retrain, Whitebox
from arnas.data import image_set
from arnas.evaluation.blackbox import BlackboxEvaluation
from arnas.evaluation.units import ROBUST, WRONG, Shard, in_batches
from arnas.evaluation.whitebox import WhiteboxEvaluation
from arnas.training import loop

COUNT = 40


@pytest.fixture(autouse=True)
def doubles(monkeypatch):
    monkeypatch.setattr(image_set, "as_pixels", lambda images: images.double() / 255)


class Counting(nn.Sequential):
    """A classifier of noise that knows some of it, and the sizes of the batches that passed."""

    def __init__(self, seed=0, hidden=12):
        torch.manual_seed(seed)
        super().__init__(nn.Flatten(), nn.Linear(16, hidden), nn.Tanh(), nn.Linear(hidden, 4))
        self[1].weight.data *= 4  # so that attacks succeed
        self.double().eval().requires_grad_(False)
        self.passes = []

    def forward(self, images):
        self.passes.append(len(images))
        return super().forward(images)


def noise(*models):
    """A set whose labels are what the first model says of a third of it, the last of another, and chance."""
    torch.manual_seed(1)
    images = torch.randint(256, (COUNT, 1, 4, 4), dtype=torch.uint8)
    labels = torch.randint(4, (COUNT,))
    for which in (0, -1):
        model = models[which]
        labels[which % 3 :: 3] = model(images.to(model[1].weight.dtype) / 255).argmax(1)[which % 3 :: 3]
    for model in models:
        model.passes.clear()
    splits = dict.fromkeys(image_set.SPLITS, torch.randperm(COUNT))
    return image_set.ImageSet(images, labels, splits, list("abcd"), (1, 4, 4), "", {})


def whitebox(shards=1, autoattack_images=0, curve_images=0, **sizes):
    """The outcomes of an evaluation in so many shards, put together."""
    model = Counting().to(image_set.as_pixels(torch.zeros(1)).dtype)
    images = noise(model)
    counts = {"autoattack_images": autoattack_images, "curve_images": curve_images, "corruption_images": 0}
    told = Whitebox(epsilon=0.06, step_size=0.02, **counts, **sizes)
    state = WhiteboxEvaluation.begin(images, told)
    evaluation = WhiteboxEvaluation(model, images, told, state)
    for index in range(shards):
        for unit in evaluation.units(Shard(index, shards)):
            unit.run()
    return state


def test_steps_are_a_quarter_of_epsilon_unless_told_and_reach_its_end():
    for told in (Whitebox(), Whitebox(norm="l2", epsilon=0.5), Whitebox(epsilon=0.5, step_size=0.1)):
        attack = WhiteboxEvaluation(None, None, told, {})._pgd(told.epsilon, 20)
        assert attack.step_size == (told.step_size or told.epsilon / 4)
        assert attack.step_size * attack.steps > 2 * told.epsilon
    assert WhiteboxEvaluation(None, None, Whitebox(), {})._pgd(8 / 255, 20).step_size == 2 / 255
    assert attack.step_size == 0.1 and WhiteboxEvaluation(None, None, told, {})._pgd(0.25, 20).step_size == 0.05


@settings(max_examples=8)
@given(block=st.integers(5, 50), batch=st.integers(3, 50), shards=st.integers(1, 4))
def test_outcomes_depend_on_the_block_and_not_on_batches_or_shards(block, batch, shards):
    state = whitebox(shards, curve_images=25, block_size=block, batch_size=batch)
    whole = whitebox(curve_images=25, block_size=block, batch_size=COUNT)
    outcomes, expected = state["outcomes"], whole["outcomes"]
    assert all(torch.equal(outcomes[name], expected[name]) for name in expected)
    assert all(torch.equal(state["first"][name], whole["first"][name]) for name in ("curve", "restarts"))
    assert len(whole["first"]["curve"].unique()) > 2
    assert 0 < expected["pgd20"].sum() < expected["clean"].sum() < COUNT
    without_chance = whitebox(block_size=COUNT, batch_size=COUNT)["outcomes"]
    assert all(torch.equal(outcomes[name], without_chance[name]) for name in ("clean", "fgsm"))


@pytest.mark.parametrize("batch", [3, 5, 40])
def test_what_is_wrong_when_clean_is_not_attacked_and_the_rest_fills_batches(batch):
    model = Counting()
    images = noise(model)
    told = Whitebox(
        epsilon=0.06, step_size=0.02, autoattack_images=0, curve_images=0, corruption_images=0, batch_size=batch
    )
    state = WhiteboxEvaluation.begin(images, told)
    for unit in WhiteboxEvaluation(model, images, told, state).units(Shard()):
        unit.run()
    right = int(state["outcomes"]["clean"].sum())
    assert 0 < right < COUNT
    # a step of an attack is a pass, and the look at what it found is one more
    assert sum(model.passes) == COUNT + right * ((1 + 1) + (20 + 1) + (100 + 1))
    assert len(model.passes) == -(-COUNT // batch) + -(-right // batch) * (2 + 21 + 101)
    assert max(model.passes) <= batch


def test_each_part_of_autoattack_meets_what_those_before_left_in_full_batches(monkeypatch):
    met, run_part = {name: [] for name in PARTS["standard"]}, AutoAttack.part

    def spy(attack, name, model, images, labels):
        adversarial, broken, warnings = run_part(attack, name, model, images, labels)
        met[name].append((len(images), int(broken.sum())))
        return adversarial, broken, warnings

    monkeypatch.setattr(AutoAttack, "part", spy)
    monkeypatch.setattr(image_set, "as_pixels", lambda images: images.float() / 255)  # the library knows no other
    state = whitebox(autoattack_images=30, block_size=20, batch_size=4)
    first = state["first"]["autoattack"]
    blocks = [first[:20], first[20:]]
    expected = {name: [] for name in PARTS["standard"]}
    for block in blocks:
        for index, name in enumerate(PARTS["standard"]):
            left = int(((block == ROBUST) | (block >= index)).sum())
            expected[name] += [min(4, left - start) for start in range(0, left, 4)]
    assert {name: [count for count, _ in given] for name, given in met.items()} == expected
    assert (first == WRONG).any() and sum(len(sizes) for sizes in expected.values()) > 8
    for index, name in enumerate(PARTS["standard"]):
        assert sum(broken for _, broken in met[name]) == int((first == index).sum())


def blackbox(square_images=0, **sizes):
    models = {name: Counting(seed) for seed, name in enumerate("ab")}
    images = noise(*models.values())
    told = Blackbox(epsilon=0.1, step_size=0.04, attack_steps=4, square_images=square_images, **sizes)
    state = BlackboxEvaluation.begin(list(models), images, told)
    for unit in BlackboxEvaluation(models, images, told, state).units():
        unit.run()
    return state, models


@settings(max_examples=10)
@given(block=st.integers(1, 50), batch=st.integers(1, 50))
def test_transferred_examples_depend_on_the_block_and_not_on_batches(block, batch):
    state, _ = blackbox(block_size=block, batch_size=batch)
    expected, _ = blackbox(block_size=block, batch_size=COUNT)
    for name in "ab":
        assert torch.equal(state["clean"][name], expected["clean"][name])
        for target in "ab":
            assert torch.equal(state["transfer"][name][target], expected["transfer"][name][target])


def test_an_example_is_made_where_some_model_is_right_and_tried_on_those_that_are(monkeypatch):
    monkeypatch.setattr(Square, "__call__", lambda attack, model, images, labels: images)
    state, models = blackbox(square_images=20, batch_size=7)
    right = {name: int(state["clean"][name].sum()) for name in "ab"}
    some = int((state["clean"]["a"] | state["clean"]["b"]).sum())
    assert 0 < right["a"] < some < COUNT and 0 < right["b"] < some
    for name, model in models.items():
        squared = int(state["clean"][name][:20].sum())
        assert sum(model.passes) == COUNT + 4 * some + 2 * right[name] + squared
        assert max(model.passes) <= 7


def test_the_holdout_is_attacked_where_it_is_right_in_full_batches(monkeypatch):
    model = Counting()
    images = noise(model)
    monkeypatch.setattr(loop, "EVALUATION_BATCH", 6)
    monkeypatch.setattr(loop, "attackable", lambda network: lambda: network)
    recipe = Retrain(epsilon=0.1, selection_steps=3)
    found = loop.holdout_accuracy(model, images, recipe)
    right = round(found["clean"] * COUNT)
    assert 0 < found["robust"] < found["clean"] < 1
    assert sum(model.passes) == COUNT + right * (3 + 1)
    assert len(model.passes) == -(-COUNT // 6) + -(-right // 6) * 4


def test_units_share_the_samples_among_themselves():
    ran = []
    units = in_batches(ran.append, 10, 4, 3)
    for unit in units:
        unit.run()
    assert ran == [0, 1, 2] and [unit.passes for unit in units] == [12, 12, 6]
    assert in_batches(ran.append, 0, 4, 3) == []
