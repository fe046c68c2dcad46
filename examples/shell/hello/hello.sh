#!/bin/sh
# The request's body comes on STDIN, the answer goes to STDOUT, and STDERR is the log.
name=$(cat)
echo "greeting ${name:-nobody}" >&2
echo "${GREETING:-Hello}, ${name:-world}, from $0!"
