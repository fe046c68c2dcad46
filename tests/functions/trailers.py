"""Reads what follows the body of a request, and says something behind that of its answer: `http-stream` where FN_LISTENER names a socket,
else `http` on STDIN and STDOUT. The answer is what it was told, in JSON, and the body again.
"""

import json
import os
import socketserver
import sys
from http.server import BaseHTTPRequestHandler


class Function(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        body, trailers = self.read_body()
        # Whose client is an HTTP client tells in names which headers are for it.
        prefix = "Fn-Http-H-" if self.headers.get("Fn-Intent") == "httprequest" else ""
        told = {"te": self.headers.get("TE"), "trailer": self.headers.get("Trailer"), "trailers": trailers}
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Trailer", f"{prefix}X-Sum, {prefix}Host")
        self.end_headers()
        for piece in (json.dumps(told).encode() + b"\n", body):
            if piece:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n")
        for name, value in (("X-Sum", len(body)), ("X-Late", "1"), ("Content-Length", "7"), ("Set-Cookie", "a=b")):
            self.wfile.write(f"{prefix}{name}: {value}\r\n".encode())
        self.wfile.write(b"Fn-Call-Id: forged\r\n\r\n")

    do_GET = do_POST = answer

    def read_body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0))), []
        body, trailers = bytearray(), []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while line := self.rfile.readline().strip():
            trailers.append([part.strip() for part in line.decode().split(":", 1)])
        return bytes(body), trailers

    def address_string(self):
        return "stoker"

    def log_message(self, form, *args):
        pass


class OnPipes(Function):
    def setup(self):
        self.rfile, self.wfile = sys.stdin.buffer, sys.stdout.buffer

    def handle_one_request(self):
        super().handle_one_request()
        self.wfile.flush()


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


if __name__ == "__main__":
    if listener := os.environ.get("FN_LISTENER", "").removeprefix("unix:"):
        ready = os.path.join(os.path.dirname(listener), "trailers.sock")
        server = Server(ready, Function)
        os.chmod(ready, 0o666)
        os.symlink(os.path.basename(ready), listener)
        server.serve_forever()
    else:
        OnPipes(None, ("stoker", 0), None)
