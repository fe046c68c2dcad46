"""Manages function URLs with boto3 and calls them as browsers and signers do; says `done` when everything was as AWS has it. With a key and its
secret: where a balancer asks who is there."""
import sys
import urllib.error
import urllib.request

import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

endpoint, *keys = sys.argv[1:]
key, secret = keys or ("any", "any")
client = boto3.client(
    "lambda",
    endpoint_url=endpoint,
    region_name="us-east-1",
    aws_access_key_id=key,
    aws_secret_access_key=secret,
    config=Config(retries={"mode": "standard", "max_attempts": 3}),
)


def refused(code, call, **asked):
    try:
        call(**asked)
    except ClientError as error:
        assert error.response["Error"]["Code"] == code, (asked, error.response)
        assert error.response["ResponseMetadata"]["RetryAttempts"] == 0, error.response
        return
    raise AssertionError(f"{asked} was not refused")


def called(url, body=b"hello", method="POST", sign=None, **headers):
    """Status, headers and body of a request of the URL."""
    request = AWSRequest(method, url, data=body, headers=headers)
    if sign is not None:
        SigV4Auth(Credentials(*sign), "lambda", "us-east-1").add_auth(request)
    raw = urllib.request.Request(url, data=body, headers=dict(request.headers.items()), method=method)
    try:
        answer = urllib.request.urlopen(raw)
    except urllib.error.HTTPError as error:
        answer = error
    return answer.status, answer.headers, answer.read()


def asks_who_is_there():
    url = client.create_function_url_config(FunctionName="only", AuthType="NONE")["FunctionUrl"]
    # NONE asks for nothing of its own; who may call at all stays the access file's to say.
    assert called(url)[0] in (401, 403)
    assert called(url, sign=(key, secret))[::2] == (200, b"hello")
    client.update_function_url_config(FunctionName="only", AuthType="AWS_IAM")
    assert called(url, sign=(key, secret))[::2] == (200, b"hello")
    assert called(url, sign=(key, secret[::-1]))[0] in (401, 403)
    assert called(url, sign=("AKIDNOBODY", secret))[0] in (401, 403)
    assert called(url)[0] in (401, 403)
    # The app `public` is anybody's, and this URL of it not.
    public = client.create_function_url_config(FunctionName="public.f", AuthType="NONE")["FunctionUrl"]
    assert called(public)[::2] == (200, b"hello")
    client.update_function_url_config(FunctionName="public.f", AuthType="AWS_IAM")
    assert called(public)[0] == 403
    # Who shows a key that nobody has is told that where anybody may not, and is anybody where anybody may.
    assert called(public, sign=("AKIDNOBODY", secret))[0] == 401
    nobody = boto3.client(
        "lambda", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="AKIDNOBODY", aws_secret_access_key=secret
    )
    refused("UnrecognizedClientException", nobody.invoke, FunctionName="only", Payload=b"1")
    refused("UnrecognizedClientException", nobody.get_function, FunctionName="public.f")
    assert nobody.invoke(FunctionName="public.f", Payload=b"1")["Payload"].read() == b"1"
    assert called(public, sign=(key, secret))[::2] == (200, b"hello")
    refused("AccessDeniedException", client.create_function_url_config, FunctionName="a.f", AuthType="NONE")


