"""Format `json-http`: a line of JSON, an empty line and the body on STDIN; the same on STDOUT in answer; hot.

In: request_url, params, method, headers: {Name: [values]}, call_id, deadline, and body_length, or "chunked": true.
Out: body_length, or "chunked": true; and if you like status_code, content_type, headers.
The next head follows the body's last byte. Chunks are those of HTTP/1.1: a size in hexadecimal, CR LF, data, CR LF; the last has size 0.
One call at a time; STDIN ends when no call will come. STDOUT carries answers and nothing else: STDERR is the log.
"""

import json
import sys

stdin, stdout = sys.stdin.buffer, sys.stdout.buffer


def read_body(head):
    """The whole body: it must be read to its end, since the next call follows at once."""
    if not head.get("chunked"):
        return stdin.read(head["body_length"])
    body = bytearray()
    while size := int(stdin.readline(), 16):
        body += stdin.read(size)
        stdin.readline()  # the line end after each chunk
    stdin.readline()  # the empty line after the last
    return bytes(body)


while line := stdin.readline():
    head = json.loads(line)
    stdin.readline()  # the empty line
    body = read_body(head)
    name = head["params"].get("name") or body.decode(errors="replace").strip() or "world"
    print(f"greeting {name[:80]}", file=sys.stderr)
    answer = f"Hello, {name}, from Python over JSON and HTTP!\n".encode()
    stdout.write(json.dumps({"content_type": "text/plain; charset=utf-8", "body_length": len(answer)}).encode())
    stdout.write(b"\n\n" + answer)
    stdout.flush()
