"""Format `json`: an object on each line of STDIN, an object on STDOUT in answer to it; hot.

In: call_id, deadline, content_type, body (a string), protocol: {type, method, request_url, headers: {Name: [values]}}.
Out: body (a string), content_type, protocol: {status_code, headers}; whatever is missing is empty, the status 200.
One call at a time; STDIN ends when no call will come. Without a request nothing may be written.
STDOUT carries answers and nothing else: STDERR is the log.
"""

import json
import sys

for line in sys.stdin:
    call = json.loads(line)
    try:
        name = json.loads(call["body"])["name"]
        answer = {"body": json.dumps({"message": f"Hello, {name}, from Python!"}), "content_type": "application/json"}
    except (ValueError, TypeError, KeyError):
        answer = {"body": 'send {"name": "..."}\n', "content_type": "text/plain", "protocol": {"status_code": 400}}
    print("answering", call["call_id"], file=sys.stderr)
    print(json.dumps(answer), flush=True)
