"""Access control: the bearer token, and the prefixes that the gateway serves."""
