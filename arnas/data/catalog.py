"""The data sets that can be prepared: digits, glyphs, CIFAR-10, and folders of images."""

import hashlib
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision.datasets import CIFAR10, ImageFolder

from arnas import runtime
from arnas.config import Prepare
from arnas.errors import InvalidInput


@dataclass(frozen=True)
class Source:
    """A data set as read.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N], in [0, number of classes).
        classes: Names of the classes.
        test: Indices, int64, of the images that the data set itself keeps for testing; None where it keeps none.
    """

    images: Tensor
    labels: Tensor
    classes: list[str]
    test: Tensor | None = None


def read(settings: Prepare) -> Source:
    """Read the data set that the settings name; only `folder` resizes, while it reads.

    Raises:
        InvalidInput: The data set needs a path and has none, or what lies there cannot be used.
    """
    if settings.dataset == "digits":
        return digits()
    if settings.dataset == "glyphs":
        return glyphs(settings.seed)
    if settings.path is None:
        raise InvalidInput(f"prepare: dataset {settings.dataset} needs path, the folder where it lies.")
    path = Path(settings.path).expanduser()
    if not path.is_dir():
        raise InvalidInput(
            f"prepare: path {path} is no folder; give the folder where data set {settings.dataset} lies."
        )
    return cifar10(path) if settings.dataset == "cifar10" else folder(path, settings.image_size)


def digits() -> Source:
    """The handwritten digits of scikit-learn (UCI, Alpaydin and Kaynak 1998): 1797 grey images of 8 x 8 pixels."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images[:, None] * (255 / 16)).round().to(torch.uint8)  # 16 is full ink
    return Source(images, torch.from_numpy(bunch.target).long(), [str(name) for name in bunch.target_names])


GLYPHS = "ABCDEFGHIJ"
TRAINING_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmtt10"),
)
TEST_FONTS = ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic")


def glyphs(seed: int, variants: int = 6) -> Source:
    """The letters A to J in fonts that come with matplotlib, 16 x 16 grey, each a little moved, turned and scaled.

    The test part is drawn in a family of fonts that the training part does not have.

    Args:
        seed: Seed of the movements.
        variants: Images of each letter in each font.
    """
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    drawn = [
        (font, label)
        for font in (*TRAINING_FONTS, *TEST_FONTS)
        for label in range(len(GLYPHS))
        for _ in range(variants)
    ]
    runtime.seed(seed, "glyphs")
    changes = torch.rand(len(drawn), 4).tolist()
    images = np.stack(
        [
            _glyph(fonts / f"{font}.ttf", GLYPHS[label], *change)
            for (font, label), change in zip(drawn, changes, strict=True)
        ]
    )
    return Source(
        images=torch.from_numpy(images)[:, None],
        labels=torch.tensor([label for _, label in drawn]),
        classes=list(GLYPHS),
        test=torch.tensor([index for index, (font, _) in enumerate(drawn) if font in TEST_FONTS]),
    )


def cifar10(path: Path) -> Source:
    """CIFAR-10 (Krizhevsky 2009) in its original Python layout: 50 000 + 10 000 images, RGB, 32 x 32.

    Its files are pickles, which can run anything: all are compared with their published MD5 before the first is loaded.

    Args:
        path: The folder cifar-10-batches-py, or the one that holds it.

    Raises:
        InvalidInput: A file is missing or is not the published one.
    """
    if (path / CIFAR10.base_folder).is_dir():
        path = path / CIFAR10.base_folder
    batches = [*CIFAR10.train_list, *CIFAR10.test_list]
    # the bytes that were checked are the ones that are unpickled: nobody can change the file in between
    data = [_published(path / name, md5) for name, md5 in [*batches, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]]
    classes = pickle.loads(data.pop(), encoding="latin1")[CIFAR10.meta["key"]]

    images, labels, sizes = [], [], []
    while data:
        batch = pickle.loads(data.pop(0), encoding="latin1")
        images.append(torch.from_numpy(batch["data"]).view(-1, 3, 32, 32))
        labels.append(torch.tensor(batch["labels"]))
        sizes.append(len(images[-1]))
    count = sum(sizes)
    return Source(torch.cat(images), torch.cat(labels), classes, torch.arange(count - sizes[-1], count))


def folder(path: Path, image_size: int | None = None) -> Source:
    """Images in class folders, or in train/ and test/ (or val/) with class folders each; PNG, JPEG and other formats.

    All grey: one channel; otherwise three.

    Args:
        path: The folder.
        image_size: Side in pixels that every image is resized to; None where all have the same size.

    Raises:
        InvalidInput: Class folders are missing, empty or different in train/ and test/, or a file is damaged or of
            another size.
    """
    parts = [_class_folders(part) for part in _parts(path)]
    classes = parts[0].classes
    for part in parts[1:]:
        if odd := sorted(set(classes) ^ set(part.classes)):
            raise InvalidInput(
                f"{part.root} and {parts[0].root} must have the same class folders, but differ in {_some(odd)}."
            )
    files, labels = zip(*(sample for part in parts for sample in part.samples), strict=True)

    headers: list[tuple[str, tuple[int, int]]] = []
    _visit(files, lambda index, image: headers.append((image.mode, image.size)), "file")
    modes, sizes = zip(*headers, strict=True)
    if deep := [file for file, mode in zip(files, modes, strict=True) if mode[0] in "IF"]:
        raise InvalidInput(f"Images must have 8 bits a channel, but {_some(deep)} has more; convert it.")
    if image_size is None and len(set(sizes)) > 1:
        other = next(index for index, size in enumerate(sizes) if size != sizes[0])
        example = " and ".join(f"{files[index]} {sizes[index][0]} x {sizes[index][1]}" for index in (0, other))
        raise InvalidInput(f"Images in {path} differ in size ({example}); set prepare.image_size to resize them.")

    grey = all(mode in ("1", "L", "LA") for mode in modes)
    width, height = (image_size, image_size) if image_size else sizes[0]
    pixels = np.empty((len(files), height, width, 1 if grey else 3), np.uint8)

    def decode(index: int, image: Image.Image) -> None:
        image = image.convert("L" if grey else "RGB")
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)  # antialiased, in Pillow
        pixels[index] = np.asarray(image).reshape(pixels.shape[1:])

    _visit(files, decode, "image")
    return Source(
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        labels=torch.tensor(labels),
        classes=classes,
        test=torch.arange(len(parts[0].samples), len(files)) if len(parts) > 1 else None,
    )


def _glyph(font: Path, letter: str, turn: float, scale: float, right: float, down: float) -> np.ndarray:
    """One letter, white on black, uint8 [16, 16]; the four changes are in [0, 1), 0.5 being none."""
    side = 64  # drawn large, then reduced
    image = Image.new("L", (side, side))
    face = ImageFont.truetype(str(font), round(side * (0.75 + 0.3 * scale)), layout_engine=ImageFont.Layout.BASIC)
    box = face.getbbox(letter)
    corner = ((side - box[0] - box[2]) / 2 + 12 * (right - 0.5), (side - box[1] - box[3]) / 2 + 12 * (down - 0.5))
    ImageDraw.Draw(image).text(corner, letter, fill=255, font=face)
    return np.asarray(image.rotate(30 * (turn - 0.5), Image.Resampling.BICUBIC).reduce(side // 16))


def _published(file: Path, md5: str) -> bytes:
    """The bytes of a file that has a published MD5."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InvalidInput(
            f"{file} cannot be read ({error.strerror}); give the cifar-10-batches-py folder of the Python version."
        ) from None
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != md5:
        raise InvalidInput(f"{file} is damaged: its MD5 is {found}, the published one {md5}; unpack the archive again.")
    return data


