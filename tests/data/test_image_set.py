import json
import os
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn import functional

from arnas import artifacts, config, runtime
from arnas.data import image_set
from arnas.data.image_set import augment
from arnas.errors import InvalidInput
from arnas.stages import prepare


def random_images(count=64, channels=3, height=9, width=7):
    return torch.randint(
        1, 256, (count, channels, height, width), dtype=torch.uint8
    )  # no zeros: those are ours to find


def windows(image, padding):
    """Every window of the padded image, by its upper left corner."""
    height, width = image.shape[1:]
    padded = functional.pad(image, [padding] * 4)
    return {
        (row, column): padded[:, row : row + height, column : column + width]
        for row in range(2 * padding + 1)
        for column in range(2 * padding + 1)
    }


def test_without_changes_images_are_scaled_to_0_1():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(augment(images), torch.arange(256).reshape(1, 1, 16, 16) / 255)


@settings(max_examples=20, deadline=None)
@given(padding=st.integers(1, 4), channels=st.sampled_from([1, 3]), seed=st.integers(0, 2**32))
def test_a_crop_is_a_window_of_the_padded_image(padding, channels, seed):
    torch.manual_seed(seed)
    images = random_images(8, channels)
    for image, changed in zip(images, augment(images, crop_padding=padding), strict=True):
        assert any(torch.equal(changed, window / 255) for window in windows(image, padding).values())


def test_every_window_is_drawn_about_equally_often():
    torch.manual_seed(0)
    image = random_images(1)
    corners = windows(image[0], 1)
    changed = augment(image.expand(1800, -1, -1, -1), crop_padding=1)
    counts = [sum(torch.equal(one, window / 255) for one in changed) for window in corners.values()]
    assert sum(counts) == 1800
    assert min(counts) > 140 and max(counts) < 260  # 200 expected, standard deviation 13


def test_a_flip_is_the_mirror_image_and_hits_about_half():
    torch.manual_seed(0)
    images = random_images(1000)
    pixels = images / 255
    changed = augment(images, flip=True)
    kept = (changed == pixels).flatten(1).all(1)
    mirrored = (changed == pixels.flip(3)).flatten(1).all(1)
    assert torch.all(kept ^ mirrored)
    assert 420 < mirrored.sum() < 580  # 500 expected, standard deviation 16


def test_crop_and_flip_together_give_a_window_or_its_mirror():
    torch.manual_seed(0)
    images = random_images(40)
    for image, changed in zip(images, augment(images, crop_padding=2, flip=True), strict=True):
        candidates = [window / 255 for window in windows(image, 2).values()]
        assert any(torch.equal(changed, one) or torch.equal(changed, one.flip(2)) for one in candidates)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 20])
def test_cutout_blanks_a_square_around_any_pixel_and_nothing_else(side):
    torch.manual_seed(0)
    images = random_images(2000)
    changed = augment(images, cutout=side)
    blank = (changed == 0).all(1)
    assert torch.equal(changed, torch.where(blank[:, None], 0.0, images / 255))

    rows, columns = blank.any(2), blank.any(1)
    assert torch.equal(blank, rows[:, :, None] & columns[:, None, :])  # a rectangle, if both are intervals
    for hit in (rows, columns):
        assert torch.all(hit.sum(1) >= 1) and torch.all(hit.sum(1) <= side)
        assert torch.all((hit[:, 1:] & ~hit[:, :-1]).sum(1) + hit[:, 0] == 1)
    assert blank.sum((1, 2)).max() == min(side, 9) * min(side, 7)  # a whole square occurs
    assert torch.all(blank.float().mean(0) > 0)  # every pixel is blanked now and then


def test_pixels_stay_in_0_1_and_images_change_each_for_itself():
    torch.manual_seed(0)
    images = random_images(1).expand(50, -1, -1, -1)
    changed = augment(images, crop_padding=4, flip=True, cutout=3)
    assert changed.shape == images.shape and changed.dtype == torch.float32
    assert changed.min() >= 0 and changed.max() <= 1
    assert len({one.numpy().tobytes() for one in changed}) > 25


def test_the_global_generator_decides():
    images = random_images()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(augment(images, crop_padding=4, flip=True, cutout=3))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_loaded_set_gives_batches_by_index(tmp_path):
    report = prepare.run(tmp_path / "set", config.Prepare(dataset="digits"))
    images = image_set.load(tmp_path / "set")
    assert images.digest == report["digest"]
    assert images.shape == (1, 8, 8)
    assert images.classes == [str(digit) for digit in range(10)]
    assert set(images.splits) == {"weights", "architecture", "holdout", "test"}

    indices = images.splits["test"][:5]
    pixels, labels = images.batch(indices)
    assert pixels.dtype == torch.float32 and pixels.shape == (5, 1, 8, 8)
    assert torch.equal((pixels * 255).round().to(torch.uint8), images.images[indices])
    assert torch.equal(labels, images.labels[indices])


def test_a_damaged_set_is_refused(tmp_path):
    prepare.run(tmp_path / "set", config.Prepare(dataset="digits"))
    file = tmp_path / "set" / "images.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(InvalidInput, match=r"images\.safetensors is missing or damaged"):
        image_set.load(tmp_path / "set")


