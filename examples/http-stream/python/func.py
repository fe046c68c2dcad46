"""A hot function: an HTTP server on a Unix socket, with nothing but Python's standard library.

Stoker names the socket in FN_LISTENER and sends each call as `POST /call`. The answer's status is 200 whenever the
function itself worked; what it wants an HTTP client to see goes into `Fn-Http-Status`.
"""

import os
import socketserver
import sys
from http.server import BaseHTTPRequestHandler


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept, so that a warm call pays for nothing but itself

    def do_POST(self):
        body = self.read_body()
        self.send_response(200)
        self.send_header("Content-Type", self.headers.get("Content-Type", "application/octet-stream"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def read_body(self):
        """The whole body. Long ones come in chunks, since Stoker streams them through without knowing their length."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = bytearray()
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()  # the line end after each chunk
        while self.rfile.readline().strip():
            pass  # trailers
        return bytes(body)

    def address_string(self):
        return "stoker"  # a Unix socket has no address to log

    def log_message(self, form, *args):
        pass  # one line a call is more than an echo has to say


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def listen(path):
    """Binds beside the name and then links to it: the socket appears only when it can be used."""
    ready = os.path.join(os.path.dirname(path), "echo.sock")
    server = Server(ready, Echo)
    os.chmod(ready, 0o666)
    os.symlink(os.path.basename(ready), path)
    return server


if __name__ == "__main__":
    address = os.environ["FN_LISTENER"].removeprefix("unix:")
    print("ready", file=sys.stderr)
    listen(address).serve_forever()
