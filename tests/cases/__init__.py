"""Cases that break a naive design: the first sentence of every test states what a naive design does wrong there."""
