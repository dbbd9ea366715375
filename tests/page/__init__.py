"""The page at ``/``: its files, its model in Node, and the whole in Chromium and Firefox."""
