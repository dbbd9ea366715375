"""HTTP endpoints: reads, streams, probes and metrics. They ask the registry and etcd, and decide nothing about feeds."""
