"""Format `cloudevent`, as Fn spoke it: an event of CloudEvents 0.1 on each line of STDIN, one on STDOUT in answer; hot.

The body is `data`, always JSON, so a request must be JSON too. The rest of the call is in `extensions`:
deadline, and protocol: {type, method, request_url, headers: {Name: [values]}}.
Answer with data and contentType (JSON or text), and if you like extensions.protocol: {status_code, headers}.
Who sent an event gets the answer's event; who did not gets its data. STDERR is the log.
"""

import json
import sys

for line in sys.stdin:
    event = json.loads(line)
    data = event.get("data")
    name = data.get("name", "world") if isinstance(data, dict) else data or "world"
    print("answering", event["eventID"], file=sys.stderr)
    answer = {
        "cloudEventsVersion": "0.1",
        "eventID": event["eventID"],
        "eventType": "example.greeting",
        "source": "/examples/greeter",
        "contentType": "text/plain",
        "data": f"Hello, {name}, from Python by an early event!",
        "extensions": {"protocol": {"status_code": 200, "headers": {"X-Event": [event["eventID"]]}}},
    }
    print(json.dumps(answer), flush=True)
