"""Manages functions of a balancer with boto3 as its users do; says `done` when everything was as AWS has it."""
import base64
import hashlib
import io
import json
import sys
import zipfile

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, ParamValidationError

client = boto3.client(
    "lambda",
    endpoint_url=sys.argv[1],
    region_name="us-east-1",
    aws_access_key_id="any",
    aws_secret_access_key="any",
    config=Config(retries={"mode": "standard", "max_attempts": 3}),
)


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name + ".py", text)
    return buffer.getvalue()


def refused(code, call, **asked):
    try:
        call(**asked)
    except ClientError as error:
        assert error.response["Error"]["Code"] == code, (asked, error.response)
        assert error.response["ResponseMetadata"]["RetryAttempts"] == 0, error.response
        return error.response["Error"]["Message"]
    raise AssertionError(f"{asked} was not refused")


# A zip.
first = zipped(func="def handler(event, context): return 1")
made = dict(FunctionName="made", Runtime="python3.12", Role="arn:aws:iam::1:role/r", Handler="func.handler")
created = client.create_function(
    **made,
    Code={"ZipFile": first},
    Description="a function",
    Timeout=5,
    MemorySize=256,
    Publish=True,
    Environment={"Variables": {"A": "1"}},
    Tags={"team": "blue"},
    VpcConfig={"SubnetIds": [], "SecurityGroupIds": []},
    Layers=[],
)
expected = dict(
    made,
    Description="a function",
    Timeout=5,
    MemorySize=256,
    CodeSize=len(first),
    CodeSha256=base64.b64encode(hashlib.sha256(first).digest()).decode(),
    Version="1",
    State="Active",
    PackageType="Zip",
    Environment={"Variables": {"A": "1"}},
    FunctionArn="arn:aws:lambda:us-east-1:012345678912:function:made:1",
)
assert expected.items() <= created.items(), created
client.get_waiter("function_active_v2").wait(FunctionName="made")
refused("ResourceConflictException", client.create_function, **made, Code={"ZipFile": first})
answer = client.invoke(FunctionName="made", Payload=b"[1]")
assert (answer["Payload"].read(), answer["ExecutedVersion"]) == (b"[1]", "$LATEST"), answer

# Its versions.
second = zipped(func="def handler(event, context): return 2")
updated = client.update_function_code(FunctionName="made", ZipFile=second, RevisionId=created["RevisionId"])
client.get_waiter("function_updated_v2").wait(FunctionName="made")
assert updated["CodeSha256"] != created["CodeSha256"] and updated["RevisionId"] != created["RevisionId"]
refused("PreconditionFailedException", client.update_function_code, FunctionName="made", ZipFile=first, RevisionId=created["RevisionId"])
refused("InvalidParameterValueException", client.publish_version, FunctionName="made", CodeSha256="other")
published = client.publish_version(FunctionName="made", Description="the second", CodeSha256=updated["CodeSha256"])
assert (published["Version"], published["Description"]) == ("2", "the second"), published
assert published["FunctionArn"].endswith(":function:made:2")
assert client.publish_version(FunctionName="made")["Version"] == "2", "what has not changed is no other version"
pages = client.get_paginator("list_versions_by_function").paginate(FunctionName="made", PaginationConfig={"PageSize": 1})
versions = [version["Version"] for page in pages for version in page["Versions"]]
assert versions == ["$LATEST", "1", "2"], versions
listed = client.get_paginator("list_functions").paginate(FunctionVersion="ALL", PaginationConfig={"PageSize": 2})
versions = [one["Version"] for page in listed for one in page["Functions"] if one["FunctionName"] == "made"]
assert versions == ["$LATEST", "1", "2"], versions
one = client.get_function(FunctionName="made", Qualifier="1")
assert one["Configuration"]["CodeSha256"] == created["CodeSha256"] and one["Tags"] == {"team": "blue"}, one
assert client.get_function_configuration(FunctionName="made:2")["Version"] == "2"
assert client.invoke(FunctionName="made", Qualifier="1")["ExecutedVersion"] == "1"
refused("ResourceNotFoundException", client.invoke, FunctionName="made", Qualifier="7")
client.update_function_configuration(FunctionName="made", Timeout=6, Handler="func.other")
seen = client.get_function_configuration(FunctionName="made")
assert (seen["Timeout"], seen["Handler"], seen["Environment"]) == (6, "func.other", {"Variables": {"A": "1"}}), seen
assert seen["CodeSha256"] == updated["CodeSha256"], seen
refused("ResourceNotFoundException", client.get_function, FunctionName="made", Qualifier="3")

