"""Answers with what it was sent, and records that the call reached it: in the formats `json` (the default) and `http`.

The body's first line is what the caller calls the call. It is written into the pipe that PROBE_RECORD names, before anything else is done with it.
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler

pipe = os.open(os.environ["PROBE_RECORD"], os.O_WRONLY)
calls = 0


def record(body):
    global calls
    key = body.split(b"\n", 1)[0].decode()
    # A line this short is written whole.
    os.write(pipe, f"start {key} {os.getpid()}-{calls} -\n".encode())
    calls += 1


class Function(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        self.rfile, self.wfile = sys.stdin.buffer, sys.stdout.buffer

    def finish(self):
        self.wfile.flush()

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = bytearray()
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return bytes(body)

    def do_POST(self):
        body = self.body()
        record(body)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, form, *args):
        pass


if "http" in sys.argv[1:]:
    Function(None, ("stoker", 0), None)
else:
    for line in sys.stdin:
        call = json.loads(line)
        record(call["body"].encode())
        print(json.dumps({"body": call["body"]}), flush=True)
