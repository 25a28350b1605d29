"""Every architecture that can be named: its published size, and that it fits the data whatever that is."""

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from arnas import artifacts, config
from arnas.errors import InvalidInput
from arnas.space import genotype, rivals
from arnas.space.layout import Layout, choose_stem_stride
from arnas.space.network import build, describe, load_model
from arnas.space.size import info

NAMES = [*config.RIVALS, *config.genotypes()]
TINY = {"channels": 2, "layers": 3}


def network(name, shape, classes=10, **changes):
    torch.manual_seed(0)
    return build(describe(name, shape, classes, **TINY | changes))


@pytest.mark.parametrize(
    ("name", "parameters", "giga_macs"),
    [
        # github.com/kuangliu/pytorch-cifar
        ("resnet18", 11_173_962, 0.56),
        # with the batch norm after the last block that He et al. 2016 (arXiv 1603.05027) describe; github.com/kuangliu/
        # pytorch-cifar leaves it out, and so has 1,024 parameters less: 11,171,146
        ("preactresnet18", 11_172_170, 0.56),
        # arXiv 1605.07146: 36.5 M for the former; 46.2 M without the unused block of TRADES' models/wideresnet.py
        ("wrn-28-10", 36_479_194, 5.24),
        ("wrn-34-10", 46_160_474, 6.66),
        # github.com/kuangliu/pytorch-cifar
        ("densenet121", 6_956_298, 0.89),
        ("mobilenetv2", 2_296_922, 0.09),
    ],
)
def test_a_rival_has_its_published_size(name, parameters, giga_macs):
    size = info(name)
    assert size["parameters"] == parameters
    assert round(size["macs"] / 1e9, 2) == giga_macs


@pytest.mark.parametrize(
    ("name", "parameters", "published"),
    [
        ("darts-v2", 3_349_342, 3.3),  # README of github.com/quark0/darts
        ("pdarts", 3_433_798, 3.4),  # arXiv 1904.12760, table 1
        ("advrush", 4_158_046, 4.2),  # so papers that compare with it, such as RTP-NAS (ICME 2024), table 1
        ("racl", 3_571_174, 3.6),  # rounded: no source of a published figure was found
    ],
)
def test_a_genotype_of_others_has_its_published_size_without_an_auxiliary_head(name, parameters, published):
    description = describe(name, (3, 32, 32), 10)
    with torch.device("meta"):
        counted = sum(parameter.numel() for parameter in build(description).parameters())
    assert (description["channels"], description["auxiliary"], counted) == (36, False, parameters)
    assert round(counted / 1e6, 1) == published


def test_the_genotypes_of_others_have_one_normal_cell_and_their_authors_widths():
    for name in sorted(set(config.genotypes()) - {"arnas-cifar10"}):
        found, document = genotype.load(name)
        assert found.cells["accurate"] == found.cells["robust"]
        assert str(Layout.paper(8, genotype.widths(document))) == "A1 A1 D2 A2 A2 D4 R4 R4"
        assert "arXiv" in document["origin"]["source"] and "github.com" in document["origin"]["repository"]


def test_without_a_width_an_architecture_has_the_published_one():
    described = {name: describe(name, (3, 32, 32), 10) for name in NAMES}
    assert {name: body["channels"] for name, body in described.items()} == config.RIVALS | {
        name: 64 if name == "arnas-cifar10" else 36 for name in config.genotypes()
    }
    assert rivals.NETWORKS.keys() == config.RIVALS.keys()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels_in", "classes", "stem_stride"), [(1, 2, 1), (3, 200, 2), (3, 10, 3), (2, 5, None)])
