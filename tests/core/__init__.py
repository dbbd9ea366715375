"""The pure half, tested purely: no event loop, no etcd, no sleeps."""
