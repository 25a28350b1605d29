"""The data sets that can be prepared, each in the layout in which it is published."""

import hashlib
import pickle
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from arnas import runtime
from arnas.config import Prepare
from arnas.data import download, files
from arnas.data.source import Rows, Source
from arnas.errors import InvalidInput

# Libraries that one data set needs are imported where it is read: scikit-learn takes 110 MiB of memory.


def read(settings: Prepare, rows: Rows) -> Source:
    """Read the data set that the settings name; image files are resized while they are read, and no others.

    Args:
        settings: Data set, path, size.
        rows: Empty; takes the images.

    Raises:
        InvalidInput: The data set needs a path and has none, or what lies there cannot be used.
    """
    if settings.dataset == "digits":
        return digits(rows)
    if settings.dataset == "glyphs":
        return glyphs(rows, settings.seed)
    if settings.path is None:
        raise InvalidInput(f"prepare: dataset {settings.dataset} needs path, the folder where it lies.")
    path = Path(settings.path).expanduser()
    if settings.download:
        download.fetch(settings.dataset, path)
    if not path.is_dir():
        raise InvalidInput(
            f"prepare: path {path} is no folder; give the folder where data set {settings.dataset} lies."
        )
    try:
        if settings.dataset in CIFAR:
            return cifar(rows, path, CIFAR[settings.dataset])
        if settings.dataset == "svhn":
            return svhn(rows, path)
        listed = files.tiny_imagenet(path) if settings.dataset == "tiny-imagenet" else files.folder(path)
        return files.decode(rows, listed, settings.image_size, settings.allow_damaged)
    except OSError as error:
        raise InvalidInput(
            f"{error.filename or path} cannot be read ({error.strerror}); give the folder of data set "
            f"{settings.dataset} as it is published."
        ) from None


def digits(rows: Rows) -> Source:
    """The handwritten digits of scikit-learn (UCI, Alpaydin and Kaynak 1998): 1797 grey images of 8 x 8 pixels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    rows.append((bunch.images[:, None] * (255 / 16)).round().astype(np.uint8))  # 16 is full ink
    return Source(rows, torch.from_numpy(bunch.target).long(), [str(name) for name in bunch.target_names])


GLYPHS = "ABCDEFGHIJ"
TRAINING_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmtt10"),
)
TEST_FONTS = ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic")


def glyphs(rows: Rows, seed: int, variants: int = 6) -> Source:
    """The letters A to J in fonts that come with matplotlib, 16 x 16 grey, each a little moved, turned and scaled.

    The test part is drawn in a family of fonts that the training part does not have.

    Args:
        rows: Takes the images.
        seed: Seed of the movements.
        variants: Images of each letter in each font.
    """
    import matplotlib

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
    rows.append(images[:, None])
    return Source(
        images=rows,
        labels=torch.tensor([label for _, label in drawn]),
        classes=list(GLYPHS),
        test=torch.tensor([index for index, (font, _) in enumerate(drawn) if font in TEST_FONTS]),
    )


@dataclass(frozen=True)
class Cifar:
    """Layout of CIFAR-10 or CIFAR-100.

    Attributes:
        folder: What the archive unpacks to.
        sums: MD5 of its files as published, by name: those for training, the one for testing, that of the names.
        labels: Key of the labels in a file of images.
        names: Key of the classes' names in the last file.
    """

    folder: str
    sums: dict[str, str]
    labels: bytes
    names: bytes


CIFAR = {
    "cifar10": Cifar(
        "cifar-10-batches-py",
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
        b"labels",
        b"label_names",
    ),
    "cifar100": Cifar(
        "cifar-100-python",
        {
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
        b"fine_labels",
        b"fine_label_names",
    ),
}


def cifar(rows: Rows, path: Path, layout: Cifar) -> Source:
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009) in the original Python layout: 50 000 + 10 000 images, RGB, 32 x 32.

    Its files are pickles, which can run anything: all are compared with their published MD5 before the first is loaded.

    Args:
        rows: Takes the images.
        path: The folder cifar-10-batches-py or cifar-100-python, or the one that holds it.
        layout: Which of the two.

    Raises:
        InvalidInput: A file is missing or is not the published one.
    """
    if (path / layout.folder).is_dir():
        path = path / layout.folder
    for name in layout.sums:
        _published(path, name, layout)
    *batches, names = layout.sums
    labels: list[int] = []
    progress = runtime.Progress("prepare", len(batches), unit="file")
    for name in batches:
        begin = len(labels)
        # the bytes that were compared are the ones that are unpickled: nobody can change the file in between; and as
        # bytes numpy leaves the pixels where they are, where it would copy them from a string
        batch = pickle.loads(_published(path, name, layout), encoding="bytes")
        rows.append(batch[b"data"].reshape(-1, 3, 32, 32))
        labels += batch[layout.labels]
        del batch
        progress.advance()
    progress.close()
    classes = pickle.loads(_published(path, names, layout), encoding="bytes")[layout.names]
    return Source(rows, torch.tensor(labels), [name.decode() for name in classes], torch.arange(begin, len(labels)))


