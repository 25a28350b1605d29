import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arnas import objects
from arnas.errors import InvalidInput
from arnas.space import genotype
from arnas.space.genotype import Genotype
from arnas.space.layout import EDGES, KINDS, NODES
from arnas.space.operations import OPERATIONS


def random_architecture(seed):
    torch.manual_seed(seed)
    return {kind: torch.randn(EDGES, len(OPERATIONS)) for kind in KINDS.values()}


@given(st.integers(0, 10_000))
def test_derivation_keeps_the_two_strongest_edges_of_every_node(seed):
    architecture = random_architecture(seed)
    found = genotype.derive(architecture)
    for kind, alpha in architecture.items():
        strengths = alpha.softmax(-1)
        first = 0
        for node in range(NODES):
            edges = range(first, first + 2 + node)
            ranked = sorted(edges, key=lambda edge: strengths[edge].max().item(), reverse=True)[:2]
            expected = [(list(OPERATIONS)[strengths[edge].argmax()], edge - first) for edge in ranked]
            assert list(found.cells[kind][node]) == expected
            first += 2 + node


@given(st.integers(0, 10_000))
def test_a_genotype_survives_being_written_and_read(seed):
    found = genotype.derive(random_architecture(seed))
    assert Genotype.from_json(json.loads(json.dumps(found.to_json())), "here") == found


def test_derivation_does_not_depend_on_a_constant_added_to_an_edge():
    architecture = random_architecture(0)
    shifted = {kind: alpha + torch.randn(EDGES, 1) for kind, alpha in architecture.items()}
    assert genotype.derive(shifted) == genotype.derive(architecture)


def test_the_published_genotype_is_there_by_name():
    found, document = genotype.load("arnas-cifar10")
    assert found.skip_connections() == {"accurate": 3, "reduce": 0, "robust": 0}
    assert "2405.05502" in document["origin"]["source"]
    assert document["digest"] == genotype.document(found, "arnas-cifar10", None, {})["digest"]


def damage(document, path, value):
    *parents, last = path
    inner = document
    for key in parents:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (["schema"], "other/1", "no genotype file of schema"),
        (["cells"], None, "exactly the kinds"),
        (["cells", "robust"], None, "exactly the kinds"),
        (["cells", "robust", 3], None, "4 nodes"),
        (["cells", "reduce", 1, 0], None, "two .operation, input. pairs"),
        (["cells", "reduce", 1, 0, 0], "sep_conv_7x7", "sep_conv_7x7"),
        (["cells", "accurate", 0, 1, 1], 2, "input 2 must be a number from 0 to 1"),
        (["cells", "accurate", 0, 1, 1], "1", "input '1'"),
        (["cells", "accurate", 0, 1, 1], True, "input True"),
        (["cells", "accurate", 0, 1, 0], ["skip_connect"], "must be .operation, input."),
        (["cells", "accurate", 0, 0, 0], "sep_conv_3x3", "its digest is another"),
    ],
)
def test_a_malformed_genotype_is_refused_with_the_place(tmp_path, path, value, sentence):
    _, document = genotype.load("arnas-cifar10")
    file = tmp_path / "genotype.json"
    file.write_text(json.dumps(damage(document, path, value)))
    with pytest.raises(InvalidInput, match=sentence) as refusal:
        genotype.load(str(file))
    assert str(file) in str(refusal.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("channels", 0), ("channels", "36"), ("widths", [1, 2]), ("widths", [1, 2, 0]), ("widths", "124"), ("widths", 3)],
)
def test_a_malformed_size_of_its_authors_is_refused(tmp_path, key, value):
    found, document = genotype.load("darts-v2")
    published = {"channels": document["channels"], "widths": document["widths"]} | {key: value}
    file = tmp_path / "genotype.json"
    file.write_text(json.dumps(genotype.document(found, "mine", None, {}, published)))
    with pytest.raises(InvalidInput, match=f"{key} .* must be"):
        genotype.load(str(file))


def test_the_size_of_its_authors_is_under_the_digest(tmp_path):
    _, document = genotype.load("darts-v2")
    file = tmp_path / "genotype.json"
    file.write_text(json.dumps(document | {"channels": 16}))
    with pytest.raises(InvalidInput, match="its digest is another"):
        genotype.load(str(file))


def test_what_is_not_json_is_refused(tmp_path):
    file = tmp_path / "genotype.json"
    file.write_bytes(b"\xff\x00{")
    with pytest.raises(InvalidInput, match="not JSON"):
        genotype.load(str(file))


def test_a_genotype_is_read_from_a_bucket_by_its_place_and_as_kfp_shows_it(bucket, tmp_path):
    found, document = genotype.load("arnas-cifar10")
    (tmp_path / "genotype").write_text(json.dumps(document))
    objects.Bucket(bucket).put("genotype", tmp_path / "genotype")
    for place in (f"{bucket}/genotype", f"{bucket}/genotype".replace("s3://", "minio://")):
        assert genotype.load(place) == (found, document)
    with pytest.raises(InvalidInput, match="nowhere holds nothing"):
        genotype.load(f"{bucket}/nowhere")
