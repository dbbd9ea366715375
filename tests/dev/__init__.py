"""Tests of ``dev``: the command, its etcd, the watchdog and the sample data."""
