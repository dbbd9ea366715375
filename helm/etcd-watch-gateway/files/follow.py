"""The script of `helm test`, in the gateway's image: a read, and a stream from the read's cursor until `synced`."""

import json
import os
import pathlib
import ssl
import sys
import urllib.error
import urllib.request

SECONDS = 30  # timeout without a byte
TLS = ssl.create_default_context()
if pathlib.Path(cacert := os.environ.get("GATEWAY_CACERT", "")).is_file():
    TLS.load_verify_locations(cacert)


def ask(path: str) -> dict[str, object]:
    """Return the response's JSON, or the first `synced` of a stream."""
    request = urllib.request.Request(os.environ["GATEWAY_URL"] + path)
    if token := os.environ.get("GATEWAY_TOKEN"):
        request.add_header("Authorization", "Bearer " + token)
    event: dict[str, object] = {}
    with urllib.request.urlopen(request, timeout=SECONDS, context=TLS) as answer:
        for line in filter(bytes.strip, answer):  # empty lines keep a stream alive that has no state yet
            event = json.loads(line)
            if event.get("type") == "close":
                break
            if event.get("type", "synced") == "synced":
                return event
    sys.exit(f"{path}: closed before it was synced: {event or 'no event'}")


try:
    read = ask("/v1/kv?limit=1&prefix=" + os.environ["GATEWAY_PREFIX"])
    print(f"read at revision {read['revision']}, {read['count']} keys")
    synced = ask(f"/v1/watch?format=ndjson&prefix={os.environ['GATEWAY_PREFIX']}&last_event_id={read['cursor']}")
    print(f"synced at revision {synced['revision']}")
except urllib.error.HTTPError as error:
    sys.exit(f"{error}: {error.read().decode(errors='replace')}")
except OSError as error:
    sys.exit(f"{os.environ['GATEWAY_URL']}: {error}")