def test_logits_fit_any_images_and_classes(name, channels_in, classes, stem_stride):
    net = network(name, (channels_in, 64, 64), classes, stem_stride=stem_stride).eval()
    with torch.no_grad():
        for side in (8, 9, 32, 64, 96):
            assert net(torch.rand(2, channels_in, side, side)).shape == (2, classes)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_reaches_every_parameter(name):
    net = network(name, (3, 16, 16), 5, channels=4).train()
    labels = torch.arange(10) % 5
    functional.cross_entropy(net(torch.rand(10, 3, 16, 16)), labels).backward()
    assert [path for path, parameter in net.named_parameters() if not parameter.grad.abs().sum() > 0] == []


def store(description, state, path):
    with artifacts.publish(path) as folder:
        folder.mkdir()
        save_file(state, folder / "best.safetensors")
        artifacts.write(folder, "model", {"network": description}, {})


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_model_is_the_same_when_it_is_loaded(name, tmp_path):
    description = describe(name, (3, 64, 64), 5, **TINY)
    net, images = build(description), torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        net.train()(images)  # statistics of its own
    store(description, net.state_dict(), tmp_path / "model")
    loaded, body = load_model(tmp_path / "model")
    assert body["content"]["network"] == description
    assert torch.equal(loaded(images), net.eval()(images))


@pytest.mark.parametrize("name", NAMES)
def test_a_state_dict_that_does_not_fit_is_refused_with_the_names_that_do_not(name, tmp_path):
    description = describe(name, (3, 32, 32), 5, **TINY)
    state = build(description).state_dict()
    first, *_, last = [key for key, tensor in state.items() if tensor.ndim]
    shape = list(state[last].shape)
    state |= {"renamed": state.pop(first), last: torch.zeros(*shape, 2)}
    store(description, state, tmp_path / "model")
    with pytest.raises(InvalidInput) as refused:
        load_model(tmp_path / "model")
    assert str(refused.value) == (
        f"{tmp_path}/model/best.safetensors does not fit the network (missing: {first}; unexpected: renamed; "
        f"of another shape: {last} {[*shape, 2]} for {shape}); give the state dict of this very network."
    )


@pytest.mark.parametrize(("shape", "stride"), [((3, 63, 63), 1), ((1, 64, 64), 2), ((3, 32, 96), 1), ((3, 96, 96), 2)])
def test_large_images_are_halved_at_the_stem_unless_told_otherwise(shape, stride):
    assert choose_stem_stride(None, shape) == stride
    assert choose_stem_stride(1, shape) == 1
    for name in NAMES:
        assert describe(name, shape, 10)["stem_stride"] == stride


@pytest.mark.parametrize("name", ["resnet18", "wrn-28-10", "mobilenetv2", "darts-v2"])
def test_twice_the_side_and_twice_the_stride_cost_the_same_and_weigh_the_same(name):
    small, large = (info(name, image_size=side, **TINY) for side in (32, 64))
    assert (small["stem_stride"], large["stem_stride"]) == (1, 2)
    assert [small[key] for key in ("parameters", "macs")] == [large[key] for key in ("parameters", "macs")]


def test_a_description_without_a_stem_stride_has_stride_1():
    for name in NAMES:
        description = describe(name, (3, 64, 64), 5, **TINY)
        del description["stem_stride"]
        images = torch.rand(2, 3, 64, 64)
        torch.manual_seed(0)
        old = build(description).eval()(images)
        torch.manual_seed(0)
        assert torch.equal(build(description | {"stem_stride": 1}).eval()(images), old)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet-18", "resnet18"),
        ("wrn-28", "wrn-28-10"),
        ("preactresnet", "preactresnet18"),
        ("mobilenet", "mobilenetv2"),
        ("darts", "pdarts"),
        ("arnas", "arnas-cifar10"),
    ],
)
def test_a_mistaken_name_is_told_its_near_matches(name, near):
    with pytest.raises(InvalidInput, match=rf"'{name}'.*near it are [^.]*{near}"):
        info(name)
    with pytest.raises(InvalidInput, match=rf"'{name}'.*near it are [^.]*{near}"):
        config.load("digits", {"retrain.architecture": name})
