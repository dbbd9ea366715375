"""The upstream: etcd over gRPC. It decides nothing about feeds; it passes etcd's answers on as the core's values."""
