"""Programs of others: what they hold beside a network never runs, and what they are not is said."""

import json
import os
import pickle

import pytest
import torch
from torch import nn
from torch.export import Dim, export, save
from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter

from arnas.attacks import PGD
from arnas.errors import InvalidInput
from arnas.graphs import Graphed
from arnas.space import programs
from arnas.space.foreign import Program

MODEL, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
CONSTANTS = "data/constants/model_constants_config.json"
BATCH = ({0: Dim("batch")},)


class Net(nn.Module):
    """Attention too, so that sizes are products of the batch's."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3, 2)
        self.attention = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.head = nn.Linear(4, 3)
        self.scale = torch.tensor(2.0)  # a constant, no buffer

    def forward(self, images):
        tokens = self.convolution(images * self.scale).flatten(2).transpose(1, 2)
        return self.head(self.attention(tokens).mean(1))


class Run:
    """Unpickled, it leaves a file where it is told."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def written(net, tmp_path_factory):
    file = tmp_path_factory.mktemp("program") / "net.pt2"
    save(export(net, (torch.rand(2, 1, 8, 8),), dynamic_shapes=BATCH), file)
    return file


@pytest.fixture
def mark(tmp_path):
    """What hostile code would make."""
    return tmp_path / "mark"


@pytest.fixture
def changed(written, tmp_path):
    """A function that writes the program with some of its records changed, and gives the file."""

    def write(**records):
        archive, file = PT2ArchiveReader(str(written)), tmp_path / "changed.pt2"
        with PT2ArchiveWriter(str(file)) as writer:
            for name in archive.get_file_names():
                if not name.startswith(".data/") and name != "byteorder":
                    content = archive.read_bytes(name)
                    writer.write_bytes(name, records[name](content) if name in records else content)
        return file

    return write


def edited(change):
    def edit(content):
        model = json.loads(content)
        change(model)
        return json.dumps(model).encode()

    return edit


def node(model):
    return next(node for node in model["graph_module"]["graph"]["nodes"] if "as_tensor" in node["outputs"][0])


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_program_computes_what_its_network_does_for_batches_of_any_size(net, written, count):
    images = torch.rand(count, 1, 8, 8, requires_grad=True)
    program = Program(programs.read(written))
    assert torch.allclose(program(images), net(images), atol=1e-6) and program(images).shape == (count, 3)
    found, expected = (torch.autograd.grad(f(images).square().sum(), images)[0] for f in (program, net))
    assert torch.allclose(found, expected, atol=1e-6) and expected.abs().max() > 0


def test_an_attack_leaves_a_program_as_it_found_it(written):
    program = Graphed(Program(programs.read(written)))
    before = [module.training for module in program.modules()], [p.requires_grad for p in program.parameters()]
    images, labels = torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 2])
    adversarial = PGD(0.1, 0.05, 3)(program, images, labels)
    loss = nn.functional.cross_entropy
    assert loss(program(adversarial), labels) > loss(program(images), labels)
    assert before == (
        [module.training for module in program.modules()],
        [p.requires_grad for p in program.parameters()],
    )
    assert any(before[1]) and not program.eval().train(False).training


@pytest.mark.parametrize("dynamic", [Dim.AUTO, Dim.DYNAMIC])
def test_what_torch_takes_to_be_two_images_or_more_takes_one(net, dynamic, tmp_path):
    save(export(net, (torch.rand(2, 1, 8, 8),), dynamic_shapes=({0: dynamic},)), tmp_path / "net.pt2")
    image = torch.rand(1, 1, 8, 8)
    assert torch.allclose(Program(programs.read(tmp_path / "net.pt2"))(image), net(image), atol=1e-6)


@pytest.mark.parametrize(
    ("dynamic", "sentence"),
    [
        (None, "takes batches of 2 images alone; export it for any number"),
        (({0: Dim("batch", max=64)},), "takes 0 to 64 images at once"),
        (({0: Dim("batch", min=3)},), "takes 3 images at once or more"),
    ],
)
def test_a_fixed_or_bounded_batch_is_refused(net, dynamic, sentence, tmp_path):
    save(export(net, (torch.rand(4 if dynamic else 2, 1, 8, 8),), dynamic_shapes=dynamic), tmp_path / "net.pt2")
    with pytest.raises(InvalidInput, match=sentence):
        programs.read(tmp_path / "net.pt2")


