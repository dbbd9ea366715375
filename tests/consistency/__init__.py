"""A checker that would expose the gateway's errors: what every subscriber saw, against etcd's history, under every
fault.
"""
