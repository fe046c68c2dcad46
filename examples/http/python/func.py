"""Format `http`: HTTP/1.1 requests on STDIN, an HTTP/1.1 answer to each on STDOUT; hot.

It is the client's HTTP itself: method, path and query, headers; besides them Fn-Call-Id and Fn-Deadline.
A body has a Content-Length or comes in chunks. So must the answer's: without either it ends with STDOUT, and so does the container.
Status (200 to 599) and headers of the answer are what the client sees. A 500 is an answer, not a failure of the call.
One call at a time; STDIN ends when no call will come. STDOUT carries answers and nothing else: STDERR is the log.
"""

import sys
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit


class Function(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # the connection is kept for the next call

    def setup(self):
        self.rfile, self.wfile = sys.stdin.buffer, sys.stdout.buffer

    def finish(self):
        self.wfile.flush()

    def greet(self):
        query = parse_qs(urlsplit(self.path).query)
        name = query.get("name", [None])[0] or self.read_body().decode(errors="replace").strip() or "world"
        print(f"greeting {name[:80]}", file=sys.stderr)
        answer = f"Hello, {name}, from Python over HTTP!\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = greet

    def read_body(self):
        """The whole body: it must be read to its end, since the next request follows at once."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = bytearray()
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()  # the line end after each chunk
        while self.rfile.readline().strip():
            pass  # trailers
        return bytes(body)

    def log_message(self, form, *args):
        pass  # a line for every call is more than a greeting has to say


if __name__ == "__main__":
    Function(None, ("stoker", 0), None)  # handles requests until STDIN ends