def test_several_outputs_are_refused(tmp_path):
    class Two(nn.Module):
        def forward(self, images):
            return images.mean((2, 3)), images

    save(export(Two(), (torch.rand(2, 1, 8, 8),), dynamic_shapes=BATCH), tmp_path / "net.pt2")
    with pytest.raises(InvalidInput, match="must take images alone, by position, and return logits alone"):
        programs.read(tmp_path / "net.pt2")


def test_what_is_no_program_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "net.pt2").write_bytes(b"no archive")
    with pytest.raises(InvalidInput, match=r"is no exported program that torch .* reads"):
        programs.read(tmp_path / "net.pt2")
    with pytest.raises(InvalidInput, match="No such file"):
        programs.read(tmp_path / "none.pt2")


def test_example_inputs_are_not_unpickled_as_torch_does(changed, mark):
    file = changed(**{SAMPLES: lambda _: pickle.dumps((Run(mark),))})
    assert programs.read(file) and not mark.exists()
    with pytest.raises(Exception):  # noqa: B017 (it is no tuple of inputs, but that shows too late)
        torch.export.load(file)
    assert mark.exists()


def test_weights_as_pickles_are_refused(changed, mark):
    def pickled(config):
        config["config"]["head.bias"]["use_pickle"] = True

    names = {"data/weights/model_weights_config.json": edited(pickled)}
    names |= {f"data/weights/weight_{index}": lambda _: pickle.dumps(Run(mark)) for index in range(40)}
    with pytest.raises(InvalidInput, match="pickled objects, which are not opened"):
        programs.read(changed(**names))
    assert not mark.exists()


@pytest.mark.parametrize("prefix", ["custom_obj_0", "opaque_obj_0"])
def test_custom_objects_are_refused(changed, prefix):
    def custom(config):
        next(iter(config["config"].values()))["path_name"] = prefix

    with pytest.raises(InvalidInput, match="pickled objects, which are not opened"):
        programs.read(changed(**{CONSTANTS: edited(custom)}))


def test_guards_are_code_and_left_out(changed, mark):
    code = f"__import__('os').mkdir({str(mark)!r}) is None"
    file = changed(**{MODEL: edited(lambda model: model["guards_code"].append(code))})
    assert Program(programs.read(file))(torch.rand(2, 1, 8, 8)).shape == (2, 3) and not mark.exists()


def hostile_size(model, code):
    tensors = model["graph_module"]["graph"]["tensor_values"].values()
    next(size for tensor in tensors for size in tensor["sizes"] if "as_expr" in size)["as_expr"]["expr_str"] = code


@pytest.mark.parametrize(
    "change",
    [
        lambda model, code: hostile_size(model, code),
        lambda model, _: node(model).update(target="torch.os.mkdir"),
        lambda model, _: node(model).update(target="torch.ops.load_library"),
        lambda model, _: node(model).update(target="torch.ops.aten.__class__.mro"),
        lambda model, _: node(model).update(target="_operator.methodcaller"),
        lambda model, code: node(model).update(name=f"x = {code}; y"),
        lambda model, code: node(model)["outputs"][0]["as_tensor"].update(name=f"x = {code}; y"),
        lambda model, code: node(model)["inputs"][0].update(arg={"as_string": code}),
        lambda model, code: node(model)["inputs"][0].update(arg={"as_operator": "torch.os.mkdir"}),
        lambda model, code: model["graph_module"]["signature"]["input_specs"][0]["parameter"].update(
            parameter_name=f'a"); {code}; ("'
        ),
        lambda model, code: model["range_constraints"].update({code: {"min_val": 0, "max_val": None}}),
    ],
)
def test_text_that_would_become_code_is_refused(changed, mark, change):
    code = f"__import__('os').mkdir({str(mark)!r})"
    with pytest.raises(InvalidInput, match="not of a plain graph of ATen operators"):
        programs.read(changed(**{MODEL: edited(lambda model: change(model, code))}))
    assert not mark.exists()


def test_the_size_that_is_refused_would_run_as_code_in_torch(changed, mark):
    code = f"__import__('os').mkdir({str(mark)!r})"
    with pytest.raises(Exception):  # noqa: B017 (of whatever kind: it is no size)
        torch.export.load(changed(**{MODEL: edited(lambda model: hostile_size(model, code))}))
    assert mark.exists()


def test_a_program_of_a_gpu_is_sent_back_to_the_cpu(changed):
    def moved(model):
        next(iter(model["graph_module"]["graph"]["tensor_values"].values()))["device"]["type"] = "cuda"

    with pytest.raises(InvalidInput, match="was exported on 'cuda'; export it on the CPU"):
        programs.read(changed(**{MODEL: edited(moved)}))
