import hashlib
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10

from arnas import config
from arnas.data import catalog
from arnas.errors import InvalidInput

BATCHES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]


def read(dataset, path=None, **others):
    return catalog.read(config.Prepare(dataset=dataset, path=None if path is None else str(path), **others))


def assert_consistent(source):
    assert source.images.dtype == torch.uint8 and source.images.ndim == 4
    assert source.labels.dtype == torch.int64 and source.labels.shape == source.images.shape[:1]
    assert source.labels.unique().tolist() == list(range(len(source.classes)))
    if source.test is not None:
        assert source.test.dtype == torch.int64
        assert set(source.test.tolist()) < set(range(len(source.images)))


# --- digits and glyphs


def test_digits_are_those_of_scikit_learn():
    source = read("digits")
    assert_consistent(source)
    bunch = load_digits()
    assert source.images.shape == (1797, 1, 8, 8) and source.test is None
    assert np.abs(source.images[:, 0].numpy() / 255 - bunch.images / 16).max() < 0.5 / 255 + 1e-9
    assert source.labels.tolist() == bunch.target.tolist()


def test_glyphs_are_balanced_distinct_and_seeded():
    first, again, other = (catalog.glyphs(seed) for seed in (0, 0, 1))
    assert_consistent(first)
    assert first.images.shape == (1200, 1, 16, 16) and len(first.test) == 240
    assert first.labels.bincount().tolist() == [120] * 10
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert len(first.images.flatten(1).unique(dim=0)) == 1200
    assert torch.all(first.images.flatten(1).max(1).values > 100)  # no letter is missing from its font


def test_glyphs_are_tested_in_fonts_that_training_does_not_have():
    assert not set(catalog.TRAINING_FONTS) & set(catalog.TEST_FONTS)
    assert not any(font.startswith("DejaVuSerif") for font in catalog.TRAINING_FONTS)


# --- CIFAR-10


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A small data set in CIFAR-10's layout, whose files are the published ones as far as the reader can tell."""
    generator = np.random.default_rng(0)
    root = tmp_path / "data" / "cifar-10-batches-py"
    root.mkdir(parents=True)
    expected = {"images": [], "labels": []}
    sums = {}

    def put(name, value):
        data = pickle.dumps(value, protocol=2)
        (root / name).write_bytes(data)
        sums[name] = hashlib.md5(data).hexdigest()

    for name in BATCHES:
        pixels = generator.integers(0, 256, (20, 3072), dtype=np.uint8)
        labels = generator.permutation(20) % 10
        put(name, {"data": pixels, "labels": labels.tolist()})
        expected["images"].append(pixels.reshape(20, 3, 32, 32))
        expected["labels"] += labels.tolist()
    put("batches.meta", {"label_names": [f"class {index}" for index in range(10)]})

    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in BATCHES[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [[name, sums[name]] for name in BATCHES[5:]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})
    return root, np.concatenate(expected["images"]), expected["labels"]


@pytest.mark.parametrize("given", ["the folder", "its parent"])
def test_cifar10_is_read_from_its_folder_or_the_one_above(cifar, given):
    root, images, labels = cifar
    source = read("cifar10", root if given == "the folder" else root.parent)
    assert_consistent(source)
    assert np.array_equal(source.images.numpy(), images)
    assert source.labels.tolist() == labels
    assert source.test.tolist() == list(range(100, 120))
    assert source.classes[3] == "class 3"


def test_cifar10_is_read_as_torchvision_reads_it(cifar):
    root, _, _ = cifar
    source = read("cifar10", root)
    for training, indices in ((True, range(100)), (False, range(100, 120))):
        oracle = CIFAR10(root.parent, train=training)
        assert np.array_equal(source.images[indices].permute(0, 2, 3, 1).numpy(), oracle.data)
        assert source.labels[indices].tolist() == oracle.targets
        assert source.classes == oracle.classes


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


