"""Tests of the pure core: no event loop, no etcd, no sleeps."""
