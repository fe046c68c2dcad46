"""What the CloudEvents kit of PyPI makes of what the codec writes, and writes of its own for the codec to read.

    pip install cloudevents==2.2.0 && python3 python.py check|write GOLDEN_DIRECTORY
"""

import json
import pathlib
import sys
from datetime import datetime, timezone

from cloudevents.core.bindings.http import HTTPMessage, from_http_event, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

mode, folder = sys.argv[1], pathlib.Path(sys.argv[2])

if mode == "check":
    for path in sorted(folder.glob("1.0-*.in")):
        wire = path.read_bytes()
        event = from_http_event(HTTPMessage(headers={"content-type": "application/cloudevents+json"}, body=wire))
        told = json.loads(wire)
        for key, value in told.items():
            if key not in ("data", "data_base64", "time"):
                assert event.get_attributes()[key] == value, (path.name, key)
        if "data" in told:
            assert event.get_data() == told["data"], (path.name, event.get_data())
        if path.name == "1.0-bytes.in":
            assert event.get_data() == b"\x00\xff", event.get_data()
        print("ok", path.name)
else:
    base = {"source": "/function", "specversion": "1.0", "time": datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)}
    cases = {
        "json": ({"type": "done", "id": "py-1", "datacontenttype": "application/json"}, {"grüße": [1, 2.5, None]}),
        "text": ({"type": "done", "id": "py-2", "datacontenttype": "text/plain", "subject": "ü"}, 'plain "words"'),
        "bytes": ({"type": "done", "id": "py-3", "datacontenttype": "image/png", "ext": "x"}, b"\x89PNG\r\n"),
    }
    for name, (attributes, data) in cases.items():
        message = to_structured_event(CloudEvent({**base, **attributes}, data))
        assert message.headers["content-type"].startswith("application/cloudevents+json")
        body = message.body if isinstance(message.body, bytes) else message.body.encode()
        (folder / f"1.0-json+kit-python-{name}.out").write_bytes(body)
        (folder / f"1.0-event+kit-python-{name}.out").write_bytes(body)
        message = to_binary_event(CloudEvent({**base, **attributes}, data))
        print(name, message.headers, message.body)
