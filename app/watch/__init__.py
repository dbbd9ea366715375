"""Feeds and their registry, running: tasks, timers and reference counts around the pure core."""
