"""Signs its requests with boto3, rightly and wrongly, where a balancer asks who is there; says `done` when only the right ones were taken."""
import sys
import urllib.error
import urllib.request

import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

endpoint, key, secret = sys.argv[1:]


def client(key, secret, **more):
    config = Config(retries={"mode": "standard", "max_attempts": 3})
    return boto3.client("lambda", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=key, aws_secret_access_key=secret, config=config, **more)


def refused(code, call, **asked):
    try:
        call(**asked)
    except ClientError as error:
        assert error.response["Error"]["Code"] == code, error.response
        assert error.response["ResponseMetadata"]["RetryAttempts"] == 0, error.response
        return
    raise AssertionError(f"{asked} was not refused")


good = client(key, secret)
assert good.invoke(FunctionName="only", Payload=b'{"a": "\xc3\xa9"}')["Payload"].read() == b'{"a": "\xc3\xa9"}'
arn = "arn:aws:lambda:us-east-1:012345678912:function:b.only"
assert good.invoke(FunctionName=arn, Qualifier="$LATEST", LogType="Tail", ClientContext="e30=")["StatusCode"] == 200
assert good.invoke_with_response_stream(FunctionName="only", Payload=b'"plain"')["StatusCode"] == 200
assert good.get_function(FunctionName="only")["Configuration"]["FunctionName"] == "only"
good.update_function_configuration(FunctionName="only", Timeout=9)
# What it may not: the app `a` is another's.
refused("AccessDeniedException", good.invoke, FunctionName="a.f")
refused("AccessDeniedException", good.delete_function, FunctionName="a.f")
refused("AccessDeniedException", good.create_function, FunctionName="new", Role="r", Code={"ImageUri": "x"}, PackageType="Image")
# Who is not known, and who only says to be.
refused("UnrecognizedClientException", client("AKIDNOBODY", secret).invoke, FunctionName="only")
refused("InvalidSignatureException", client(key, secret[::-1]).invoke, FunctionName="only")
refused("InvalidSignatureException", client(key, secret[::-1]).delete_function, FunctionName="only")

url = endpoint + "/2015-03-31/functions/only/invocations"


def sent(body, change=lambda request: None, sign=None, **headers):
    request = AWSRequest("POST", url, data=sign if sign is not None else body, headers=headers)
    SigV4Auth(Credentials(key, secret), "lambda", "us-east-1").add_auth(request)
    change(request)
    raw = urllib.request.Request(url, data=body, headers=dict(request.headers.items()), method="POST")
    try:
        return urllib.request.urlopen(raw).status, None
    except urllib.error.HTTPError as error:
        return error.code, error.headers["x-amzn-errortype"]


assert sent(b"1") == (200, None)
assert sent(b"2", sign=b"1") == (403, "InvalidSignatureException"), "another body"
assert sent(b"1", **{"X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"}) == (200, None)
status, name = sent(b"1", **{"X-Amz-Content-SHA256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"})
assert (status, name) == (400, "InvalidSignatureException"), (status, name)


def added(request):
    request.headers["X-Amz-Log-Type"] = "Tail"


assert sent(b"1", added) == (403, "InvalidSignatureException"), "a header that was not signed"


def late(request):
    request.headers.replace_header("X-Amz-Date", "20200101T000000Z")


assert sent(b"1", late) == (403, "InvalidSignatureException"), "another time"


def bare(request):
    del request.headers["Authorization"]


assert sent(b"1", bare)[0] == 403


def otherwise(request):
    request.headers.replace_header("Authorization", request.headers["Authorization"].replace("HMAC-SHA256", "ECDSA-P256-SHA256"))


# No other scheme lets anybody in, and nobody learns which functions there are.
for function in ("only", "nope"):
    url = endpoint + f"/2015-03-31/functions/{function}/invocations"
    assert sent(b"1", otherwise) == (403, "IncompleteSignatureException"), function
try:
    urllib.request.urlopen(url + "?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=00")
except urllib.error.HTTPError as error:
    assert error.code == 403 and b"not in its URL" in error.read(), error
print("done")
