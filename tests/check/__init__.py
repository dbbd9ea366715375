"""Tests of the ``check`` command: its verdict, and the command against real gateways."""
