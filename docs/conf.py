"""Sphinx's configuration of the docs site. ``make docs`` builds the site, from a copy that tools/site.py makes."""

from __future__ import annotations

project = "etcd-watch-gateway"
copyright = "the authors of etcd-watch-gateway, Apache-2.0"  # noqa: A001  # Sphinx's name
extensions = ["myst_parser"]
nitpicky = True  # `make docs` makes each warning an error
suppress_warnings = ["misc.highlighting_failure"]  # a forge knows more languages; here they are text
smartquotes = False  # it makes a dash of the two hyphens of a flag
myst_heading_anchors = 4  # every heading is a target, as on a forge

html_theme = "furo"
html_title = "etcd-watch-gateway"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
