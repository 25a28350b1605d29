"""Progress while Triton compiles kernels, at the first steps on a GPU: up to a minute would pass in silence."""

import time
from typing import Any

import triton

from arnas import runtime

PAUSE = 5.0  # seconds between two lines at least


def tell() -> None:
    """From now on the person who watches is told what Triton compiles, and nothing of what it finds in its cache.

    An older Triton has no listener, and whoever has set one watches themselves.
    """
    compilation: Any = getattr(getattr(triton, "knobs", None), "compilation", None)
    if hasattr(compilation, "listener") and compilation.listener is None:
        compilation.listener = _Listener()


class _Listener:
    """Triton calls it after each kernel that it has compiled or found."""

    def __init__(self):
        self._count = 0
        self._said = 0.0

    def __call__(self, *, cache_hit, **_):
        if cache_hit:
            return
        self._count += 1
        now = time.monotonic()
        if self._count == 1:
            place = triton.knobs.cache.dir
            runtime.say("kernels", f"Triton compiles them, the first time up to a minute, and keeps them in {place}.")
        elif now - self._said >= PAUSE:
            runtime.say("kernels", f"{self._count} are compiled by now.")
        else:
            return
        self._said = now
