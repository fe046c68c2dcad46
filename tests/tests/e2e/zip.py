"""Makes functions of zips with boto3 and calls them, and calls them again when the fleet has been another meanwhile."""
import io
import json
import pathlib
import sys
import zipfile

import boto3

endpoint, client_kit, phase = sys.argv[1:]
client = boto3.client(
    "lambda", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="any", aws_secret_access_key="any"
)

HANDLER = """
import os
def handler(event, context):
    return {"said": event, "word": WORD, "name": context.function_name, "arn": context.invoked_function_arn, "A": os.environ["A"]}
"""


def python(word):
    """A handler with AWS's runtime client beside it, as `pip install --target` would put it there."""
    buffer = io.BytesIO()
    packages = next(pathlib.Path(client_kit).glob(".venv/lib/python3*/site-packages"))
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("func.py", f"WORD = {word!r}\n" + HANDLER)
        for name in ["awslambdaric", "simplejson", "snapshot_restore_py.py"]:
            root = packages / name
            for file in [root] if root.is_file() else root.rglob("*"):
                if file.is_file() and "__pycache__" not in file.parts:
                    archive.write(file, file.relative_to(packages))
        for file in packages.glob("runtime_client*.so"):
            archive.write(file, file.name)
    return buffer.getvalue()


def bootstrap():
    """The Runtime API by hand, as a `provided` runtime has it."""
    buffer = io.BytesIO()
    text = """#!/usr/bin/python3
import http.client, os
while True:
    api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    api.request("GET", "/2018-06-01/runtime/invocation/next")
    event = api.getresponse()
    body, number = event.read(), event.headers["Lambda-Runtime-Aws-Request-Id"]
    api.request("POST", f"/2018-06-01/runtime/invocation/{number}/response", b'{"by hand": ' + body + b"}")
    api.getresponse().read()
"""
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("bootstrap")
        info.external_attr = 0o100755 << 16
        archive.writestr(info, text)
    return buffer.getvalue()


def invoke(name, **more):
    answer = client.invoke(FunctionName=name, Payload=b"[1]", LogType="Tail", **more)
    body = json.load(answer["Payload"])
    assert "FunctionError" not in answer, (body, answer)
    return body, answer["ExecutedVersion"]


if phase == "create":
    client.create_function(
        FunctionName="python",
        Role="any",
        Runtime="python3.12",
        Handler="func.handler",
        Timeout=20,
        MemorySize=256,
        Code={"ZipFile": python("one")},
        Environment={"Variables": {"A": "1"}},
        Publish=True,
    )
    body, version = invoke("python")
    assert (body["said"], body["word"], body["name"], body["A"], version) == ([1], "one", "python", "1", "$LATEST"), body
    client.update_function_code(FunctionName="python", ZipFile=python("two"), Publish=True)
    assert invoke("python")[0]["word"] == "two"
    client.create_alias(FunctionName="python", Name="live", FunctionVersion="1")
    client.create_function(
        FunctionName="hand", Role="any", Runtime="provided.al2023", Handler="none", Code={"ZipFile": bootstrap()}, Timeout=20
    )

body, version = invoke("python", Qualifier="live")
assert (body["word"], version, body["arn"].rsplit(":", 1)[1]) == ("one", "1", "live"), body
assert invoke("hand")[0] == {"by hand": [1]}
if phase == "again":
    assert invoke("python")[0]["word"] == "two"
    assert [v["Version"] for v in client.list_versions_by_function(FunctionName="python")["Versions"]] == ["$LATEST", "1", "2"]
    client.delete_function(FunctionName="python")
print("done")