@pytest.mark.parametrize("name", [*BATCHES, "batches.meta"])
def test_nothing_is_unpickled_while_any_file_is_not_the_published_one(cifar, tmp_path, monkeypatch, name):
    root, _, _ = cifar
    mark = tmp_path / "executed"
    trap = pickle.dumps(Trap(mark))
    pickle.loads(trap).close()
    assert mark.exists()  # the trap works
    mark.unlink()

    (root / name).write_bytes(trap)
    monkeypatch.setattr(pickle, "loads", lambda *_, **__: pytest.fail("something was unpickled"))
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("something was unpickled"))
    with pytest.raises(InvalidInput, match=rf"{name} is damaged: its MD5 is {hashlib.md5(trap).hexdigest()}"):
        read("cifar10", root)
    assert not mark.exists()


def test_the_published_sums_are_those_of_the_archive():
    """A change of torchvision's list would change what we unpickle."""
    sums = {name: md5 for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list]}
    assert sums["data_batch_1"] == "c99cafc152244af753f735de768cd75f"
    assert sums["test_batch"] == "40351d587109b95175f43aff81a1287e"
    assert list(sums) == BATCHES


def test_a_missing_cifar10_file_is_named(cifar):
    root, _, _ = cifar
    (root / "data_batch_4").unlink()
    with pytest.raises(InvalidInput, match=r"data_batch_4 cannot be read \(No such file or directory\)"):
        read("cifar10", root)


# --- folders


def put_image(file, mode="RGB", size=(10, 10), seed=0):
    file.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    image = Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)
    image.save(file)
    return np.asarray(image)


def put_classes(root, names=("ant", "bee", "cat"), count=3, **how):
    return {
        (name, index): put_image(root / name / f"{index}.png", seed=100 * place + index, **how)
        for place, name in enumerate(names)
        for index in range(count)
    }


def test_a_folder_of_class_folders_is_read_pixel_by_pixel(tmp_path):
    put = put_classes(tmp_path)
    source = read("folder", tmp_path)
    assert_consistent(source)
    assert source.classes == ["ant", "bee", "cat"] and source.test is None
    assert source.images.shape == (9, 3, 10, 10)
    for position, ((name, _), pixels) in enumerate(put.items()):
        assert np.array_equal(source.images[position].permute(1, 2, 0).numpy(), pixels)
        assert source.classes[source.labels[position]] == name


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_train_and_test_folders_are_the_parts(tmp_path, test_name):
    put_classes(tmp_path / "train", count=4)
    put_classes(tmp_path / test_name, count=2)
    source = read("folder", tmp_path)
    assert_consistent(source)
    assert len(source.images) == 18
    assert source.test.tolist() == list(range(12, 18))
    assert source.labels[source.test].tolist() == [0, 0, 1, 1, 2, 2]


def test_a_train_folder_alone_has_no_test_part(tmp_path):
    put_classes(tmp_path / "train")
    source = read("folder", tmp_path)
    assert source.classes == ["ant", "bee", "cat"] and source.test is None


def test_a_class_may_be_named_train(tmp_path):
    put_classes(tmp_path, names=("bus", "train"))
    assert read("folder", tmp_path).classes == ["bus", "train"]


def test_jpeg_and_nested_files_count(tmp_path):
    put_classes(tmp_path)
    put_image(tmp_path / "ant" / "more" / "photo.JPEG")
    assert read("folder", tmp_path).labels.bincount().tolist() == [4, 3, 3]


@pytest.mark.parametrize("modes, channels", [(("L", "1", "LA"), 1), (("L", "RGB", "L"), 3), (("P", "RGBA", "CMYK"), 3)])
def test_grey_images_have_one_channel_and_mixtures_three(tmp_path, modes, channels):
    for name, mode in zip(("ant", "bee", "cat"), modes, strict=True):
        put_image(tmp_path / name / ("0.tif" if mode == "CMYK" else "0.png"), mode=mode)
    source = read("folder", tmp_path)
    assert source.images.shape == (3, channels, 10, 10)
    if channels == 3 and modes[0] == "L":
        assert torch.equal(source.images[0, 0], source.images[0, 2])


