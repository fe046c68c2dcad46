"""Format `cloudevent` with `cloudevents: "1.0"`: an event in JSON on each line of STDIN, an event on STDOUT in answer; hot.

A request that is a CloudEvent arrives as that event; any other is wrapped into one of the type `stoker.call`.
Besides its attributes: fncallid, fndeadline, fnmethod, fnrequesturl, and fnheaders, a string that holds {"Name": ["value"]}.
The body is `data` (JSON; a string for text) or `data_base64` (bytes). An answer needs specversion, id, source and type.
Who sent an event gets the answer's event; who did not gets its data, with fnstatuscode and fnheaders. STDERR is the log.
"""

import base64
import json
import sys


def data_of(event):
    if "data_base64" in event:
        return base64.b64decode(event["data_base64"]).decode(errors="replace")
    return event.get("data")


for line in sys.stdin:
    event = json.loads(line)
    data = data_of(event)
    name = data.get("name", "world") if isinstance(data, dict) else data or "world"
    print(f"{event['type']} from {event['source']}", file=sys.stderr)
    answer = {
        "specversion": "1.0",
        "id": event["id"],
        "source": "/examples/greeter",
        "type": "example.greeting",
        "datacontenttype": "application/json",
        "data": {"message": f"Hello, {name}, from Python by event!"},
    }
    print(json.dumps(answer), flush=True)
