"""The reference clients and the page, against streams that are written by hand."""
