#!/bin/sh
# Format `http`: HTTP/1.1 requests on STDIN, an HTTP/1.1 answer to each on STDOUT; hot.
# A request's body has a Content-Length or comes in chunks, and must be read to its end: the next request follows at once.
# The answer needs a Content-Length (or chunks); its status and headers are what the client sees.
# One call at a time; STDIN ends when no call will come.
# STDOUT carries answers and nothing else: STDERR is the log.
cr=$(printf '\r')

# The next line without its end.
line() { IFS= read -r line && line=${line%"$cr"}; }

# Bytes of the body; what has been read is gone from STDIN.
bytes() { head -c "$1"; }

chunks() {
  while line && [ "$((0x${line%%;*}))" -gt 0 ]; do
    bytes "$((0x${line%%;*}))"
    line # the line end after each chunk
  done
  while line && [ -n "$line" ]; do :; done # trailers
}

while line; do
  length=0 chunked=
  while line && [ -n "$line" ]; do
    case $line in
    [Cc]ontent-[Ll]ength:*) length=$((${line#*:})) ;;
    [Tt]ransfer-[Ee]ncoding:*) chunked=yes ;;
    esac
  done
  if [ -n "$chunked" ]; then name=$(chunks); else name=$(bytes "$length"); fi
  echo "a name of ${#name} characters" >&2
  answer="Hello, ${name:-world}, from a shell over HTTP!"
  printf 'HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s' "$(printf %s "$answer" | wc -c)" "$answer"
done
