#!/bin/sh
# Format `default` with `open_function_variables: true`: the contract of the Open Function Format.
# STDIN, STDOUT, STDERR and the exit status are those of `default`.
# METHOD, ROUTE (the path) and REQUEST_URL say what was asked.
# PARAM_<NAME> is a parameter of the query, decoded; HEADER_<NAME> is a header.
# Names are in upper case, with `_` for every other sign.
name=${PARAM_NAME:-$(cat)}
echo "$METHOD $REQUEST_URL" >&2
echo "Hello, ${name:-world}, by $METHOD ${ROUTE:-without a route}!"
