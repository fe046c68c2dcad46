#!/bin/sh
# An extension: it writes down what it is told. EXTENSION=exits: it ends at its first invocation; =works: it takes its time for each.
api="http://$AWS_LAMBDA_RUNTIME_API/2020-01-01/extension"
echo start >>/tmp/starts
starts=$(grep -c start /tmp/starts)
wget -q -S -O /dev/null --header 'Lambda-Extension-Name: outside' --post-data '{"events":["INVOKE","SHUTDOWN"]}' \
  "$api/register" 2>/tmp/registered
id=$(grep -i 'lambda-extension-identifier' /tmp/registered | sed 's/.*: *//' | tr -d '\r')
echo "the extension begins, $starts starts were here" >&2
while wget -q -O /tmp/told --header "Lambda-Extension-Identifier: $id" "$api/event/next"; do
  sed 's/.*"eventType":"\([A-Z]*\)".*"requestId":"\([^"]*\)".*/\1 \2/; s/.*"eventType":"\(SHUTDOWN\)".*"shutdownReason":"\([a-z]*\)".*/\1 \2/' /tmp/told >&2
  echo >&2
  case $EXTENSION in
    exits) exit 3 ;;
    works) sleep 0.3; echo "the extension has done its work" >&2 ;;
  esac
done
