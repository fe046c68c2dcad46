"""Leaves calls behind with boto3, which are made later; says the ids of those that a balancer took, and `done`."""
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

endpoint = sys.argv[1]
config = Config(retries={"mode": "standard", "max_attempts": 3})
client = boto3.client("lambda", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="any", aws_secret_access_key="any", config=config)


def refused(code, **asked):
    try:
        client.invoke(FunctionName="only", InvocationType="Event", **asked)
    except ClientError as error:
        assert error.response["Error"]["Code"] == code, error.response
        return
    raise AssertionError(f"{asked} was not refused")


for event in [b'{"a": 1}', b""]:
    answer = client.invoke(FunctionName="only", InvocationType="Event", Payload=event)
    assert (answer["StatusCode"], answer["Payload"].read()) == (202, b""), answer
    assert "ExecutedVersion" not in answer and "FunctionError" not in answer, answer
    print(answer["ResponseMetadata"]["RequestId"])
answer = client.invoke_async(FunctionName="only", InvokeArgs=b'{"old": 1}')
assert answer["Status"] == 202, answer
print(answer["ResponseMetadata"]["RequestId"])
refused("InvalidRequestContentException", Payload=b"{")
refused("ResourceNotFoundException", Qualifier="7")
print("done")