# Its aliases.
alias = client.create_alias(FunctionName="made", Name="live", FunctionVersion="1", Description="what is live")
assert (alias["FunctionVersion"], alias["Description"]) == ("1", "what is live"), alias
assert alias["AliasArn"] == "arn:aws:lambda:us-east-1:012345678912:function:made:live"
refused("ResourceConflictException", client.create_alias, FunctionName="made", Name="live", FunctionVersion="1")
refused("ResourceNotFoundException", client.create_alias, FunctionName="made", Name="x", FunctionVersion="9")
refused("InvalidParameterValueException", client.create_alias, FunctionName="made", Name="x", FunctionVersion="$LATEST")
assert client.invoke(FunctionName="made", Qualifier="live")["ExecutedVersion"] == "1"
assert client.invoke(FunctionName=alias["AliasArn"])["ExecutedVersion"] == "1"
routed = client.update_alias(
    FunctionName="made", Name="live", RevisionId=alias["RevisionId"], RoutingConfig={"AdditionalVersionWeights": {"2": 0.5}}
)
assert routed["RoutingConfig"] == {"AdditionalVersionWeights": {"2": 0.5}}, routed
refused("PreconditionFailedException", client.update_alias, FunctionName="made", Name="live", RevisionId=alias["RevisionId"])
ran = {client.invoke(FunctionName="made", Qualifier="live")["ExecutedVersion"] for _ in range(40)}
assert ran == {"1", "2"}, ran
assert [alias["Name"] for alias in client.list_aliases(FunctionName="made")["Aliases"]] == ["live"]
assert client.list_aliases(FunctionName="made", FunctionVersion="2")["Aliases"] == []
refused("ResourceConflictException", client.delete_function, FunctionName="made", Qualifier="1")
moved = client.update_alias(FunctionName="made", Name="live", FunctionVersion="2", RoutingConfig={"AdditionalVersionWeights": {}})
assert moved["FunctionVersion"] == "2" and "RoutingConfig" not in moved, moved
client.delete_function(FunctionName="made", Qualifier="1")
refused("ResourceNotFoundException", client.get_function, FunctionName="made", Qualifier="1")
client.delete_alias(FunctionName="made", Name="live")
refused("ResourceNotFoundException", client.get_alias, FunctionName="made", Name="live")

# What becomes of its events.
refused("ResourceNotFoundException", client.get_function_event_invoke_config, FunctionName="made")
only = "arn:aws:lambda:us-east-1:012345678912:function:only"
asked = dict(
    MaximumRetryAttempts=1, MaximumEventAgeInSeconds=60, DestinationConfig={"OnSuccess": {}, "OnFailure": {"Destination": only}}
)
config = client.put_function_event_invoke_config(FunctionName="made", **asked)
assert asked.items() <= config.items() and config["FunctionArn"].endswith(":function:made:$LATEST"), config
changed = client.update_function_event_invoke_config(FunctionName="made", MaximumRetryAttempts=0)
assert {**asked, "MaximumRetryAttempts": 0}.items() <= changed.items(), changed
named = only.replace("only", "b.only")
for written in (only, named):
    client.update_function_event_invoke_config(FunctionName="made", DestinationConfig={"OnFailure": {"Destination": written}})
    seen = client.get_function_event_invoke_config(FunctionName="made")["DestinationConfig"]
    assert seen["OnFailure"] == {"Destination": written}, "as it was written"
listed = client.list_function_event_invoke_configs(FunctionName="made")["FunctionEventInvokeConfigs"]
assert [one["MaximumRetryAttempts"] for one in listed] == [0], listed
for wrong in [
    dict(MaximumEventAgeInSeconds=59),
    dict(DestinationConfig={"OnFailure": {"Destination": "arn:aws:sqs:us-east-1:012345678912:queue"}}),
    dict(DestinationConfig={"OnFailure": {"Destination": only + "-gone"}}),
    dict(DestinationConfig={"OnFailure": {"Destination": only + ":1"}}),
    dict(DestinationConfig={"OnSuccess": {"Destination": only.replace("only", "made")}}),
]:
    try:
        client.put_function_event_invoke_config(FunctionName="made", **wrong)
        raise AssertionError(f"{wrong} was not refused")
    except (ClientError, ParamValidationError):
        pass
client.delete_function_event_invoke_config(FunctionName="made")
refused("ResourceNotFoundException", client.get_function_event_invoke_config, FunctionName="made")
assert client.list_function_event_invoke_configs(FunctionName="made")["FunctionEventInvokeConfigs"] == []

# Its limits and its tags.
assert client.put_function_concurrency(FunctionName="made", ReservedConcurrentExecutions=0)["ReservedConcurrentExecutions"] == 0
try:
    client.invoke(FunctionName="made")
    raise AssertionError("nothing is reserved")
