"""A checker of the gateway: it compares what every subscriber saw with etcd's history, under every fault."""
