"""``etcd-watch-gateway check``: proves that a running gateway releases what its streams hold."""
