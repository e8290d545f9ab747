"""Torch networks that ours are compared with."""

from tests.support.torch_networks import reference, unets  # noqa: F401
