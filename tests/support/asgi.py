"""The app for an ASGI server other than ours: ``hypercorn tests.support.asgi:app``. Its settings come from the
environment.

The gateway checks an unfinished write every 1/600 of GATEWAY_SEND_TIMEOUT; the product checks four times within that
timeout. So a test's client need not stay slow for seconds before the gateway looks at its writes.
"""

from __future__ import annotations

from app.main import create_app
from app.stream import connection

connection.LOOKS = 600
app = create_app()
