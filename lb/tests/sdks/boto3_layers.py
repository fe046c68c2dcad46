"""Manages layers and resource policies with boto3; says `done` when everything was as AWS has it."""
import io
import json
import sys
import zipfile

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

(endpoint,) = sys.argv[1:]
client = boto3.client(
    "lambda",
    endpoint_url=endpoint,
    region_name="us-east-1",
    aws_access_key_id="any",
    aws_secret_access_key="any",
    config=Config(retries={"mode": "standard", "max_attempts": 3}, parameter_validation=False),
)
ARN = "arn:aws:lambda:us-east-1:012345678912"


def refused(code, call, **asked):
    try:
        call(**asked)
    except ClientError as error:
        assert error.response["Error"]["Code"] == code, (asked, error.response)
        assert error.response["ResponseMetadata"]["RetryAttempts"] == 0, error.response
        return error.response["Error"]["Message"]
    raise AssertionError(f"{asked} was not refused")


def zipped(**files):
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return whole.getvalue()


def publish(name, text="1", **more):
    return client.publish_layer_version(LayerName=name, Content={"ZipFile": zipped(file=text)}, **more)


def layers():
    assert client.list_layers()["Layers"] == []
    assert client.list_layer_versions(LayerName="tools")["LayerVersions"] == []
    one = publish("tools", Description="the first", LicenseInfo="MIT", CompatibleRuntimes=["python3.11"], CompatibleArchitectures=["x86_64"])
    assert one["LayerArn"] == f"{ARN}:layer:tools" and one["LayerVersionArn"] == f"{ARN}:layer:tools:1" and one["Version"] == 1, one
    assert one["Content"]["CodeSize"] > 0 and one["Content"]["CodeSha256"], one
    two = publish(f"{ARN}:layer:tools", "2", CompatibleRuntimes=["nodejs22.x"])
    assert two["Version"] == 2 and two["Content"]["CodeSha256"] != one["Content"]["CodeSha256"]
    publish("other")
    got = client.get_layer_version(LayerName="tools", VersionNumber=1)
    assert got["Description"] == "the first" and got["LicenseInfo"] == "MIT" and got["CompatibleRuntimes"] == ["python3.11"], got
    assert got["CompatibleArchitectures"] == ["x86_64"] and got["CreatedDate"] == one["CreatedDate"], got
    by_arn = client.get_layer_version_by_arn(Arn=one["LayerVersionArn"])
    assert by_arn["Content"] == got["Content"], by_arn

    listed = client.list_layers()["Layers"]
    assert [(layer["LayerName"], layer["LatestMatchingVersion"]["Version"]) for layer in listed] == [("other", 1), ("tools", 2)], listed
    listed = client.list_layers(CompatibleRuntime="python3.11")["Layers"]
    assert [layer["LatestMatchingVersion"]["Version"] for layer in listed] == [1], listed
    pages = client.get_paginator("list_layers").paginate(PaginationConfig={"PageSize": 1})
    assert [layer["LayerName"] for page in pages for layer in page["Layers"]] == ["other", "tools"]
    pages = client.get_paginator("list_layer_versions").paginate(LayerName="tools", PaginationConfig={"PageSize": 1})
    assert [version["Version"] for page in pages for version in page["LayerVersions"]] == [2, 1]

    client.delete_layer_version(LayerName="tools", VersionNumber=2)
    client.delete_layer_version(LayerName="tools", VersionNumber=2)
    refused("ResourceNotFoundException", client.get_layer_version, LayerName="tools", VersionNumber=2)
    assert publish("tools", "3")["Version"] == 3, "no number is given twice"
    refused("ResourceNotFoundException", client.get_layer_version, LayerName="absent", VersionNumber=1)
    refused("InvalidParameterValueException", client.get_layer_version, LayerName="tools", VersionNumber=0)
    for wrong in [
        {"Content": {}},
        {"Content": {"ZipFile": b"no zip"}},
        {"Content": {"S3Bucket": "b", "S3Key": "k"}},
        {"Content": {"ZipFile": zipped(f="1")}, "Description": "x" * 257},
        {"Content": {"ZipFile": zipped(f="1")}, "CompatibleRuntimes": ["r"] * 16},
        {"Content": {"ZipFile": zipped(f="1")}, "CompatibleArchitectures": ["z80"]},
    ]:
        refused("InvalidParameterValueException", client.publish_layer_version, LayerName="tools", **wrong)
    refused("ValidationException", client.publish_layer_version, LayerName="a b", Content={"ZipFile": zipped(f="1")})