def _parts(path: Path) -> list[Path]:
    """train/ and test/ (or val/) where they hold class folders, otherwise the folder itself."""
    train, *tests = [
        path / name for name in ("train", "test", "val") if (path / name).is_dir() and _has_folders(path / name)
    ] or [path]
    if train.name in ("test", "val") and train != path:
        raise InvalidInput(f"{path} has {train.name}/ but no train/ with class folders.")
    return [train, *tests[:1]]


def _has_folders(path: Path) -> bool:
    return any(entry.is_dir() for entry in path.iterdir())


def _class_folders(path: Path) -> ImageFolder:
    names = [entry.name for entry in path.iterdir() if entry.is_dir()]
    if len(names) < 2:
        raise InvalidInput(f"{path} needs two class folders of images at least, but has {len(names)}.")
    part = ImageFolder(path, allow_empty=True)
    full = {label for _, label in part.samples}
    if empty := [name for label, name in enumerate(part.classes) if label not in full]:
        raise InvalidInput(f"{path}: class folder {_some(empty)} holds no image; fill it or remove it.")
    return part


def _visit(files: Iterable[str], visit: Callable[[int, Image.Image], None], unit: str) -> None:
    """Open every image; those that are damaged are named together at the end."""
    files = list(files)
    damaged = []
    progress = runtime.Progress("prepare", len(files), unit=unit)
    for index, file in enumerate(files):
        try:
            with Image.open(file) as image:
                visit(index, image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            damaged.append(file)
        progress.advance()
    progress.close()
    if damaged:
        raise InvalidInput(f"No readable image: {_some(damaged)}; replace or remove it.")


def _some(names: list[str]) -> str:
    """The first three of some names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
