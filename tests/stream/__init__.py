"""``app.stream``: a stream from a reader to a socket."""
