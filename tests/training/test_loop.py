import pytest
import torch

from arnas.config import Retrain
from arnas.training.loop import TrainingState, learning_rate


def test_the_piecewise_schedule_is_the_papers():
    recipe = Retrain(epochs=200)
    rates = [learning_rate(recipe, epoch) for epoch in (0, 99, 100, 149, 150, 199)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize("milestones", [(30, 60), (1 / 3, 2 / 3)])
def test_milestones_are_epochs_or_shares_of_all(milestones):
    recipe = Retrain(epochs=90, milestones=milestones)
    rates = [learning_rate(recipe, epoch) for epoch in (0, 29.9, 30, 59.9, 60, 89)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_without_milestones_the_rate_stays():
    assert learning_rate(Retrain(milestones=()), 199) == 0.1


def test_the_cyclic_schedule_rises_to_the_rate_and_falls_to_zero():
    recipe = Retrain(epochs=10, schedule="cyclic", learning_rate=0.2)
    rates = torch.tensor([learning_rate(recipe, step / 100) for step in range(1000)])
    assert rates.max() == pytest.approx(0.2) and rates.argmax() == 400
    assert rates[0] == 0 and rates[-1] < 0.001
    assert (rates[1:401] > rates[:400]).all() and (rates[401:] < rates[400:-1]).all()


def test_the_best_epoch_is_the_earliest_of_equals():
    epochs = [{"epoch": index, "robust": robust} for index, robust in enumerate((0.1, 0.3, 0.2, 0.3))]
    assert TrainingState(epochs=epochs).best_epoch(Retrain())["epoch"] == 1


def test_without_attacks_the_best_epoch_is_the_most_accurate():
    epochs = [{"epoch": index, "clean": clean, "robust": 1 - clean} for index, clean in enumerate((0.5, 0.9, 0.8))]
    assert TrainingState(epochs=epochs).best_epoch(Retrain(loss="natural"))["epoch"] == 1
    assert TrainingState(epochs=epochs).best_epoch(Retrain())["epoch"] == 0
