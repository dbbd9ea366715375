"""Access: the token, and the allowed prefixes."""