def function():
    return {
        "FunctionName": "made", "Runtime": "python3.11", "Role": "r", "Handler": "file.handler",
        "Code": {"ZipFile": zipped(**{"file.py": ""})},
    }


def layers_of_functions():
    arn = f"{ARN}:layer:tools"
    made = client.create_function(**function(), Layers=[f"{arn}:1"])
    assert [layer["Arn"] for layer in made["Layers"]] == [f"{arn}:1"] and made["Layers"][0]["CodeSize"] > 0, made
    change = client.update_function_configuration
    said = refused("InvalidParameterValueException", change, FunctionName="made", Layers=[f"{arn}:1", f"{arn}:3"])
    assert said.startswith("Two different versions of the same layer"), said
    many = [publish(f"l{number}")["LayerVersionArn"] for number in range(6)]
    assert refused("InvalidParameterValueException", change, FunctionName="made", Layers=many) == "Cannot reference more than 5 layers."
    assert len(change(FunctionName="made", Layers=many[:5])["Layers"]) == 5
    assert len(client.get_function(FunctionName="made")["Configuration"]["Layers"]) == 5
    assert len(change(FunctionName="made", Timeout=9)["Layers"]) == 5, "what is not said stays"
    said = refused("InvalidParameterValueException", change, FunctionName="made", Layers=[f"{arn}:2"])
    assert said == f"Layer version {arn}:2 does not exist.", said
    refused("ValidationException", change, FunctionName="made", Layers=["tools"])
    theirs = "arn:aws:lambda:us-east-1:580247275435:layer:LambdaInsightsExtension:14"
    refused("AccessDeniedException", change, FunctionName="made", Layers=[theirs])
    refused("InvalidParameterValueException", change, FunctionName="b.f", Layers=[f"{arn}:1"])
    assert "Layers" not in change(FunctionName="made", Layers=[])


