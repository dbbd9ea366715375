"""A stream from a reader to a socket."""
