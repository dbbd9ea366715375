"""Who may see what: the token, and the prefixes that are served."""