def permissions():
    refused("ResourceNotFoundException", client.get_policy, FunctionName="made")
    refused("ResourceNotFoundException", client.get_policy, FunctionName="absent")
    asked = {"StatementId": "api", "Action": "lambda:InvokeFunction", "Principal": "apigateway.amazonaws.com"}
    source = "arn:aws:execute-api:us-east-1:012345678912:api/*"
    said = client.add_permission(FunctionName="made", SourceArn=source, SourceAccount="012345678912", **asked)
    statement = json.loads(said["Statement"])
    assert statement == {
        "Sid": "api", "Effect": "Allow", "Principal": {"Service": "apigateway.amazonaws.com"}, "Action": "lambda:InvokeFunction",
        "Resource": f"{ARN}:function:made",
        "Condition": {"StringEquals": {"AWS:SourceAccount": "012345678912"}, "ArnLike": {"AWS:SourceArn": source}},
    }, statement
    refused("ResourceConflictException", client.add_permission, FunctionName="made", **asked)
    url = {"StatementId": "url", "Action": "lambda:InvokeFunctionUrl", "Principal": "*", "FunctionUrlAuthType": "NONE"}
    client.add_permission(FunctionName="made", **url)
    policy = client.get_policy(FunctionName="made")
    whole = json.loads(policy["Policy"])
    assert [one["Sid"] for one in whole["Statement"]] == ["api", "url"] and whole["Version"] == "2012-10-17", whole
    client.update_function_code(FunctionName="made", ZipFile=zipped(**{"file.py": "1"}))
    assert client.get_policy(FunctionName="made")["Policy"] == policy["Policy"], "a change of the code keeps it"

    version = client.publish_version(FunctionName="made")["Version"]
    client.create_alias(FunctionName="made", Name="live", FunctionVersion=version)
    client.add_permission(FunctionName="made", Qualifier="live", StatementId="own", Action="lambda:*", Principal="210987654321")
    of_alias = json.loads(client.get_policy(FunctionName="made:live")["Policy"])["Statement"]
    assert of_alias[0]["Resource"] == f"{ARN}:function:made:live", of_alias
    assert of_alias[0]["Principal"] == {"AWS": "arn:aws:iam::210987654321:root"}, of_alias
    client.delete_alias(FunctionName="made", Name="live")
    client.create_alias(FunctionName="made", Name="live", FunctionVersion=version)
    refused("ResourceNotFoundException", client.get_policy, FunctionName="made", Qualifier="live")

    for wrong in [
        {"StatementId": "a b"}, {"StatementId": ""}, {"Action": "s3:Get"}, {"Principal": ""}, {"FunctionUrlAuthType": "NONE"},
        {"Action": "lambda:InvokeFunctionUrl", "FunctionUrlAuthType": "OPEN"},
    ]:
        refused("InvalidParameterValueException", client.add_permission, FunctionName="made", **{**asked, **wrong})
    refused("PreconditionFailedException", client.add_permission, FunctionName="made", RevisionId="0", **{**asked, "StatementId": "n"})
    long = {"StatementId": "long", "Action": "*", "Principal": "arn:" + "x" * 9000}
    refused("PolicyLengthExceededException", client.add_permission, FunctionName="made", **long)
    client.remove_permission(FunctionName="made", StatementId="api")
    refused("ResourceNotFoundException", client.remove_permission, FunctionName="made", StatementId="api")
    client.remove_permission(FunctionName="made", StatementId="url")
    refused("ResourceNotFoundException", client.get_policy, FunctionName="made")


def nothing_else():
    mapping = {"FunctionName": "made", "EventSourceArn": "arn:aws:sqs:us-east-1:012345678912:q"}
    assert "event source" in refused("NotImplementedException", client.create_event_source_mapping, **mapping)
    refused("ResourceNotFoundException", client.get_event_source_mapping, UUID="0c2f")
    version = {"LayerName": "tools", "VersionNumber": publish("tools")["Version"]}
    said = refused("ResourceNotFoundException", client.get_layer_version_policy, **version)
    assert said == "No policy is associated with the given resource.", said
    permission = {"StatementId": "all", "Action": "lambda:GetLayerVersion", "Principal": "*"}
    assert "access file" in refused("NotImplementedException", client.add_layer_version_permission, **version, **permission)
    assert "access file" in refused("NotImplementedException", client.remove_layer_version_permission, **version, StatementId="all")
    refused("ResourceNotFoundException", client.get_layer_version_policy, LayerName="tools", VersionNumber=99)
    assert client.list_event_source_mappings(FunctionName="made")["EventSourceMappings"] == []
    assert client.put_function_recursion_config(FunctionName="made", RecursiveLoop="Allow")["RecursiveLoop"] == "Allow"
    refused("InvalidParameterValueException", client.put_function_recursion_config, FunctionName="made", RecursiveLoop="Terminate")
    assert client.put_runtime_management_config(FunctionName="made", UpdateRuntimeOn="Auto")["UpdateRuntimeOn"] == "Auto"
    change = client.update_function_configuration
    for wrong in [{"AWS_LAMBDA_FUNCTION_NAME": "x"}, {"1a": "x"}, {"a b": "x"}]:
        refused("InvalidParameterValueException", change, FunctionName="made", Environment={"Variables": wrong})
    for wrong in [{"Handler": "a b"}, {"Handler": "h" * 129}, {"Description": "d" * 257}, {"Timeout": 0}, {"MemorySize": 0}]:
        refused("InvalidParameterValueException", change, FunctionName="made", **wrong)
    refused("InvalidParameterValueException", client.get_function, FunctionName="made", Qualifier="a b")


layers()
layers_of_functions()
permissions()
nothing_else()
client.delete_function(FunctionName="made")
print("done")
