"""The smallest function in Python: STDIN is the request, STDOUT the answer, STDERR the log."""

import sys

name = sys.stdin.read().strip() or "world"
print(f"greeting {name}", file=sys.stderr)
print(f"Hello, {name}, from Python {sys.version.split()[0]}!")
