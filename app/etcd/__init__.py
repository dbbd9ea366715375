"""The upstream: etcd over gRPC. It decides nothing about feeds; what it hears it hands on in the core's words."""
