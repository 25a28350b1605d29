import hashlib
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100, SVHN

from arnas import config
from arnas.data import catalog, download, files
from arnas.data.source import Rows
from arnas.errors import InvalidInput

BATCHES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]


@pytest.fixture
def read():
    """Reads a data set; its images come as a tensor."""
    opened = []

    def read(dataset, path=None, **others):
        opened.append(Rows())
        settings = config.Prepare(dataset=dataset, path=None if path is None else str(path), **others)
        return whole(catalog.read(settings, opened[-1]))

    yield read
    for rows in opened:
        rows.__exit__(None, None, None)


class whole:
    """A source whose images are in memory."""

    def __init__(self, source):
        self.labels, self.classes, self.test, self.damaged = source.labels, source.classes, source.test, source.damaged
        self.images = next(source.images.read(torch.arange(len(source.images)), len(source.images)))
        assert self.images.shape[1:] == source.images.shape


def assert_consistent(source):
    assert source.images.dtype == torch.uint8 and source.images.ndim == 4
    assert source.labels.dtype == torch.int64 and source.labels.shape == source.images.shape[:1]
    assert source.labels.unique().tolist() == list(range(len(source.classes)))
    if source.test is not None:
        assert source.test.dtype == torch.int64
        assert set(source.test.tolist()) < set(range(len(source.images)))


# --- digits and glyphs


def test_digits_are_those_of_scikit_learn(read):
    source = read("digits")
    assert_consistent(source)
    bunch = load_digits()
    assert source.images.shape == (1797, 1, 8, 8) and source.test is None
    assert np.abs(source.images[:, 0].numpy() / 255 - bunch.images / 16).max() < 0.5 / 255 + 1e-9
    assert source.labels.tolist() == bunch.target.tolist()


def test_glyphs_are_balanced_distinct_and_seeded(read):
    first, again, other = (read("glyphs", seed=seed) for seed in (0, 0, 1))
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


# --- CIFAR-10 and CIFAR-100