@pytest.fixture
def streamed(noise, monkeypatch):
    """An image set whose images stay in their file."""
    monkeypatch.setattr(image_set, "RESIDENT_SHARE", 0.0)
    return image_set.load(noise)


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("images")]


@pytest.mark.parametrize("rows", [(), (2,)])
@pytest.mark.parametrize(("count", "size"), [(40, 10), (41, 10), (3, 10), (1, 1), (0, 5)])
def test_a_streamed_set_gives_the_batches_of_a_resident_one(streamed, noise, monkeypatch, rows, count, size):
    monkeypatch.undo()
    resident = image_set.load(noise)
    assert resident.file is None and streamed.file is not None
    order = torch.randint(90, (*rows, count))
    found, expected = ([*images.batches(order, size)] for images in (streamed, resident))
    assert len(found) == len(expected) == -(-count // size)
    for (images, labels), (same_images, same_labels) in zip(found, expected, strict=True):
        assert torch.equal(images, same_images) and torch.equal(labels, same_labels)
    assert all(map(torch.equal, streamed.batch(order.flatten()), resident.batch(order.flatten())))
    assert not readers()


def test_the_next_batch_is_read_while_one_is_used(streamed, monkeypatch):
    select, read = torch.index_select, [threading.Event() for _ in range(4)]
    waiting = iter(read)

    def select_and_tell(*arguments, **options):
        found = select(*arguments, **options)
        assert threading.current_thread() is not threading.main_thread()
        next(waiting).set()
        return found

    monkeypatch.setattr(torch, "index_select", select_and_tell)
    for number, (images, _) in enumerate(streamed.batches(torch.arange(40), 10)):
        assert number == 3 or read[number + 1].wait(30)
        assert torch.equal(images, streamed.images[10 * number : 10 * number + 10])  # what comes does not overwrite it


def test_what_fails_in_the_background_is_one_sentence_where_the_batch_is_used(streamed, monkeypatch):
    select, reads = torch.index_select, iter([None, OSError("Input/output error")])

    def select_or_fail(*arguments, **options):
        if error := next(reads):
            raise error
        return select(*arguments, **options)

    monkeypatch.setattr(torch, "index_select", select_or_fail)
    used = 0
    with pytest.raises(InvalidInput, match=r"images\.safetensors cannot be read any more \(Input/output error\)"):
        for _ in streamed.batches(torch.arange(40), 10):
            used += 1
    assert used == 1 and not readers()


def test_a_loop_that_is_left_leaves_no_thread(streamed):
    for _ in streamed.batches(torch.arange(40), 10):
        assert readers()
        break
    assert not readers()
    try:
        for _ in streamed.batches(torch.arange(40), 10):
            raise KeyError
    except KeyError as error:
        assert error.__traceback__ and not readers()  # although the frames of the loop still live


def test_images_are_resident_where_they_take_a_quarter_of_the_free_memory_at_most(noise, monkeypatch):
    size = (noise / "images.safetensors").stat().st_size
    for free, resident in ((4 * size, True), (4 * size - 1, False)):
        monkeypatch.setattr(runtime, "free_memory", lambda device, free=free: free)
        assert (image_set.load(noise).file is None) is resident


MEMORY = """
import sys, torch
from arnas.data import image_set

def megabytes():  # of memory that the system cannot take back, as it can what is mapped and only read
    return next(int(line.split()[1]) // 1000 for line in open("/proc/self/status") if line.startswith("RssAnon"))

torch.set_num_threads(1)
image_set.RESIDENT_SHARE, before = 0, megabytes()
images = image_set.load(sys.argv[1])
peak = max(megabytes() for _ in images.batches(torch.randperm(len(images.images)), 20))
print(peak - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is told by Linux alone")
def test_a_set_of_300_mb_is_streamed_in_a_fifth_of_that_memory(tmp_path):
    count, shape = 2000, [3, 224, 224]
    with artifacts.publish(tmp_path / "set") as folder:
        folder.mkdir()
        tensors = {"images": torch.zeros(count, *shape, dtype=torch.uint8), "labels": torch.zeros(count).long()}
        tensors |= dict(zip(image_set.SPLITS, torch.arange(count).split(count // 4), strict=True))
        save_file(tensors, folder / "images.safetensors")
        artifacts.write(folder, "image_set", {"classes": ["a"], "shape": shape}, {})
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "set")]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert int(told) < 60


@pytest.mark.skipif(sys.platform != "linux", reason="files with holes and the size of memory are Linux's here")
def test_a_file_longer_than_all_memory_is_mapped(tmp_path):
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    count, offset, header = 2 * memory // 64, 0, {}
    for name, dtype, shape, size in (
        ("images", "U8", [count, 1, 8, 8], 64 * count),
        *((name, "I64", [2], 16) for name in ("labels", *image_set.SPLITS)),
    ):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset := offset + size]}
    text = json.dumps(header).encode()
    with (tmp_path / "file").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)  # the rest is a hole
    tensors = image_set._mapped(tmp_path / "file")
    assert tensors["images"].shape == (count, 1, 8, 8) and tensors["labels"].tolist() == [0, 0]
    assert not tensors["images"][torch.tensor([count - 1])].any()
