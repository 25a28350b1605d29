"""Networks of others, as they are: made by a factory and given a state dict, or programs of torch.export.

Their contract is ours: images [N, C, H, W], float32 in [0, 1], to logits [N, classes]; a network that normalises its
input does so itself. Files of others are never unpickled. A factory is code, and is run.
"""

import importlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from arnas.errors import InvalidInput

if TYPE_CHECKING:  # torch.export takes seconds to import, and few networks need it
    from torch.export import ExportedProgram

ARCHITECTURES = ("factory", "program")
PROGRAM, WEIGHTS, PROBE = "program.pt2", "best.safetensors", "probe.safetensors"  # files of its artifact
SHOWN = 50  # names of a long list
DRIFT = 1e-3  # of logits, relative to the largest: other libraries round otherwise


class Foreign(nn.Module):
    """A network that was not built here. It is not folded for attacks, and stays in its memory format."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)  # type: ignore[no-any-return]


class Program(Foreign):
    """An exported program, which has one mode, and may have been exported for two images or more."""

    def __init__(self, program: "ExportedProgram"):
        super().__init__(program.module(check_guards=False))

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > 1:
            return super().forward(images)
        return super().forward(images.expand(2, *images.shape[1:]))[: len(images)]

    def train(self, mode: bool = True) -> Self:
        self.training = mode
        return self


def construct(factory: str) -> nn.Module:
    """Call a factory, `package.module:factory`, without arguments.

    Raises:
        InvalidInput: Its module cannot be imported here, or it does not return a torch.nn.Module.
    """
    name, _, attribute = factory.partition(":")
    if not (name and attribute):
        raise InvalidInput(f"{factory!r} names no factory; write package.module:factory.")
    try:
        module = importlib.import_module(name)
    except Exception as error:  # of whatever kind: the module is code of others
        raise InvalidInput(
            f"The module {name} of the factory {factory} cannot be imported ({reason(error)}); install its package, or "
            "name the folder that holds it in PYTHONPATH."
        ) from error
    if not callable(make := getattr(module, attribute, None)):
        raise InvalidInput(f"The module {name} has nothing callable of the name {attribute}; name a factory in it.")
    try:
        network = make()
    except Exception as error:
        raise InvalidInput(f"The factory {factory}, called without arguments, failed ({reason(error)}).") from error
    if not isinstance(network, nn.Module):
        raise InvalidInput(f"The factory {factory} returned a {type(network).__name__}; it must return a nn.Module.")
    return network


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict: safetensors, or what torch.save wrote of tensors alone.

    Raises:
        InvalidInput: It cannot be read, or holds anything but tensors by name.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InvalidInput(
            f"{path} is damaged, or holds objects other than tensors, which are never unpickled; write "
            "model.state_dict() alone, best with safetensors."
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, SafetensorError) as error:
        raise InvalidInput(f"{path} cannot be read ({reason(error)}); give a state dict.") from None
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        held = _list([str(key) for key in state]) if isinstance(state, Mapping) else f"a {type(state).__name__}"
        raise InvalidInput(f"{path} holds {held}, not tensors by name; write model.state_dict() alone.")
    return dict(state)


def fill(network: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Give a network its parameters and buffers.

    Raises:
        InvalidInput: Names or shapes are not those of the network; all kinds of mismatch are named.
    """
    wanted = {name: tensor for name, tensor in network.state_dict().items() if isinstance(tensor, Tensor)}
    found = {
        "missing": [name for name in wanted if name not in state],
        "unexpected": [name for name in state if name not in wanted],
        "of another shape": [
            f"{name} {list(state[name].shape)} for {list(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in state and state[name].shape != tensor.shape
        ],
    }
    if any(found.values()):
        told = "; ".join(f"{kind}: {_list(names)}" for kind, names in found.items() if names)
        raise InvalidInput(f"{source} does not fit the network ({told}); give the state dict of this very network.")
    network.load_state_dict(dict(state))


def tensors(network: nn.Module) -> dict[str, Tensor]:
    """The state dict, each tensor for itself, as safetensors wants it."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}


def restore(description: Mapping[str, Any], folder: Path, device: torch.device | str = "cpu") -> Foreign:
    """The network of a model artifact that stage adopt wrote, in evaluation mode.

    Args:
        description: `architecture` "factory" with `factory`, or "program".

    Raises:
        InvalidInput: The factory cannot be imported, or the network is no longer what was adopted.
    """
    if description["architecture"] == "factory":
        network = Foreign(construct(description["factory"]))
        fill(network.network, load_file(folder / WEIGHTS), folder)
        _require_unchanged(network.eval(), folder)
        return network.to(device)
    from torch.export.passes import move_to_device_pass

    from arnas.space import programs

    program = programs.read(folder / PROGRAM)
    _require_unchanged(Program(program).eval(), folder)
    if torch.device(device).type != "cpu":
        program = move_to_device_pass(program, torch.device(device))  # its graph names devices, too
    return Program(program).eval()


@torch.no_grad()
def write_probe(network: Foreign, shape: tuple[int, int, int], folder: Path) -> None:
    """Keep what the network says of some noise, so that `restore` sees when its code has become another."""
    noise = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    save_file({"images": noise, "logits": network(noise).contiguous()}, folder / PROBE)


@torch.no_grad()
def _require_unchanged(network: Foreign, folder: Path) -> None:
    if not (folder / PROBE).exists():  # being adopted, or random by design
        return
    probe = load_file(folder / PROBE)
    drift = (network(probe["images"]) - probe["logits"]).abs().max().item()
    if not drift <= DRIFT * max(1.0, probe["logits"].abs().max().item()):
        raise InvalidInput(
            f"The network of {folder} has changed since it was adopted (its logits by up to {drift:.2g}): its code, or "
            "a library under it; adopt it again."
        )


def reason(error: Exception) -> str:
    """The first line of what an error says."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0].rstrip(".:")


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN]) or "nothing"
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
