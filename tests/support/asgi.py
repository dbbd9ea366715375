"""The app for another ASGI server than ours: ``hypercorn tests.support.asgi:app``; its settings are the environment's.

A write that is not taken at once is looked at every 1/600 of GATEWAY_SEND_TIMEOUT, where the product looks four times:
so a client need not be slow for seconds until its writes are looked at.
"""

from __future__ import annotations

from app.main import create_app
from app.stream import connection

connection.LOOKS = 600
app = create_app()
