"""Feeds and the registry, running."""
