"""Kubeflow components: each wraps one stage of `arnas`, on our own image, in a signature, a docstring and one call."""

import functools

from kfp import dsl

from arnas._image import IMAGE

component = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
