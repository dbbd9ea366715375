"""The ``check`` command: its verdict, and the command at real gateways."""
