"""Format `default`: one process per call.

STDIN is the request's body and then its end, STDOUT the answer's body, STDERR the log.
Method, URL and headers are in the environment: FN_METHOD, FN_REQUEST_URL, FN_HEADER_CONTENT_TYPE ...
Exit status 0 is success; any other, as after an exception, is FUNCTION_FAILED.
"""

import sys

name = sys.stdin.read().strip() or "world"
print(f"greeting {name[:80]}", file=sys.stderr)
print(f"Hello, {name}, from Python {sys.version.split()[0]}!")
