"""Clients that others wrote, as docs/clients.md shows them, with a real gateway. ``make matrix`` runs all of them."""
