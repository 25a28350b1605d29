"""Fetch the published archives of data sets."""

import subprocess
import sys
from pathlib import Path

from arnas import artifacts, runtime
from arnas.errors import InvalidInput

_CIFAR = "https://www.cs.toronto.edu/~kriz"
_SVHN = "http://ufldl.stanford.edu/housenumbers"

#: Address and MD5, as published, of what each file or folder comes from
ADDRESSES = {
    "cifar10": {"cifar-10-batches-py": (f"{_CIFAR}/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a")},
    "cifar100": {"cifar-100-python": (f"{_CIFAR}/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85")},
    "svhn": {
        "train_32x32.mat": (f"{_SVHN}/train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
        "test_32x32.mat": (f"{_SVHN}/test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
    },
    "tiny-imagenet": {
        "tiny-imagenet-200": (
            "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
            "90528d7ca1a48142e341f4ef8d21d0de",
        )
    },
}

# torchvision takes 150 MiB of memory, and has no timeout: it works in a process of its own
_FETCH = """
import socket, sys
from torchvision.datasets.utils import download_and_extract_archive, download_url
socket.setdefaulttimeout(30)
url, folder, md5 = sys.argv[1:]
try:
    (download_url if url.endswith(".mat") else download_and_extract_archive)(url, folder, md5=md5)
except Exception as error:
    sys.exit(print(getattr(error, "reason", error)) or 1)
"""


def fetch(dataset: str, path: Path) -> None:
    """Download what is missing of a data set into a folder, by torchvision; each part appears there at once, or never.

    Args:
        dataset: cifar10, cifar100, svhn or tiny-imagenet.
        path: The folder; or what the archive unpacks to, where that is there already.

    Raises:
        InvalidInput: There is no network, what came is not the published archive, or the folder cannot be written.
    """
    for name, (url, md5) in ADDRESSES[dataset].items():
        if (path / name).exists() or (path.name == name and path.is_dir()):
            continue
        runtime.say("prepare", f"downloading {url}")
        with artifacts.publish(path / name) as scratch:
            command = [sys.executable, "-c", _FETCH, url, str(scratch.parent), md5]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode or not scratch.exists():
                reason = (done.stdout.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
                raise InvalidInput(
                    f"Data set {dataset} cannot be downloaded from {url} ({reason}); fetch it where there is a "
                    "network, and say by path where it lies."
                )
