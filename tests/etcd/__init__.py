"""etcd with TLS, users and roles, and endpoints with faults; all with real etcds."""
