"""The reference clients and the page, against handwritten streams."""
