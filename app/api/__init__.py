"""HTTP endpoints: reads, streams, probes, metrics. They ask the registry and etcd, and decide nothing about feeds."""
