"""Calls a balancer with boto3 as its users do; says `done` when everything was as AWS has it."""
import base64
import json
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

client = boto3.client(
    "lambda",
    endpoint_url=sys.argv[1],
    region_name="us-east-1",
    aws_access_key_id="any",
    aws_secret_access_key="any",
    config=Config(retries={"mode": "standard", "max_attempts": 3}),
)


def refused(code, **asked):
    try:
        client.invoke(**asked)
    except ClientError as error:
        assert error.response["Error"]["Code"] == code, error.response
        return error.response
    raise AssertionError(f"{asked} was not refused")


answer = client.invoke(FunctionName="only", Payload=b'{"a": 1}', LogType="Tail")
assert (answer["StatusCode"], answer["ExecutedVersion"]) == (200, "$LATEST"), answer
assert answer["Payload"].read() == b'{"a": 1}' and "FunctionError" not in answer
assert base64.b64decode(answer["LogResult"]) == b"line of only\n", answer

answer = client.invoke(FunctionName="arn:aws:lambda:us-east-1:012345678912:function:b.only:$LATEST", Payload=b'"error"')
assert (answer["StatusCode"], answer["FunctionError"]) == (200, "Unhandled"), answer
assert json.load(answer["Payload"]) == {"errorMessage": "own"}

assert client.invoke(FunctionName="only", InvocationType="DryRun")["StatusCode"] == 204
refused("ResourceNotFoundException", FunctionName="none")
refused("InvalidRequestContentException", FunctionName="only", Payload=b"{")
refused("InvalidParameterValueException", FunctionName="only", InvocationType="Event")
# What may have run is not sent again, whatever the kit is told to do with errors.
lost = refused("InvocationMayHaveStartedException", FunctionName="only", Payload=b'"lost"')
assert lost["ResponseMetadata"]["RetryAttempts"] == 0, lost

for body, pieces, end in [('"pieces"', b"one two three", {}), ('"broken"', b"one two ", {"ErrorCode": "Unhandled"})]:
    stream = client.invoke_with_response_stream(FunctionName="only", Payload=body.encode())["EventStream"]
    got, last = b"", None
    for event in stream:
        got += event.get("PayloadChunk", {}).get("Payload", b"")
        last = event.get("InvokeComplete", last)
    assert got == pieces and end.items() <= last.items(), (got, last)

pages = client.get_paginator("list_functions").paginate(PaginationConfig={"PageSize": 2})
names = [function["FunctionName"] for page in pages for function in page["Functions"]]
assert names == ["a.f", "again", "b.f", "large", "only"], names
client.update_function_configuration(FunctionName="only", Timeout=7, Environment={"Variables": {"A": "1"}})
client.get_waiter("function_updated_v2").wait(FunctionName="only")
seen = client.get_function(FunctionName="only")["Configuration"]
assert (seen["Timeout"], seen["Environment"]) == (7, {"Variables": {"A": "1"}}), seen
client.delete_function(FunctionName="only")
refused("ResourceNotFoundException", FunctionName="only")
print("done")