def test_mixed_sizes_need_image_size(tmp_path):
    put_classes(tmp_path)
    put_image(tmp_path / "bee" / "wide.png", size=(20, 12))
    with pytest.raises(
        InvalidInput, match=r"differ in size .* 10 x 10 and .*wide\.png 20 x 12.*set prepare\.image_size"
    ):
        read("folder", tmp_path)
    assert read("folder", tmp_path, image_size=9).images.shape == (10, 3, 9, 9)


def test_resizing_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        Image.fromarray(stripes).save(tmp_path / name / "0.png")
    inner = read("folder", tmp_path, image_size=8).images[..., 1:-1].int()
    assert torch.all((inner - 127).abs() <= 8)  # one pixel in 64, taken without averaging, would be 0 or 255


@pytest.mark.parametrize("damage", ["text", "truncated", "empty"])
def test_damaged_files_are_named_all_at_once(tmp_path, damage):
    put_classes(tmp_path, count=6)
    for index in range(5):
        file = tmp_path / "bee" / f"{index}.png"
        data = file.read_bytes()
        file.write_bytes({"text": b"this is no image", "truncated": data[: len(data) // 2], "empty": b""}[damage])
    with pytest.raises(InvalidInput, match=r"bee/0\.png, .*bee/1\.png, .*bee/2\.png and 2 more"):
        read("folder", tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif"])
def test_any_damage_is_read_or_named_but_never_crashes(tmp_path, suffix):
    put_classes(tmp_path, count=1)
    file = tmp_path / "cat" / f"x.{suffix}"
    put_image(file)
    whole = file.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole[: generator.integers(1, len(whole) + 1)])
        for place in generator.integers(0, len(data), 3):
            data[place] = generator.integers(256)
        file.write_bytes(data)
        try:
            read("folder", tmp_path, image_size=8)
        except InvalidInput as error:
            assert str(file) in str(error)


def test_deep_images_are_refused_rather_than_clipped(tmp_path):
    put_classes(tmp_path)
    Image.fromarray(np.full((10, 10), 40_000, np.uint16)).save(tmp_path / "bee" / "deep.png")
    with pytest.raises(InvalidInput, match=r"8 bits a channel, but .*deep\.png"):
        read("folder", tmp_path)


def test_one_class_is_not_enough(tmp_path):
    put_classes(tmp_path, names=("ant",))
    with pytest.raises(InvalidInput, match="two class folders of images at least, but has 1"):
        read("folder", tmp_path)


def test_an_empty_class_folder_is_named(tmp_path):
    put_classes(tmp_path)
    (tmp_path / "dog").mkdir()
    with pytest.raises(InvalidInput, match="class folder dog holds no image"):
        read("folder", tmp_path)


def test_train_and_test_must_have_the_same_classes(tmp_path):
    put_classes(tmp_path / "train")
    put_classes(tmp_path / "test", names=("ant", "bee", "dog"))
    with pytest.raises(InvalidInput, match="must have the same class folders, but differ in cat, dog"):
        read("folder", tmp_path)


def test_a_test_folder_without_a_train_folder_is_refused(tmp_path):
    put_classes(tmp_path / "test")
    with pytest.raises(InvalidInput, match="has test/ but no train/"):
        read("folder", tmp_path)


@pytest.mark.parametrize("dataset", ["cifar10", "folder"])
def test_a_path_is_needed_and_must_be_a_folder(tmp_path, dataset):
    with pytest.raises(InvalidInput, match=f"dataset {dataset} needs path"):
        read(dataset)
    with pytest.raises(InvalidInput, match=r"nowhere is no folder"):
        read(dataset, tmp_path / "nowhere")
