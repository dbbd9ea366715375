"""A gateway in the test's own process, with the fixtures of the stream tests."""

from tests.stream.conftest import _fake, _gateway

__all__ = ["_fake", "_gateway"]
