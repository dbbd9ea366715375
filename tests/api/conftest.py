"""A gateway in the test's own process, as the tests of streams have it."""

from tests.stream.conftest import _fake, _gateway

__all__ = ["_fake", "_gateway"]
