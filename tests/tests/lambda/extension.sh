#!/bin/sh
# An extension: it writes down what it is told.
api="http://$AWS_LAMBDA_RUNTIME_API/2020-01-01/extension"
wget -q -S -O /dev/null --header 'Lambda-Extension-Name: outside' --post-data '{"events":["INVOKE","SHUTDOWN"]}' \
  "$api/register" 2>/tmp/registered
id=$(grep -i 'lambda-extension-identifier' /tmp/registered | sed 's/.*: *//' | tr -d '\r')
while wget -q -O /tmp/told --header "Lambda-Extension-Identifier: $id" "$api/event/next"; do
  sed 's/.*"eventType":"\([A-Z]*\)".*"requestId":"\([^"]*\)".*/\1 \2/; s/.*"eventType":"\(SHUTDOWN\)".*"shutdownReason":"\([a-z]*\)".*/\1 \2/' /tmp/told >&2
  echo >&2
done
