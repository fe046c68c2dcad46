"""A function of the format cloudevent, version 1.0, with the CloudEvents kit of PyPI: the kit reads every call and writes every answer."""

import json
import sys
from datetime import datetime, timezone

from cloudevents.core.bindings.http import HTTPMessage, from_http_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

STRUCTURED = {"content-type": "application/cloudevents+json"}

for calls, line in enumerate(sys.stdin, start=1):
    event = from_http_event(HTTPMessage(headers=STRUCTURED, body=line.encode()))
    data = event.get_data()
    kind = "bytes" if isinstance(data, bytes) else type(data).__name__
    told = {
        "calls": calls,
        "id": event.get_id(),
        "source": event.get_source(),
        "type": event.get_type(),
        "kind": kind,
        "data": list(data) if isinstance(data, bytes) else data,
    }
    attributes = {
        "id": f"answer-{calls}",
        "source": "/function",
        "type": "kit.answer",
        "specversion": "1.0",
        "time": datetime.now(timezone.utc),
        "datacontenttype": "application/json",
    }
    answer = to_structured_event(CloudEvent(attributes, told)).body
    print(json.dumps(json.loads(answer)), flush=True)
