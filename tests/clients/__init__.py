"""The client packages, with a real gateway and a real etcd."""
