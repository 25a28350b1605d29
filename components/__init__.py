"""Kubeflow components: each wraps one stage of `arnas`, on our own image, in a signature, a docstring and one call."""

import functools

from kfp import dsl

import arnas

IMAGE = f"arnas:{arnas.__version__}"  # immutable: the tag is the version, since KFP's cache keys on it

component = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
