"""etcd with TLS, users and roles, and endpoints that are not what they should be; all with real etcds."""
