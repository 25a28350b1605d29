import json
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from arnas import config, proof, runtime
from arnas.errors import InvalidInput
from arnas.space.gradients import Convolution
from arnas.space.operations import OPERATIONS, FactorizedReduce
from arnas.stages import retrain, search

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def proofs(tmp_path, monkeypatch):
    """The folder of proofs, which is empty, in a process that has proved nothing."""
    monkeypatch.setattr(proof, "_proved", set())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "arnas" / "proofs"


@pytest.fixture
def computed(monkeypatch):
    """A list that grows by a name for each proof that is computed, here of a single case."""
    names = []
    monkeypatch.setattr(proof, "_cases", lambda: [("a case", nn.Sequential(), proof._gradients)])
    monkeypatch.setattr(proof, "_error", lambda case, *others: names.append(case[0]) or 0.0)
    return names


class Faulty(torch.autograd.Function):
    """The identity, with a wrong gradient."""

    @staticmethod
    def forward(ctx, x, fault):
        ctx.fault = fault
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.fault(gradient), None


def plant(monkeypatch, kind, fault, where=lambda module: True):
    """Let some modules of a kind compute the right output, in fp32 with a wrong gradient."""
    right = kind.forward

    def forward(self, x):
        faulty = x.dtype == torch.float32 and where(self)
        return right(self, Faulty.apply(x, fault) if faulty else x)

    monkeypatch.setattr(kind, "forward", forward)


def depthwise(kernel, dilation):
    return lambda conv: conv.groups > 1 and (conv.kernel_size[0], conv.dilation[0]) == (kernel, dilation)


PARTS = {
    "max_pool_3x3": (nn.MaxPool2d,),
    "avg_pool_3x3": (nn.AvgPool2d,),
    "skip_connect": (FactorizedReduce,),
    "sep_conv_3x3": (Convolution, depthwise(3, 1)),
    "sep_conv_5x5": (Convolution, depthwise(5, 1)),
    "dil_conv_3x3": (Convolution, depthwise(3, 2)),
    "dil_conv_5x5": (Convolution, depthwise(5, 2)),
}


def test_the_cpu_proves_itself_and_says_so_once(capsys):
    proof.prove(CPU)
    proof.prove(CPU)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("[proof] cpu") and f"torch {torch.__version__}: gradients are those of float64" in line


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_silently_wrong_gradient_is_caught_and_its_operation_named(operation, proofs, monkeypatch):
    """Gradients that land one pixel aside, of the right size: as the average pool of torch had them on CUDA."""
    kind, *where = PARTS[operation]
    plant(monkeypatch, kind, lambda gradient: gradient.roll(1, -1), *where)
    with pytest.raises(InvalidInput, match=f"^{operation} of stride . .* on cpu .*; use another version") as caught:
        proof.prove(CPU)
    assert f"with torch {torch.__version__}:" in str(caught.value)
    assert not proofs.exists() and not proof._proved


def test_a_fault_of_one_stride_and_of_one_part_in_a_thousand_is_caught(monkeypatch):
    plant(monkeypatch, nn.AvgPool2d, lambda gradient: 1.001 * gradient, lambda pool: pool.stride == 2)
    with pytest.raises(InvalidInput, match=r"avg_pool_3x3 of stride 2 as evaluated .* error against float64 is 1e-03,"):
        proof.prove(CPU)


def test_a_gradient_that_is_not_a_number_is_caught(monkeypatch):
    plant(monkeypatch, nn.AvgPool2d, lambda gradient: float("nan") * gradient)
    with pytest.raises(InvalidInput, match=r"avg_pool_3x3 .* error .* is nan,"):
        proof.prove(CPU)


def test_a_fault_that_only_second_derivatives_see_is_caught_in_the_hypergradient(monkeypatch):
    plant(monkeypatch, nn.AvgPool2d, lambda gradient: 2 * gradient - gradient.detach())
    with pytest.raises(InvalidInput, match="the hypergradient of a supernet has a wrong gradient"):
        proof.prove(CPU)


