"""Torch networks that ours are compared with."""

from tests.torch_networks import reference, unets  # noqa: F401
