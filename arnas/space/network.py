"""Networks that are trained and evaluated: derived from a genotype, or the hand-made baseline.

A network is described by a JSON object, built by `build`, and stored with its weights in a model artifact.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from arnas import artifacts, runtime
from arnas.errors import InvalidInput
from arnas.space import foreign
from arnas.space.genotype import Genotype
from arnas.space.gradients import dense_gradient
from arnas.space.layout import NODES, Cell, Layout
from arnas.space.operations import OPERATIONS
from arnas.space.supernet import CellInputs


class Classifier(nn.Module):
    """Images [N, channels_in, H, W] in [0, 1] to logits [N, classes]."""

    def with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits of the network and, in training, of its auxiliary head if it has one."""
        return self(images), None


class DerivedNetwork(Classifier):
    """The network of a genotype: its cells in the order and widths of a layout.

    Args:
        drop_path: Largest probability of dropping an operation's output in training; rises linearly with depth.
        auxiliary: Whether a head after the last reduction classifies too.
    """

    def __init__(
        self,
        genotype: Genotype,
        layout: Layout,
        channels: int,
        classes: int,
        channels_in: int = 3,
        auxiliary: bool = False,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels_in, 3 * channels, 3, padding=1, bias=False), nn.BatchNorm2d(3 * channels)
        )
        plan = list(layout.plan(channels))
        self.cells = nn.ModuleList(
            _DerivedCell(cell, genotype, drop_path * index / len(plan)) for index, cell in enumerate(plan)
        )
        self.head = nn.Linear(plan[-1].channels_out, classes)
        self.auxiliary_place = layout.last_reduction() if auxiliary else None
        if self.auxiliary_place is not None:
            self.auxiliary = _AuxiliaryHead(plan[self.auxiliary_place].channels_out, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.with_auxiliary(images)[0]

    def with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        before_last = last = self.stem(images)
        auxiliary = None
        for index, cell in enumerate(self.cells):
            before_last, last = last, cell(before_last, last)
            if self.training and index == self.auxiliary_place:
                auxiliary = self.auxiliary(last)
        return self.head(last.mean((2, 3))), auxiliary


class _DerivedCell(nn.Module):
    def __init__(self, cell: Cell, genotype: Genotype, drop_path: float):
        super().__init__()
        self.inputs = CellInputs(cell, affine=True)
        self.sources = [source for node in genotype.cells[cell.kind] for _, source in node]
        self.operations = nn.ModuleList(
            OPERATIONS[operation](cell.channels, cell.stride if source < 2 else 1, True)
            for node in genotype.cells[cell.kind]
            for operation, source in node
        )
        self.drop_path = drop_path

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        states = list(self.inputs(before_last, last))
        for node in range(NODES):
            first, second = (self._edge(states, 2 * node + side) for side in (0, 1))
            states.append(dense_gradient(first + second))
        return torch.cat(states[2:], 1)

    def _edge(self, states: list[Tensor], index: int) -> Tensor:
        operation = self.operations[index]
        output: Tensor = operation(states[self.sources[index]])
        if self.training and self.drop_path and not isinstance(operation, nn.Identity):
            keep = 1 - self.drop_path
            mask = runtime.draw(torch.rand_like, output[:, :1, :1, :1]) < keep
            output = output * mask / keep
        return output


class _AuxiliaryHead(nn.Sequential):
    def __init__(self, channels: int, classes: int):
        super().__init__(
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(768, classes),
        )


class ResNet18(Classifier):
    """ResNet-18 in its CIFAR form (He et al. 2016): 3x3 stem, no max pool; C = 64 is the published width."""

    def __init__(self, channels: int, classes: int, channels_in: int = 3):
        super().__init__()
        from torchvision.models.resnet import BasicBlock  # takes seconds to import, and few networks need it

        blocks: list[nn.Module] = []
        width = channels
        for stage in range(4):
            for block in range(2):
                target, stride = channels * 2**stage, 2 if stage and not block else 1
                blocks.append(BasicBlock(width, target, stride, _shortcut(width, target, stride)))
                width = target
        self.features = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(), *blocks
        )
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)))  # type: ignore[no-any-return]


def _shortcut(width: int, target: int, stride: int) -> nn.Module | None:
    if width == target and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(width, target, 1, stride, bias=False), nn.BatchNorm2d(target))


def build(description: dict[str, Any]) -> Classifier:
    """Build a network from its description.

    Args:
        description: `architecture` ("genotype" or "resnet18"), `channels`, `classes`, `channels_in`; for a genotype
            also `cells`, `layout`, `auxiliary` (bool) and `drop_path`.

    Raises:
        InvalidInput: The architecture is unknown, or genotype or layout are malformed.
    """
    sizes = {key: description[key] for key in ("channels", "classes", "channels_in")}
    match description["architecture"]:
        case "resnet18":
            return ResNet18(**sizes)
        case "genotype":
            return DerivedNetwork(
                Genotype.from_json(description["cells"], "network"),
                Layout.parse(description["layout"]),
                auxiliary=description["auxiliary"],
                drop_path=description["drop_path"],
                **sizes,
            )
        case other:
            raise InvalidInput(f"There is no architecture {other!r}; it is a genotype or resnet18.")


def load_model(
    path: str | Path, device: torch.device | str = "cpu", weights: str = "best"
) -> tuple[nn.Module, dict[str, Any]]:
    """Load a model artifact.

    Args:
        path: Folder that the stage retrain wrote, or adopt.
        device: Where the network goes.
        weights: "best" (on the hold-out) or "last"; an adopted network has but one.

    Returns:
        The network, a `Classifier` or `Foreign`, in evaluation mode with frozen parameters, and the artifact's body
        (see `artifacts.read`).

    Raises:
        InvalidInput: The folder is no model, or damaged; or an adopted network is not what it was.
    """
    body = artifacts.read(path, "model")
    description = body["content"]["network"]
    network: nn.Module
    if description["architecture"] in foreign.ARCHITECTURES:
        network = foreign.restore(description, Path(path), device)
    else:
        network = build(description)
        network.load_state_dict(load_file(Path(path) / f"{weights}.safetensors"))
    return network.to(device).eval().requires_grad_(False), body
