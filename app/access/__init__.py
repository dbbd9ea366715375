"""Access control: who sends a request, and what that identity may read."""