#: SVHN's files for training and testing, with their published MD5
SVHN = {"train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373", "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3"}


def svhn(rows: Rows, path: Path) -> Source:
    """SVHN (Netzer et al. 2011), cropped digits: 73 257 + 26 032 images, RGB, 32 x 32, where label 10 is the digit 0.

    Files other than the published ones are read too, since a .mat file holds no code, and that is said. A file's images
    are in memory as a whole, 225 MB of train; extra_32x32.mat, which has 1.6 GB of them, is not read.

    Args:
        rows: Takes the images.
        path: The folder with train_32x32.mat and test_32x32.mat.

    Raises:
        InvalidInput: A file is missing or holds something else.
    """
    labels: list[Tensor] = []
    progress = runtime.Progress("prepare", len(SVHN), unit="file")
    for name, md5 in SVHN.items():
        with (path / name).open("rb") as file:
            found = hashlib.file_digest(file, _MD5).hexdigest()
        if found != md5:
            runtime.say("prepare", f"{path / name} is not the published file; it is read as it is.")
        images, digits = _mat(path / name)
        rows.append(images.transpose(3, 2, 0, 1))
        labels.append(torch.from_numpy(digits % 10))
        del images
        progress.advance()
    progress.close()
    training, test = map(len, labels)
    return Source(rows, torch.cat(labels), [str(digit) for digit in range(10)], torch.arange(training, training + test))


def _glyph(font: Path, letter: str, turn: float, scale: float, right: float, down: float) -> np.ndarray:
    """One letter, white on black, uint8 [16, 16]; the four changes are in [0, 1), 0.5 being none."""
    side = 64  # drawn large, then reduced
    image = Image.new("L", (side, side))
    face = ImageFont.truetype(str(font), round(side * (0.75 + 0.3 * scale)), layout_engine=ImageFont.Layout.BASIC)
    box = face.getbbox(letter)
    corner = ((side - box[0] - box[2]) / 2 + 12 * (right - 0.5), (side - box[1] - box[3]) / 2 + 12 * (down - 0.5))
    ImageDraw.Draw(image).text(corner, letter, fill=255, font=face)
    return np.asarray(image.rotate(30 * (turn - 0.5), Image.Resampling.BICUBIC).reduce(side // 16))


_MD5 = partial(hashlib.md5, usedforsecurity=False)


def _published(path: Path, name: str, layout: Cifar) -> bytes:
    """The bytes of a file that has a published MD5."""
    data = (path / name).read_bytes()
    found, md5 = _MD5(data).hexdigest(), layout.sums[name]
    if found != md5:
        raise InvalidInput(
            f"{path / name} is damaged: its MD5 is {found}, the published one {md5}; unpack the archive again."
        )
    return data


def _mat(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [H, W, 3, n] and labels int64 [n], in 1 to 10, of a .mat file of SVHN."""
    from scipy.io import loadmat

    try:
        content = loadmat(file, variable_names=["X", "y"])
        images, labels = content["X"], content["y"].astype(np.int64).ravel()
        fits = images.dtype == np.uint8 and images.ndim == 4 and images.shape[2:] == (3, len(labels))
        if not (fits and labels.min() >= 1 and labels.max() <= 10):
            raise ValueError("X is to be uint8 [H, W, 3, n], and y [n] in 1 to 10")
    except Exception as error:  # a damaged file fails in any way
        raise InvalidInput(f"{file} is damaged or no file of SVHN ({error}); fetch it again.") from None
    return images, labels
