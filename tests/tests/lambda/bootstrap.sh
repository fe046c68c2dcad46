#!/bin/sh
# A runtime in a few lines: it answers with what it got, or hangs, or ends, where the event is one of these words.
runtime="http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation"
trap 'echo "the runtime was told" >&2; exit 0' TERM
while wget -q -S -O /tmp/event "$runtime/next" 2>/tmp/head & wait $!; do
  id=$(grep -i 'lambda-runtime-aws-request-id' /tmp/head | sed 's/.*: *//' | tr -d '\r')
  case $(cat /tmp/event) in
    '"exit"') exit 3 ;;
    '"hang"') sleep 3600 & wait $! ;;
  esac
  wget -q -O /dev/null --post-data "{\"got\":$(cat /tmp/event)}" "$runtime/$id/response"
done
