"""Reference networks in torch for the tests of ours."""

from tests.torch_networks import reference, unets  # noqa: F401