def asks_nobody():
    refused("ResourceNotFoundException", client.get_function_url_config, FunctionName="only")
    assert client.list_function_url_configs(FunctionName="only")["FunctionUrlConfigs"] == []
    made = client.create_function_url_config(FunctionName="only", AuthType="NONE")
    url = made["FunctionUrl"]
    arn = "arn:aws:lambda:us-east-1:012345678912:function:only"
    assert (url, made["FunctionArn"]) == (endpoint + "/lambda-url/b.only/", arn), made
    assert (made["AuthType"], made["InvokeMode"], "Cors" in made) == ("NONE", "BUFFERED", False), made
    refused("ResourceConflictException", client.create_function_url_config, FunctionName="only", AuthType="NONE")
    refused("ResourceNotFoundException", client.create_function_url_config, FunctionName="gone", AuthType="NONE")
    status, headers, body = called(url + "some/path?x=1")
    assert (status, body, headers["Content-Length"]) == (200, b"hello", "5"), (status, headers, body)
    assert called(url[:-1])[0] == 200 and called(url, None, "GET")[0] == 200

    cors = dict(AllowOrigins=["https://shop.example"], AllowMethods=["PUT"], AllowHeaders=["X-Mine"], ExposeHeaders=["Date"], MaxAge=60)
    changed = client.update_function_url_config(FunctionName="only", InvokeMode="RESPONSE_STREAM", Cors=cors)
    assert (changed["Cors"], changed["InvokeMode"], changed["AuthType"]) == (cors, "RESPONSE_STREAM", "NONE"), changed
    seen = client.get_function_url_config(FunctionName=arn)
    assert seen["Cors"] == cors and seen["FunctionUrl"] == url and seen["CreationTime"] == made["CreationTime"], seen
    asking = {"Origin": "https://shop.example", "Access-Control-Request-Method": "PUT"}
    status, headers, _ = called(url, None, "OPTIONS", **asking)
    assert (status, headers["Access-Control-Allow-Origin"]) == (204, "https://shop.example"), headers
    assert (headers["Access-Control-Allow-Methods"], headers["Access-Control-Max-Age"]) == ("PUT", "60"), headers
    assert "x-mine" in headers["Access-Control-Allow-Headers"]
    assert called(url, None, "OPTIONS", **{**asking, "Origin": "https://other.example"})[0] == 403
    headers = called(url, Origin="https://shop.example")[1]
    assert (headers["Access-Control-Allow-Origin"], headers["Access-Control-Expose-Headers"]) == ("https://shop.example", "date")
    assert "Access-Control-Allow-Origin" not in called(url, Origin="https://other.example")[1]
    assert "Cors" not in client.update_function_url_config(FunctionName="only", Cors={})

    for wrong in [dict(AuthType="SOME"), dict(InvokeMode="LOUD"), dict(Cors=dict(AllowOrigins=["*"], AllowCredentials=True))]:
        refused("InvalidParameterValueException", client.update_function_url_config, FunctionName="only", **wrong)
    # What else becomes of the function it outlives.
    client.update_function_configuration(FunctionName="only", Timeout=9)
    assert client.get_function_url_config(FunctionName="only")["CreationTime"] == made["CreationTime"]

    version = client.publish_version(FunctionName="only")["Version"]
    client.create_alias(FunctionName="only", Name="live", FunctionVersion=version)
    refused("InvalidParameterValueException", client.create_function_url_config, FunctionName="only", Qualifier=version, AuthType="NONE")
    live = client.create_function_url_config(FunctionName="only", Qualifier="live", AuthType="AWS_IAM")
    assert live["FunctionUrl"] == endpoint + "/lambda-url/b.only.live/" and live["FunctionArn"] == arn + ":live", live
    assert called(live["FunctionUrl"])[::2] == (200, b"hello")
    pages = client.get_paginator("list_function_url_configs").paginate(FunctionName="only", PaginationConfig={"PageSize": 1})
    assert [one["FunctionArn"] for page in pages for one in page["FunctionUrlConfigs"]] == [arn, arn + ":live"]
    client.delete_alias(FunctionName="only", Name="live")
    assert called(live["FunctionUrl"])[0] == 404
    client.create_alias(FunctionName="only", Name="live", FunctionVersion=version)
    assert called(live["FunctionUrl"])[0] == 404, "the URL went with its alias"
    client.delete_function_url_config(FunctionName="only")
    refused("ResourceNotFoundException", client.delete_function_url_config, FunctionName="only")
    assert called(url)[0] == 404


asks_who_is_there() if keys else asks_nobody()
print("done")
