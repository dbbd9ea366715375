"""What takes too long, or too many downloads, for ``make test``: ``make matrix`` runs all of it.

- Clients that others wrote, as docs/clients.md shows them, with a real gateway. The tests marked ``short`` are part of
  ``make test``.
- The long forms of other tests: 100,000 requests that schemathesis makes of the OpenAPI document, a million checked
  events, and clients that generators make. Each file names its short form.

A test reports its figures with the fixture ``figures``; the run prints all of them at its end.
"""