def test_convolutions_in_tf32_are_no_fp32(monkeypatch):
    def rounded(x):
        """To the ten bits that TF32 keeps of a mantissa."""
        return x + (((x.detach().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32) - x.detach())

    def forward(self, x):
        weight = self.weight
        if x.dtype == torch.float32:
            x, weight = rounded(x), rounded(weight)
        return functional.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    monkeypatch.setattr(Convolution, "forward", forward)
    with pytest.raises(InvalidInput, match="has a wrong gradient"):
        proof.prove(CPU)


class Kinks(TorchDispatchMode):
    """Distance of a computation from the nearest kink of a ReLU or a max pool."""

    nearest = float("inf")
    seen = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is torch.ops.aten.relu.default:
            self._see(arguments[0].abs())
        if function is torch.ops.aten.max_pool2d_with_indices.default:
            padded = functional.pad(arguments[0], (1, 1, 1, 1), value=-torch.inf)
            best = padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4).topk(2, -1).values
            apart = best[..., 0] - best[..., 1]
            self._see(apart[apart > 0])  # pixels that are equal, as ReLU makes them, are so in any precision
        return function(*arguments, **(keywords or {}))

    def _see(self, distances):
        self.nearest, self.seen = min(self.nearest, distances.min().item()), self.seen + 1


def test_a_device_is_proved_in_fp32_whatever_is_set_around_it(monkeypatch):
    asked, natural = [], proof._error
    monkeypatch.setattr(
        proof, "_error", lambda *given: asked.append(torch.is_autocast_enabled("cpu")) or natural(*given)
    )
    with runtime.precision("bf16", "cpu"):
        proof.prove(CPU)
        assert torch.is_autocast_enabled("cpu")
    assert asked and not any(asked)


def test_no_rounding_crosses_a_kink():
    """Where it does, two right gradients differ; a device would be refused by chance."""
    with torch.random.fork_rng(devices=[]), Kinks() as kinks:
        torch.manual_seed(0)
        for _, network, gradients in proof._cases():
            gradients(network.double(), proof._images().double())
    assert kinks.seen > 100 and kinks.nearest > 1e-5


def test_what_was_proved_is_remembered_in_the_process_and_between_processes(computed, proofs, monkeypatch):
    proof.prove(CPU)
    proof.prove(CPU)
    assert computed == ["a case"]
    (file,) = proofs.iterdir()
    assert json.loads(file.read_text())["torch"] == torch.__version__
    monkeypatch.setattr(proof, "_proved", set())
    proof.prove(CPU)
    assert computed == ["a case"]


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(torch, "__version__", "9.9"),
        lambda patch: patch.setattr(runtime, "memory_format", lambda device: torch.contiguous_format),
        lambda patch: patch.setattr(runtime, "code_digest", lambda *packages: "other"),
        lambda patch: patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "other"),
    ],
    ids=["torch", "memory format", "code", "processor"],
)
def test_another_torch_memory_format_code_or_processor_is_proved_anew(change, computed, proofs, monkeypatch):
    proof.prove(CPU)
    change(monkeypatch)
    proof.prove(CPU)
    assert len(computed) == len(list(proofs.iterdir())) == 2


@pytest.mark.parametrize("place", ["a file in its place", "no home"])
def test_a_cache_that_cannot_be_written_is_no_error(place, computed, tmp_path, monkeypatch):
    if place == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(proof.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    else:
        (tmp_path / "cache").write_text("")
    for _ in range(2):
        proof.prove(CPU)
        monkeypatch.setattr(proof, "_proved", set())
    assert len(computed) == 2


def test_random_generators_stay_as_they_are():
    states = lambda: [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # noqa: E731
    before = states()
    proof.prove(CPU)
    assert states() == before


def test_a_stage_that_computes_proves_its_device_first(noise, tmp_path, monkeypatch):
    plant(monkeypatch, nn.AvgPool2d, torch.zeros_like)
    settings = config.load("smoke")
    places = {"checkpoints": tmp_path / "checkpoints", "device": "cpu"}
    with pytest.raises(InvalidInput, match="avg_pool_3x3"):
        search.run(noise, tmp_path / "supernet", settings.search.model_copy(update={"batch_size": 8}), **places)
    recipe = settings.retrain.model_copy(update={"architecture": "arnas-cifar10", "batch_size": 8})
    with pytest.raises(InvalidInput, match="avg_pool_3x3"):
        retrain.run(noise, tmp_path / "model", recipe, name="model", **places)
    assert not (tmp_path / "supernet").exists() and not (tmp_path / "model").exists()
