"""The container image: its name stands here and nowhere else. The tag is the version, and a version never changes."""

import re

from arnas import __version__
from arnas.errors import InvalidInput

IMAGE = f"arnas:{__version__}"


def require_immutable(image: str) -> str:
    """Refuse an image whose content may change under its name: KFP's cache keys on the name, and so do retried pods.

    Raises:
        InvalidInput: It has neither a tag nor a digest, or its tag is `latest`, or it is no image's name.
    """
    match = re.fullmatch(
        r"(?:[\w.-]+(?::\d+)?/)?[a-z0-9._/-]+?(?::(?P<tag>\w[\w.-]{0,127}))?(?P<digest>@sha256:[0-9a-f]{64})?", image
    )
    if not match or not (match["digest"] or (match["tag"] and match["tag"] != "latest")):
        raise InvalidInput(
            f"image {image!r} does not say which content it means; give one with a version tag or a digest, such as "
            f"registry.example.org/{IMAGE}."
        )
    return image
