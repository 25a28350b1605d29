import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms.v2.functional import resize

from arnas import artifacts, config
from arnas.data import catalog, image_set
from arnas.data.source import Rows, Source
from arnas.errors import InvalidInput
from arnas.stages import prepare


def make_source(counts, test_share=None, rows=None):
    """Images that carry their own index, so that a mix-up shows."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    if rows is not None:
        rows.append(torch.arange(len(labels)).int().view(torch.uint8).view(-1, 4, 1, 1).repeat(1, 1, 8, 8).numpy())
    test = None if test_share is None else torch.arange(0, len(labels), test_share)
    return Source(rows, labels, [f"class {index}" for index in range(len(counts))], test)


def share(indices, labels):
    return labels[indices].bincount(minlength=int(labels.max()) + 1)


def assert_stratified(drawn, population, labels):
    """Each class has its share of the drawn to within one image."""
    exact = share(population, labels).double() * len(drawn) / len(population)
    assert torch.all((share(drawn, labels) - exact).abs() < 1)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(8, 60), min_size=2, max_size=12),
    own_test=st.booleans(),
    train_limit=st.none() | st.integers(40, 500),
    test_limit=st.none() | st.integers(1, 100),
    seed=st.integers(0, 2**62),
)
def test_splits_are_disjoint_complete_stratified_and_within_the_limits(counts, own_test, train_limit, test_limit, seed):
    source = make_source(counts, test_share=5 if own_test else None)
    settings = config.Prepare(
        seed=seed, train_limit=train_limit, test_limit=test_limit, test_fraction=0.2, holdout_fraction=0.1
    )
    try:
        splits = prepare.split(source, settings)
    except InvalidInput:
        assume(False)
    parts = {name: set(indices.tolist()) for name, indices in splits.items()}
    assert all(len(parts[name]) == len(splits[name]) for name in parts)
    assert all(not one & other for one, other in itertools.combinations(parts.values(), 2))

    every = torch.arange(len(source.labels))
    training = torch.cat([splits[name] for name in ("weights", "architecture", "holdout")])
    if own_test:
        assert parts["test"] <= set(source.test.tolist())
        assert not set(training.tolist()) & set(source.test.tolist())
    tests = len(source.test) if own_test else round(0.2 * len(every))
    assert len(splits["test"]) == min(tests, test_limit or tests)
    assert len(training) == min(len(every) - tests, train_limit or len(every))
    assert len(splits["holdout"]) == round(0.1 * len(training))
    assert abs(len(splits["weights"]) - len(splits["architecture"])) <= 1

    if own_test:
        assert_stratified(splits["test"], source.test, source.labels)
    elif test_limit is None:
        assert_stratified(splits["test"], every, source.labels)
    assert_stratified(splits["holdout"], training, source.labels)
    rest = torch.cat([splits["weights"], splits["architecture"]])
    assert_stratified(splits["weights"], rest, source.labels)


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=15), fraction=st.floats(0, 1), seed=st.integers(0, 2**62)
)
def test_any_sample_has_its_size_and_each_class_its_share(counts, fraction, seed):
    labels = make_source(counts).labels
    every = torch.arange(len(labels))
    torch.manual_seed(seed)
    drawn, others = prepare._sample(every, labels, count := round(fraction * len(labels)))
    assert len(drawn) == count
    assert torch.equal(torch.cat([drawn, others]).sort().values, every)
    assert_stratified(drawn, every, labels)


def test_every_image_can_be_drawn_and_ties_are_not_always_broken_alike():
    labels = torch.arange(10).repeat_interleave(4)
    hits = torch.zeros(40)
    for seed in range(400):
        torch.manual_seed(seed)
        hits[prepare._sample(torch.arange(40), labels, 5)[0]] += 1
    assert hits.min() > 25 and hits.max() < 80  # 50 expected, standard deviation 7


def test_the_first_images_of_a_split_are_a_fair_sample():
    splits = prepare.split(make_source([300] * 4), config.Prepare(test_fraction=0.5))
    labels = make_source([300] * 4).labels
    first = share(splits["test"][:100], labels)
    assert first.min() >= 12 and first.max() <= 38  # 25 expected, standard deviation 4
    assert not torch.equal(splits["test"], splits["test"].sort().values)


def test_same_seed_same_digest_other_seed_other_digest(tmp_path):
    digests = [
        prepare.run(tmp_path / str(index), config.Prepare(dataset="digits", seed=seed))["digest"]
        for index, seed in enumerate((0, 0, 1))
    ]
    assert digests[0] == digests[1] != digests[2]
    assert (tmp_path / "0" / "images.safetensors").read_bytes() == (tmp_path / "1" / "images.safetensors").read_bytes()


def put_folder(root, count=12, size=(8, 8)):
    generator = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index:03}.png")


def test_the_digest_does_not_tell_where_the_data_lay(tmp_path):
    put_folder(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there" / "deeper")
    settings = {"dataset": "folder", "holdout_fraction": 0.2}
    first = prepare.run(tmp_path / "a", config.Prepare(path=str(tmp_path / "here"), **settings))
    second = prepare.run(tmp_path / "b", config.Prepare(path=str(tmp_path / "there" / "deeper"), **settings))
    assert first == second
    assert str(tmp_path) not in (tmp_path / "a" / "artifact.json").read_text()


def test_other_pixels_give_another_digest(tmp_path):
    put_folder(tmp_path / "data")
    settings = config.Prepare(dataset="folder", path=str(tmp_path / "data"), holdout_fraction=0.2)
    first = prepare.run(tmp_path / "a", settings)
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "ant" / "003.png")
    assert prepare.run(tmp_path / "b", settings)["digest"] != first["digest"]


def test_the_artifact_says_what_it_holds(tmp_path):
    report = prepare.run(tmp_path / "set", config.Prepare(dataset="digits", train_limit=500, test_limit=100, seed=3))
    content = artifacts.read(tmp_path / "set", "image_set")["content"]
    assert content["shape"] == [1, 8, 8] and content["dataset"] == "digits" and len(content["classes"]) == 10
    assert "path" not in content["settings"] and content["settings"]["seed"] == 3
    counts = {"weights": 237, "architecture": 238, "holdout": 25, "test": 100}
    assert content["counts"] == counts
    assert {name: report[name] for name in counts} == counts
    assert report["images"] == 600 and report["classes"] == 10
    loaded = image_set.load(tmp_path / "set")
    assert {name: len(indices) for name, indices in loaded.splits.items()} == counts
    assert len(loaded.images) == len(loaded.labels) == 600


def test_images_keep_their_labels_when_some_are_left_out(tmp_path, monkeypatch):
    source = make_source([50, 30, 20])
    monkeypatch.setattr(catalog, "read", lambda settings, rows: make_source([50, 30, 20], rows=rows))
    prepare.run(tmp_path / "set", config.Prepare(dataset="digits", train_limit=40, test_limit=7))
    loaded = image_set.load(tmp_path / "set")
    assert len(loaded.images) == 47
    original = loaded.images[:, :, 0, 0].contiguous().view(torch.int32).flatten().long()
    assert torch.equal(loaded.labels, source.labels[original])
    splits = prepare.split(source, config.Prepare(dataset="digits", train_limit=40, test_limit=7))
    for name, indices in loaded.splits.items():
        assert torch.equal(original[indices], splits[name])


@pytest.mark.parametrize("dataset", ["digits", "folder"])
def test_image_size_resizes_to_a_square(tmp_path, dataset):
    put_folder(tmp_path / "data", size=(12, 20))
    settings = config.Prepare(dataset=dataset, path=str(tmp_path / "data"), image_size=16, holdout_fraction=0.2)
    prepare.run(tmp_path / "set", settings)
    loaded = image_set.load(tmp_path / "set")
    assert loaded.shape[1:] == (16, 16) and loaded.images.shape[2:] == (16, 16)


def test_resizing_keeps_the_mean_and_order_of_images(tmp_path):
    prepare.run(tmp_path / "small", config.Prepare(dataset="digits"))
    prepare.run(tmp_path / "large", config.Prepare(dataset="digits", image_size=32))
    small, large = (image_set.load(tmp_path / name).images.float().mean((1, 2, 3)) for name in ("small", "large"))
    assert torch.allclose(small, large, atol=3)


def test_images_below_8_pixels_are_refused(tmp_path):
    put_folder(tmp_path / "data", size=(7, 9))
    with pytest.raises(InvalidInput, match="images of 7 x 9 pixels are too small"):
        prepare.run(tmp_path / "set", config.Prepare(dataset="folder", path=str(tmp_path / "data")))


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"train_limit": 9}, r"split holdout is empty \(weights 4, architecture 5, holdout 0, test 359\)"),
        ({"test_fraction": 0.0001}, "split test is empty"),
        ({"train_limit": 16, "holdout_fraction": 0.2}, "no image of class '\\d'.*each class needs two training images"),
    ],
)
def test_too_few_images_are_refused_in_one_sentence(tmp_path, changes, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        prepare.run(tmp_path / "set", config.Prepare(dataset="digits", **changes))
    assert not (tmp_path / "set").exists()


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InvalidInput, match="cannot be written"):
        prepare.run(tmp_path / "file" / "set", config.Prepare(dataset="digits"))


@pytest.mark.parametrize("size, image_size", [((8, 8), None), ((12, 20), None), ((12, 20), 16), ((40, 40), 9)])
def test_the_file_is_the_one_that_safetensors_would_write_of_images_that_torchvision_resized(
    tmp_path, monkeypatch, size, image_size
):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (50, 3, *size), dtype=np.uint8)

    def read(settings, rows):
        rows.append(pixels[:20])
        rows.append(pixels[20:].transpose(2, 3, 1, 0).copy().transpose(3, 2, 0, 1))  # as SVHN lies in memory
        return Source(rows, torch.arange(50) % 3, ["ant", "bee", "cat"])

    monkeypatch.setattr(catalog, "read", read)
    monkeypatch.setattr("arnas.data.source.CHUNK", 7 * pixels[0].nbytes)
    settings = config.Prepare(dataset="digits", image_size=image_size, train_limit=20, test_limit=5, test_fraction=0.3)
    prepare.run(tmp_path / "set", settings)
    splits = prepare.split(Source(None, torch.arange(50) % 3, ["ant", "bee", "cat"]), settings)
    used = torch.cat(list(splits.values())).sort().values
    images = torch.from_numpy(pixels)[used]
    images = resize(images, [image_size] * 2, antialias=True) if image_size else images
    placed = {name: torch.searchsorted(used, indices) for name, indices in splits.items()}
    save_file({"images": images, "labels": used % 3, **placed}, tmp_path / "oracle")
    assert (tmp_path / "set" / "images.safetensors").read_bytes() == (tmp_path / "oracle").read_bytes()


def test_damaged_files_that_are_left_out_are_named_in_the_artifact(tmp_path):
    put_folder(tmp_path / "data")
    (tmp_path / "data" / "bee" / "004.png").write_text("no image")
    settings = config.Prepare(dataset="folder", path=str(tmp_path / "data"), allow_damaged=1, holdout_fraction=0.2)
    assert prepare.run(tmp_path / "set", settings)["images"] == 23
    content = artifacts.read(tmp_path / "set", "image_set")["content"]
    assert content["damaged"] == ["bee/004.png"] and sum(content["counts"].values()) == 23


def test_hundreds_of_classes_and_96_pixels_are_no_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "read", lambda settings, rows: make_source([8] * 300, rows=rows))
    report = prepare.run(tmp_path / "set", config.Prepare(dataset="digits", image_size=96, train_limit=1500))
    assert report["classes"] == 300 and image_set.load(tmp_path / "set").shape == (4, 96, 96)


def test_nothing_is_left_beside_the_image_set(tmp_path):
    prepare.run(tmp_path / "set", config.Prepare(dataset="digits"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


def test_a_full_disk_is_said_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: Path("/dev/full").open("wb"))  # noqa: SIM115
    with (
        pytest.raises(InvalidInput, match=r"cannot hold the images: No space left on device; name an output"),
        Rows(tmp_path) as rows,
    ):
        rows.append(np.zeros((2, 3, 8, 8), np.uint8))


PEAK = """
import json, resource, sys
from arnas import config
from arnas.stages import prepare
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
before = peak()
settings = config.Prepare(dataset="folder", path=sys.argv[2], image_size=int(sys.argv[3]), holdout_fraction=0.2)
prepare.run(sys.argv[1], settings)
print(json.dumps([before, peak()]))
"""


def peak_of_preparing(folder, image_size):
    """MiB of memory that a process had before it prepared the set, and at most; and what it said."""
    # the shell in between, since a process begins with the peak of the one that starts it, which is pytest here
    command = ["sh", "-c", '"$@"; exit $?', "-", sys.executable, "-c", PEAK, str(folder / "set"), str(folder / "data")]
    done = subprocess.run([*command, str(image_size)], capture_output=True, text=True, check=True)
    return *json.loads(done.stdout), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_a_large_set_is_prepared_within_a_gibibyte_and_not_held(tmp_path):
    put_folder(tmp_path / "data", count=200)
    mebibytes = 400 * 3 * 512 * 512 / 2**20
    before, peak, said = peak_of_preparing(tmp_path, 512)
    assert (tmp_path / "set" / "images.safetensors").stat().st_size > mebibytes * 2**20
    shutil.rmtree(tmp_path / "set")
    assert peak < 1024
    assert peak - before < mebibytes / 2
    assert "400 images in" in said and "MiB of memory at most" in said


def slopes(size):
    """Three channels that rise in their own directions: what compresses well, and looks the same at any size."""
    slope = Image.linear_gradient("L").resize(size)
    ways = (Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180)
    return Image.merge("RGB", [slope, *map(slope.transpose, ways)])


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_large_images_are_prepared_within_a_gibibyte_whatever_they_are(tmp_path):
    """Eight at once would take 750 MiB more than the libraries."""
    image, kinds = slopes((4000, 3000)), {"jpg": {}, "png": {"compress_level": 1}}
    for suffix, how in kinds.items():
        image.save(tmp_path / f"image.{suffix}", **how)
        for name, index in itertools.product(("ant", "bee"), range(6)):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / name / f"{suffix}-{index}.{suffix}").hardlink_to(tmp_path / f"image.{suffix}")
    before, peak, _ = peak_of_preparing(tmp_path, 32)
    assert peak < 1024 and peak - before < 200
    images = image_set.load(tmp_path / "set").images
    assert len(images) == 24 and (images.int() - images[0].int()).abs().max() <= 2  # however they were decoded