class Python2(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, in which both data sets are published."""

    def save_bytes(self, value):
        self.write(b"T" + struct.pack("<i", len(value)) + value)  # BINSTRING
        self.memoize(value)

    dispatch = pickle._Pickler.dispatch | {bytes: save_bytes}


def put_cifar(monkeypatch, root, dataset, classes):
    """A small data set whose files are the published ones, as far as our reader and torchvision's can tell."""
    oracle, layout = {"cifar10": CIFAR10, "cifar100": CIFAR100}[dataset], catalog.CIFAR[dataset]
    generator = np.random.default_rng(0)
    root = root / layout.folder
    root.mkdir(parents=True)
    *batches, meta = layout.sums

    def put(name, value):
        with (root / name).open("wb") as file:
            Python2(file, protocol=2).dump(value)
        monkeypatch.setitem(layout.sums, name, hashlib.md5((root / name).read_bytes()).hexdigest())

    images, labels = [], []
    for name in batches:
        pixels, digits = generator.integers(0, 256, (20, 3072), dtype=np.uint8), generator.permutation(20) % classes
        put(name, {b"data": pixels, layout.labels: digits.tolist(), b"coarse_labels": [0] * 20})
        images.append(pixels.reshape(20, 3, 32, 32))
        labels += digits.tolist()
    put(meta, {layout.names: [b"class %d" % index for index in range(classes)]})

    monkeypatch.setattr(oracle, "train_list", [[name, layout.sums[name]] for name in batches[:-1]])
    monkeypatch.setattr(oracle, "test_list", [[batches[-1], layout.sums[batches[-1]]]])
    monkeypatch.setattr(oracle, "meta", oracle.meta | {"md5": layout.sums[meta]})
    return root, np.concatenate(images), labels


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    return put_cifar(monkeypatch, tmp_path / "data", "cifar10", 10)


@pytest.mark.parametrize("given", ["the folder", "its parent"])
def test_cifar10_is_read_from_its_folder_or_the_one_above(read, cifar, given):
    root, images, labels = cifar
    source = read("cifar10", root if given == "the folder" else root.parent)
    assert_consistent(source)
    assert np.array_equal(source.images.numpy(), images)
    assert source.labels.tolist() == labels
    assert source.test.tolist() == list(range(100, 120))
    assert source.classes[3] == "class 3"


@pytest.mark.parametrize("dataset, oracle, classes", [("cifar10", CIFAR10, 10), ("cifar100", CIFAR100, 20)])
def test_cifar_is_read_as_torchvision_reads_it(read, tmp_path, monkeypatch, dataset, oracle, classes):
    root, _, labels = put_cifar(monkeypatch, tmp_path, dataset, classes)
    source = read(dataset, root)
    assert_consistent(source)
    count = len(labels) - 20
    for training, indices in ((True, range(count)), (False, range(count, count + 20))):
        theirs = oracle(root.parent, train=training)
        assert np.array_equal(source.images[indices].permute(0, 2, 3, 1).numpy(), theirs.data)
        assert source.labels[indices].tolist() == theirs.targets
        assert source.classes == theirs.classes
    assert source.test.tolist() == list(range(count, count + 20))


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


@pytest.mark.parametrize("name", [*BATCHES, "batches.meta"])
def test_nothing_is_unpickled_while_any_file_is_not_the_published_one(read, cifar, tmp_path, monkeypatch, name):
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


@pytest.mark.parametrize("dataset, oracle", [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_the_published_sums_and_addresses_are_those_that_torchvision_knows(dataset, oracle):
    meta = [oracle.meta["filename"], oracle.meta["md5"]]
    assert [list(item) for item in catalog.CIFAR[dataset].sums.items()] == [*oracle.train_list, *oracle.test_list, meta]
    assert catalog.CIFAR[dataset].names.decode() == oracle.meta["key"]
    assert catalog.CIFAR[dataset].folder == oracle.base_folder
    assert download.ADDRESSES[dataset] == {oracle.base_folder: (oracle.url, oracle.tgz_md5)}


def test_the_sums_and_addresses_of_svhn_are_those_that_torchvision_knows():
    known = [SVHN.split_list[part] for part in ("train", "test")]
    assert {name: md5 for _, name, md5 in known} == catalog.SVHN
    assert {name: (url, md5) for url, name, md5 in known} == download.ADDRESSES["svhn"]


def test_a_missing_cifar10_file_is_named(read, cifar):
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


def test_a_folder_of_class_folders_is_read_pixel_by_pixel(read, tmp_path):
    put = put_classes(tmp_path)
    source = read("folder", tmp_path)
    assert_consistent(source)
    assert source.classes == ["ant", "bee", "cat"] and source.test is None
    assert source.images.shape == (9, 3, 10, 10)
    for position, ((name, _), pixels) in enumerate(put.items()):
        assert np.array_equal(source.images[position].permute(1, 2, 0).numpy(), pixels)
        assert source.classes[source.labels[position]] == name


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_train_and_test_folders_are_the_parts(read, tmp_path, test_name):
    put_classes(tmp_path / "train", count=4)
    put_classes(tmp_path / test_name, count=2)
    source = read("folder", tmp_path)
    assert_consistent(source)
    assert len(source.images) == 18
    assert source.test.tolist() == list(range(12, 18))
    assert source.labels[source.test].tolist() == [0, 0, 1, 1, 2, 2]


def test_a_train_folder_alone_has_no_test_part(read, tmp_path):
    put_classes(tmp_path / "train")
    source = read("folder", tmp_path)
    assert source.classes == ["ant", "bee", "cat"] and source.test is None


def test_a_class_may_be_named_train(read, tmp_path):
    put_classes(tmp_path, names=("bus", "train"))
    assert read("folder", tmp_path).classes == ["bus", "train"]


def test_jpeg_and_nested_files_count(read, tmp_path):
    put_classes(tmp_path)
    put_image(tmp_path / "ant" / "more" / "photo.JPEG")
    assert read("folder", tmp_path).labels.bincount().tolist() == [4, 3, 3]


@pytest.mark.parametrize("modes, channels", [(("L", "1", "LA"), 1), (("L", "RGB", "L"), 3), (("P", "RGBA", "CMYK"), 3)])
def test_grey_images_have_one_channel_and_mixtures_three(read, tmp_path, modes, channels):
    for name, mode in zip(("ant", "bee", "cat"), modes, strict=True):
        put_image(tmp_path / name / ("0.tif" if mode == "CMYK" else "0.png"), mode=mode)
    source = read("folder", tmp_path)
    assert source.images.shape == (3, channels, 10, 10)
    if channels == 3 and modes[0] == "L":
        assert torch.equal(source.images[0, 0], source.images[0, 2])


def test_mixed_sizes_need_image_size(read, tmp_path):
    put_classes(tmp_path)
    put_image(tmp_path / "bee" / "wide.png", size=(20, 12))
    with pytest.raises(
        InvalidInput, match=r"Another size than .* 10 x 10 pixels: .*wide\.png; .*set prepare\.image_size"
    ):
        read("folder", tmp_path)
    assert read("folder", tmp_path, image_size=9).images.shape == (10, 3, 9, 9)


def test_resizing_is_antialiased(read, tmp_path):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        Image.fromarray(stripes).save(tmp_path / name / "0.png")
    inner = read("folder", tmp_path, image_size=8).images[..., 1:-1].int()
    assert torch.all((inner - 127).abs() <= 8)  # one pixel in 64, taken without averaging, would be 0 or 255


@pytest.mark.parametrize("damage", ["text", "truncated", "empty"])
def test_damaged_files_are_named_all_at_once(read, tmp_path, damage):
    put_classes(tmp_path, count=6)
    for index in range(5):
        file = tmp_path / "bee" / f"{index}.png"
        data = file.read_bytes()
        file.write_bytes({"text": b"this is no image", "truncated": data[: len(data) // 2], "empty": b""}[damage])
    with pytest.raises(InvalidInput, match=r"bee/0\.png, .*bee/1\.png, .*bee/2\.png and 2 more"):
        read("folder", tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif"])
def test_any_damage_is_read_or_named_but_never_crashes(read, tmp_path, suffix):
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


def test_deep_images_are_refused_rather_than_clipped(read, tmp_path):
    put_classes(tmp_path)
    Image.fromarray(np.full((10, 10), 40_000, np.uint16)).save(tmp_path / "bee" / "deep.png")
    with pytest.raises(InvalidInput, match=r"More than 8 bits a channel: .*deep\.png"):
        read("folder", tmp_path)


def test_what_is_wrong_is_told_of_all_files_by_its_kind_and_any_may_be_left_out(read, tmp_path, capsys):
    put_classes(tmp_path, count=5)
    for name in ("ant/0.png", "ant/1.png", "bee/0.png", "bee/1.png", "bee/3.png"):
        put_image(tmp_path / name, size=(20, 12)) if "bee" in name else (tmp_path / name).write_text("no image")
    for name in ("cat/2.png", "cat/3.png"):
        Image.fromarray(np.full((10, 10), 40_000, np.uint16)).save(tmp_path / name)
    with pytest.raises(InvalidInput) as refused:
        read("folder", tmp_path, allow_damaged=6)
    told = str(refused.value).replace(f"{tmp_path}/", "")
    assert told == (
        "No readable image: ant/0.png, ant/1.png; another size than the first, which has 10 x 10 pixels: bee/0.png, "
        "bee/1.png, bee/3.png; more than 8 bits a channel: cat/2.png, cat/3.png; replace, convert or remove these "
        "files, set prepare.image_size to resize them, or set prepare.allow_damaged to 7 to leave them out."
    )
    names = ["ant/0.png", "ant/1.png", "bee/0.png", "bee/1.png", "bee/3.png", "cat/2.png", "cat/3.png"]
    said = capsys.readouterr().err
    assert all(f"{tmp_path / name}\n" in said for name in names)
    source = read("folder", tmp_path, allow_damaged=7)
    assert source.damaged == names and source.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]


def test_of_more_files_than_anybody_reads_the_rest_is_counted(read, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, "NAMED", 2)
    put_classes(tmp_path)
    for index in range(5):
        put_image(tmp_path / "cat" / f"wide-{index}.png", size=(20, 12))
    read("folder", tmp_path, allow_damaged=5)
    said = capsys.readouterr().err
    assert "wide-1.png" in said and "wide-2.png" not in said and "pixels: 3 more files\n" in said


def test_a_large_jpeg_looks_as_if_it_had_been_decoded_whole(read, tmp_path):
    put_classes(tmp_path, names=("ant", "bee"), size=(64, 64))
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((640, 480))
    for mode, name in (("RGB", "photo"), ("L", "grey")):
        image.convert(mode).save(tmp_path / "ant" / f"{name}.jpg")
        image.convert(mode).save(tmp_path / "bee" / f"{name}.jpg", progressive=True)
    first, second = (read("folder", tmp_path, image_size=24).images.int() for _ in range(2))
    assert torch.equal(first, second)
    for place, file in {3: "ant/grey.jpg", 4: "ant/photo.jpg", 8: "bee/grey.jpg", 9: "bee/photo.jpg"}.items():
        whole = np.array(Image.open(tmp_path / file).convert("RGB").resize((24, 24), Image.Resampling.BILINEAR))
        difference = (first[place] - torch.from_numpy(whole).permute(2, 0, 1)).abs().float()
        assert difference.mean() < 1.5 and difference.max() <= 12


def test_one_class_is_not_enough(read, tmp_path):
    put_classes(tmp_path, names=("ant",))
    with pytest.raises(InvalidInput, match="two class folders of images at least, but has 1"):
        read("folder", tmp_path)


def test_an_empty_class_folder_is_named(read, tmp_path):
    put_classes(tmp_path)
    (tmp_path / "dog").mkdir()
    with pytest.raises(InvalidInput, match="class folder dog holds no image"):
        read("folder", tmp_path)


def test_train_and_test_must_have_the_same_classes(read, tmp_path):
    put_classes(tmp_path / "train")
    put_classes(tmp_path / "test", names=("ant", "bee", "dog"))
    with pytest.raises(InvalidInput, match="must have the same class folders, but differ in cat, dog"):
        read("folder", tmp_path)


def test_a_test_folder_without_a_train_folder_is_refused(read, tmp_path):
    put_classes(tmp_path / "test")
    with pytest.raises(InvalidInput, match="has test/ but no train/"):
        read("folder", tmp_path)


def test_files_that_are_no_images_stop_the_run_and_hidden_ones_are_none_of_the_set(read, tmp_path):
    put_classes(tmp_path)
    (tmp_path / "ant" / ".DS_Store").write_text("hidden")
    (tmp_path / ".cache").mkdir()
    assert len(read("folder", tmp_path).labels) == 9
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    with pytest.raises(InvalidInput, match=r"No readable image: .*ant/notes\.txt"):
        read("folder", tmp_path)


def test_as_many_damaged_files_as_are_allowed_are_left_out_and_said(read, tmp_path, capsys):
    put = put_classes(tmp_path / "train", count=4) | put_classes(tmp_path / "test", count=2)
    for name in ("train/bee/1.png", "test/ant/0.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:60])
    with pytest.raises(InvalidInput, match=r"train/bee/1\.png, .*test/ant/0\.png; .* set prepare.allow_damaged to 2"):
        read("folder", tmp_path, allow_damaged=1)
    source = read("folder", tmp_path, allow_damaged=2)
    assert_consistent(source)
    assert source.damaged == ["train/bee/1.png", "test/ant/0.png"]
    assert source.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 0, 1, 1, 2, 2]
    assert source.test.tolist() == list(range(11, 16))
    assert np.array_equal(source.images[5].permute(1, 2, 0).numpy(), Image.open(tmp_path / "train" / "bee" / "2.png"))
    assert "bee/1.png" in (said := capsys.readouterr().err) and "2 damaged files are left out" in said
    assert len(put) == 12


def test_where_every_file_is_damaged_no_allowance_helps(read, tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_text("no image")
    with pytest.raises(InvalidInput, match="holds no readable image"):
        read("folder", tmp_path, allow_damaged=9)


def test_names_may_have_spaces_and_any_letters(read, tmp_path):
    names = ("a b", "Ünïcödé", "猫 と 犬")
    for place, name in enumerate(names):
        put_image(tmp_path / name / "photo № 1.jpg", mode="L" if place else "RGB")
    source = read("folder", tmp_path)
    assert source.classes == sorted(names) and source.images.shape == (3, 3, 10, 10)


def test_files_are_read_in_their_order_however_many_are_decoded_at_once(read, tmp_path, monkeypatch):
    put_classes(tmp_path, count=20)
    several = read("folder", tmp_path)
    monkeypatch.setattr(files, "THREADS", 1)
    monkeypatch.setattr("arnas.data.source.CHUNK", 700)  # two images
    assert torch.equal(read("folder", tmp_path).images, several.images)


# --- SVHN


def put_svhn(root):
    generator = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    for name, count in (("train_32x32.mat", 30), ("test_32x32.mat", 20)):
        pixels = generator.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        digits = (generator.permutation(count) % 10 + 1).astype(np.uint8)[:, None]
        savemat(root / name, {"X": pixels, "y": digits}, do_compression=True)


def test_svhn_is_read_as_torchvision_reads_it(read, tmp_path, monkeypatch, capsys):
    put_svhn(tmp_path)
    source = read("svhn", tmp_path)
    assert_consistent(source)
    assert "train_32x32.mat is not the published file; it is read as it is" in capsys.readouterr().err
    monkeypatch.setattr(SVHN, "_check_integrity", lambda self: True)
    for part, indices in (("train", range(30)), ("test", range(30, 50))):
        oracle = SVHN(tmp_path, split=part)
        assert np.array_equal(source.images[indices].numpy(), oracle.data)
        assert source.labels[indices].tolist() == oracle.labels.tolist()
    assert source.test.tolist() == list(range(30, 50)) and source.classes == list("0123456789")


@pytest.mark.parametrize("damage", ["text", "truncated", "other variables", "other labels", "other shape"])
def test_a_damaged_svhn_file_is_named(read, tmp_path, damage):
    put_svhn(tmp_path)
    file = tmp_path / "test_32x32.mat"
    images = np.zeros((32, 32, 3, 5), np.uint8)
    if damage == "text":
        file.write_text("this is no .mat file, but quite long enough to be taken for one" * 9)
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:5000])
    elif damage == "other variables":
        savemat(file, {"X": images})
    else:
        labels = np.full((5, 1), 11 if damage == "other labels" else 1)
        savemat(file, {"X": images if damage == "other labels" else images[:, :, :2], "y": labels})
    with pytest.raises(InvalidInput, match=r"test_32x32\.mat is damaged or no file of SVHN"):
        read("svhn", tmp_path)


# --- Tiny-ImageNet


def put_tiny(root, ids=("n02", "n01", "n03"), count=3):
    """The official layout, with the ids in no order; returns the pixels by file name."""
    pixels = {}
    for place, name in enumerate(ids):
        (root / "train" / name).mkdir(parents=True)
        (root / "train" / name / f"{name}_boxes.txt").write_text("no image")
        for index in range(count):
            file = root / "train" / name / "images" / f"{name}_{index}.JPEG"
            put_image(file, size=(64, 64), mode="L" if index == 1 else "RGB", seed=10 * place + index)
            pixels[file.name] = np.asarray(Image.open(file).convert("RGB"))
    for index in range(6):
        file = root / "val" / "images" / f"val_{index}.JPEG"
        put_image(file, size=(64, 64), seed=100 + index)
        pixels[file.name] = np.asarray(Image.open(file))
    lines = [f"val_{index}.JPEG\t{ids[index % 3]}\t0\t0\t62\t62\n" for index in range(6)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("".join(f"{name}\n" for name in ids))
    (root / "words.txt").write_text("n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\ttoad\n")
    return pixels


@pytest.mark.parametrize("given", ["the folder", "its parent"])
def test_tiny_imagenet_is_read_in_its_published_layout(read, tmp_path, given):
    root = tmp_path / "tiny-imagenet-200"
    pixels = put_tiny(root)
    source = read("tiny-imagenet", root if given == "the folder" else tmp_path)
    assert_consistent(source)
    assert source.classes == ["goldfish", "toad", "n03"]
    assert source.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [1, 0, 2, 1, 0, 2]
    assert source.test.tolist() == list(range(9, 15))
    names = [f"{name}_{index}.JPEG" for name in ("n01", "n02", "n03") for index in range(3)]
    for image, name in zip(source.images, [*names, *(f"val_{index}.JPEG" for index in range(6))], strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels[name])


def test_images_of_val_without_a_class_are_left_out_and_said(read, tmp_path, capsys):
    put_tiny(tmp_path)
    annotations = tmp_path / "val" / "val_annotations.txt"
    lines = annotations.read_text().splitlines()
    annotations.write_text("\n".join([*lines[:4], lines[4].replace("n01", "n99")]))
    assert read("tiny-imagenet", tmp_path).labels[9:].tolist() == [1, 0, 2, 1]
    assert "2 images of val are left out" in capsys.readouterr().err


def test_an_image_of_val_that_is_listed_and_not_there_is_damage(read, tmp_path):
    put_tiny(tmp_path)
    (tmp_path / "val" / "images" / "val_2.JPEG").unlink()
    with pytest.raises(InvalidInput, match=r"No readable image: .*val_2\.JPEG"):
        read("tiny-imagenet", tmp_path)
    assert read("tiny-imagenet", tmp_path, allow_damaged=1).damaged == ["val/images/val_2.JPEG"]


@pytest.mark.parametrize("missing", ["wnids.txt", "words.txt", "val/val_annotations.txt", "train/n03/images"])
def test_what_is_missing_of_tiny_imagenet_is_named(read, tmp_path, missing):
    put_tiny(tmp_path)
    (tmp_path / missing).rename(tmp_path / "away")
    with pytest.raises(InvalidInput, match=f"{missing} cannot be read .*data set tiny-imagenet as it is published"):
        read("tiny-imagenet", tmp_path)


def test_a_damaged_list_of_tiny_imagenet_is_named(read, tmp_path):
    put_tiny(tmp_path)
    (tmp_path / "words.txt").write_text("n01 goldfish\n")
    with pytest.raises(InvalidInput, match=r"words\.txt is damaged: it has a line 'n01 goldfish'"):
        read("tiny-imagenet", tmp_path)


# --- all


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "svhn", "tiny-imagenet", "folder"])
def test_a_path_is_needed_and_must_be_a_folder(read, tmp_path, dataset):
    with pytest.raises(InvalidInput, match=f"dataset {dataset} needs path"):
        read(dataset)
    with pytest.raises(InvalidInput, match=r"nowhere is no folder"):
        read(dataset, tmp_path / "nowhere")
