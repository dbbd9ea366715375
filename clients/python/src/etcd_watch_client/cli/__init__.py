"""The command `etcd-watch`."""
