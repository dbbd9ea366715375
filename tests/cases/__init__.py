"""Cases that break a naive design: every test says in its first sentence what a naive one does wrong there."""
