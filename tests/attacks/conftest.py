"""Small models and images that the attack tests share."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    """Images [1797, 1, 8, 8] in [0, 1] and labels."""
    data = load_digits()
    return torch.tensor(data.images / 16, dtype=torch.float32)[:, None], torch.tensor(data.target)


@pytest.fixture(scope="session")
def classifier(digits):
    """A function of K: a convolutional network trained on the digits below K, with batch norm and dropout."""

    def train(classes: int = 10) -> nn.Sequential:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(72, classes),
        )
        images, labels = (part[digits[1] < classes] for part in digits)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(120):
            batch = torch.randint(len(labels), (64,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        optimizer.zero_grad()
        return model.eval()

    return train
