"""A browser for the tests of the reference clients."""

from tests.support.browser import _browser, _page, _tab

__all__ = ["_browser", "_page", "_tab"]
