"""Sends events to a balancer's door with the CloudEvents kit of PyPI, in each mode, and says of each answer what the kit reads in it.

    event_client.py http://HOST:PORT APP/FN...
"""

import json
import sys
import urllib.error
import urllib.request
from datetime import datetime, timezone

from cloudevents.core.bindings.http import HTTPMessage, from_http_event, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

SUBJECT = 's é 100% "q"'


def event(number):
    attributes = {
        "id": f"py-{number}", "source": "/kit", "type": "kit.sent", "specversion": "1.0", "subject": SUBJECT, "myext": "x",
        "time": datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc), "datacontenttype": "application/json",
    }
    return CloudEvent(attributes, {"number": number})


def read(headers, body):
    """The event that an answer is, as the kit reads it."""
    headers = {name.lower(): value for name, value in headers.items()}
    structured = headers.get("content-type", "").startswith("application/cloudevents+json")
    if not structured and "ce-specversion" not in headers:
        return None
    found = from_http_event(HTTPMessage(headers=headers, body=body))
    return {"id": found.get_id(), "type": found.get_type(), "data": found.get_data()}


def send(base, function, mode, headers, body):
    request = urllib.request.Request(f"{base}/ce/{function}", body, headers, method="POST")
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as refused:
        answer = refused
    body = answer.read()
    told = {"function": function, "mode": mode, "status": answer.status, "body": body.decode(), "event": read(answer.headers, body)}
    print(json.dumps(told), flush=True)


base, functions = sys.argv[1], sys.argv[2:]
for function in functions:
    for mode, make in (("binary", to_binary_event), ("structured", to_structured_event)):
        message = make(event(1))
        body = message.body if isinstance(message.body, bytes) else message.body.encode()
        send(base, function, mode, message.headers, body)
    # The kit has no batches: this is what one is made of.
    batch = [json.loads(to_structured_event(event(number)).body) for number in (1, 2)]
    send(base, function, "batch", {"content-type": "application/cloudevents-batch+json"}, json.dumps(batch).encode())
# What the kit would take, and the standard does not: it makes an id up.
headers = dict(to_binary_event(event(1)).headers)
del headers["ce-id"]
assert from_http_event(HTTPMessage(headers=headers, body=b"{}")).get_id()
send(base, functions[0], "without an id", headers, b"{}")
