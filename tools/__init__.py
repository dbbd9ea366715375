"""Commands for contributors. The wheel does not contain them."""
