#!/bin/sh
# Format `json-http` with `cold: true`: one process per call, as the Open Function Format had it.
# STDIN is a line of JSON (request_url, params, method, headers, call_id, deadline), an empty line, the body and then its end.
# STDOUT is the bare answer, STDERR the log. Exit status 0 is success; any other is FUNCTION_FAILED.
# The variables of the format `default` are there too: FN_METHOD, FN_REQUEST_URL, FN_HEADER_CONTENT_TYPE ...
# Without `cold` the contract is another, for processes that stay: see the examples in Python and Node.
read -r head
read -r empty
name=$(cat)
echo "the call: $head$empty" >&2
echo "Hello, ${name:-world}, from a shell by $FN_METHOD!"
