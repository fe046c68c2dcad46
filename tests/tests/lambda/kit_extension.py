"""A handler with an extension inside its process, which subscribes to telemetry; each call answers with what it was told so far."""

import json
import os
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

BASE = "http://" + os.environ["AWS_LAMBDA_RUNTIME_API"]
told = []
arrived = threading.Condition()


def ask(method, path, headers, body=None):
    request = urllib.request.Request(BASE + path, method=method, headers=headers, data=body)
    return urllib.request.urlopen(request)


class Listener(BaseHTTPRequestHandler):
    def do_POST(self):
        batch = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with arrived:
            told.extend(batch)
            arrived.notify_all()
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


server = HTTPServer(("0.0.0.0", 0), Listener)
threading.Thread(target=server.serve_forever, daemon=True).start()
answer = ask("POST", "/2020-01-01/extension/register", {"Lambda-Extension-Name": "inside"}, b'{"events":["INVOKE"]}')
identity = {"Lambda-Extension-Identifier": answer.headers["Lambda-Extension-Identifier"]}
subscription = {
    "schemaVersion": "2022-12-13",
    "types": ["platform", "function", "extension"],
    "buffering": {"timeoutMs": 25},
    "destination": {"protocol": "HTTP", "URI": f"http://sandbox.localdomain:{server.server_port}/"},
}
ask("PUT", "/2022-07-01/telemetry", identity, json.dumps(subscription).encode())


def extension():
    while True:
        event = json.load(ask("GET", "/2020-01-01/extension/event/next", identity))
        with arrived:
            told.append({"type": "event", "record": event})
            arrived.notify_all()


threading.Thread(target=extension, daemon=True).start()


def handler(event, context):
    print("a line of the function", flush=True)
    with arrived:
        arrived.wait_for(lambda: event["until"] in [one["type"] for one in told])
        return told
