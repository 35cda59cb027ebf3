#!/usr/bin/env python3
"""A receiver of catalog-bridge's webhooks: checks the signature, drops repetitions, prints what is new.

    WEBHOOK_SECRET=whsec_… python3 receiver.py 8080

Standard library only. Put TLS before it. A real one keeps `last_sequences` where it keeps what it makes of the events, and
in the same transaction.
"""

import base64
import hashlib
import hmac
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Several while the secret is replaced.
KEYS = [base64.b64decode(secret.removeprefix("whsec_")) for secret in os.environ["WEBHOOK_SECRET"].split()]
TOLERANCE_SECONDS = 300
BODY_BYTES_MAX = 1_000_000

lock = threading.Lock()
last_sequences = {}  # by (source, subject): the log, and the entity


def is_signed(headers, body):
    message_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not timestamp.isdecimal() or abs(time.time() - int(timestamp)) > TOLERANCE_SECONDS:
        return False
    signed = f"{message_id}.{timestamp}.".encode() + body
    expected = ["v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in KEYS]
    found = headers.get("webhook-signature", "").split()
    return any(hmac.compare_digest(a.encode(), b.encode()) for a in expected for b in found)


def take(event):
    """True if it is new. An event at or below the last sequence of its entity was seen before, or is older than what was."""
    key = (event["source"], event["subject"])
    with lock:
        if event["sequence"] <= last_sequences.get(key, ""):
            return False
        print(event["sequence"], event["type"], event["subject"], flush=True)
        last_sequences[key] = event["sequence"]
        return True


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections
    timeout = 60

    def do_POST(self):
        length = int(self.headers.get("content-length", "0"))
        if length > BODY_BYTES_MAX:
            self.close_connection = True
            return self.answer(413)
        body = self.rfile.read(length)
        if not is_signed(self.headers, body):
            return self.answer(401)  # not 400: that refuses this one event for good
        take(json.loads(body))
        self.answer(204)  # only when the event is kept; also for a repetition

    def answer(self, status):
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver)
    print("listening on", server.server_address[1], flush=True)
    server.serve_forever()
