"""Feeds and their registry at run time: the tasks, timers and reference counts around the pure core."""
