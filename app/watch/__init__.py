"""Feeds, channels and subscribers at run time: the tasks, timers and reference counts around the pure core."""
