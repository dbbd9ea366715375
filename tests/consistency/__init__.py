"""A checker that would find us out: what every subscriber saw, against etcd's own history, under every fault."""
