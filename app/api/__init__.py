"""HTTP: REST reads, streams, probes and metrics. It asks the registry and etcd, and decides nothing about feeds."""