except ClientError as error:
    assert error.response["Error"]["Code"] == "TooManyRequestsException", error.response
    assert error.response["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded", error.response
assert client.get_function_concurrency(FunctionName="made")["ReservedConcurrentExecutions"] == 0
assert client.get_function(FunctionName="made")["Concurrency"] == {"ReservedConcurrentExecutions": 0}
client.delete_function_concurrency(FunctionName="made")
assert "ReservedConcurrentExecutions" not in client.get_function_concurrency(FunctionName="made")
newest = client.publish_version(FunctionName="made")["Version"]
kept = dict(FunctionName="made", Qualifier=newest)
assert client.put_provisioned_concurrency_config(**kept, ProvisionedConcurrentExecutions=2)["Status"] == "READY"
assert client.get_provisioned_concurrency_config(**kept)["AllocatedProvisionedConcurrentExecutions"] == 2
assert len(client.list_provisioned_concurrency_configs(FunctionName="made")["ProvisionedConcurrencyConfigs"]) == 1
client.delete_provisioned_concurrency_config(**kept)
refused("ProvisionedConcurrencyConfigNotFoundException", client.get_provisioned_concurrency_config, **kept)
arn = client.get_function_configuration(FunctionName="made")["FunctionArn"]
client.tag_resource(Resource=arn, Tags={"stage": "test", "x": "y"})
client.untag_resource(Resource=arn, TagKeys=["team", "x"])
assert client.list_tags(Resource=arn)["Tags"] == {"stage": "test"}
assert client.get_account_settings()["AccountUsage"]["FunctionCount"] == 6

# An image.
image = "registry.example/team/hello:1@sha256:" + "ab" * 32
pictured = dict(FunctionName="pictured", Role="r", PackageType="Image", Code={"ImageUri": image})
configuration = client.create_function(**pictured, ImageConfig={"Command": ["func.handler"]})
assert configuration["PackageType"] == "Image" and "Runtime" not in configuration, configuration
assert configuration["ImageConfigResponse"]["ImageConfig"] == {"Command": ["func.handler"]}, configuration
code = client.get_function(FunctionName="pictured")["Code"]
assert code["ResolvedImageUri"] == image, code
client.update_function_code(FunctionName="pictured", ImageUri=image.replace("ab", "cd"))
refused("InvalidParameterValueException", client.update_function_code, FunctionName="pictured", ZipFile=first)

# What cannot be.
for wrong, said, asked in [
    ("InvalidParameterValueException", "Could not unzip", dict(made, FunctionName="x", Code={"ZipFile": b"none"})),
    ("InvalidParameterValueException", "java21", dict(made, FunctionName="x", Runtime="java21", Code={"ZipFile": first})),
    ("InvalidParameterValueException", "no S3", dict(made, FunctionName="x", Code={"S3Bucket": "bucket", "S3Key": "k"})),
    ("AccessDeniedException", "another account", dict(made, FunctionName="x", Code={"ZipFile": first}, Layers=["arn:aws:lambda:a:1:layer:l:1"])),
    ("InvalidParameterValueException", "Architectures", dict(made, FunctionName="x", Code={"ZipFile": first}, Architectures=["arm64", "x86_64"])),
    ("InvalidParameterValueException", "timeout", dict(made, FunctionName="x", Code={"ZipFile": first}, Timeout=100000)),
    ("InvalidParameterValueException", "Code.ZipFile", dict(made, FunctionName="x", Code={})),
    ("InvalidParameterValueException", 'alias "v"', dict(made, FunctionName="x:v", Code={"ZipFile": first})),
    (
        "InvalidParameterValueException", "connection refused",
        dict(FunctionName="x", Role="r", PackageType="Image", Code={"ImageUri": "registry.example/r0-away:1"}),
    ),
    ("InvalidParameterValueException", "Handler", dict(FunctionName="x", Role="r", Runtime="python3.12", Code={"ZipFile": first})),
]:
    message = refused(wrong, client.create_function, **asked)
    assert said in message, message
refused("ResourceNotFoundException", client.get_function, FunctionName="x")
refused("NotImplementedException", client.create_event_source_mapping, FunctionName="made")

# What is not kept is none to those who look.
assert client.list_event_source_mappings(FunctionName="made")["EventSourceMappings"] == []
assert client.list_layers()["Layers"] == []
assert client.get_function_code_signing_config(FunctionName="made")["FunctionName"] == "made"
assert client.get_runtime_management_config(FunctionName="made")["UpdateRuntimeOn"] == "Auto"
refused("ResourceNotFoundException", client.get_policy, FunctionName="made")
refused("ResourceNotFoundException", client.get_runtime_management_config, FunctionName="gone")

client.delete_function(FunctionName="made")
client.delete_function(FunctionName="pictured")
refused("ResourceNotFoundException", client.list_versions_by_function, FunctionName="made")
# A name that is free again has no past.
again = client.create_function(**made, Code={"ZipFile": first})
assert client.publish_version(FunctionName="made")["Version"] == "1", again
client.delete_function(FunctionName="made")
print("done")
