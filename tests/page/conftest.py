"""A browser for the tests of the page."""

from tests.support.browser import _browser, _page, _tab

__all__ = ["_browser", "_page", "_tab"]
