#!/bin/sh
# Format `default`: one process per call.
# STDIN is the request's body and then its end, STDOUT the answer's body, STDERR the log.
# Method, URL and headers are in the environment: FN_METHOD, FN_REQUEST_URL, FN_HEADER_CONTENT_TYPE ...
# Exit status 0 is success; any other is FUNCTION_FAILED, with the last lines of the log.
# A second call never reaches this process: the next one is prepared meanwhile.
name=$(cat)
echo "greeting ${name:-nobody}" >&2
echo "${GREETING:-Hello}, ${name:-world}, from $0!"
