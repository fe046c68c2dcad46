"""Runs a Python handler of AWS Lambda that came as a zip: by `awslambdaric`, where the zip or the host has it, else by what is below,
which speaks the same Runtime API and finds the same words for what is wrong."""

import http.client
import importlib
import importlib.util
import json
import logging
import os
import runpy
import sys
import time
import traceback
from decimal import Decimal

ROOT, HANDLER = os.environ["LAMBDA_TASK_ROOT"], sys.argv[1]
BASE = "/2018-06-01/runtime"


class Refused(Exception):
    """What is wrong, by the name that AWS has for it."""

    def __init__(self, kind, text):
        super().__init__(text)
        self.kind = kind


class Fields:
    """A mapping of the caller's as an object; what it does not say is None."""

    def __init__(self, names, said):
        for name in names:
            setattr(self, name, (said or {}).get(name))


class Context:
    def __init__(self, headers):
        self.aws_request_id = headers["Lambda-Runtime-Aws-Request-Id"]
        self.invoked_function_arn = headers["Lambda-Runtime-Invoked-Function-Arn"]
        self.tenant_id = headers["Lambda-Runtime-Aws-Tenant-Id"]
        self.function_name = os.environ["AWS_LAMBDA_FUNCTION_NAME"]
        self.function_version = os.environ["AWS_LAMBDA_FUNCTION_VERSION"]
        self.memory_limit_in_mb = os.environ["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"]
        self.log_group_name = os.environ["AWS_LAMBDA_LOG_GROUP_NAME"]
        self.log_stream_name = os.environ["AWS_LAMBDA_LOG_STREAM_NAME"]
        identity = json.loads(headers["Lambda-Runtime-Cognito-Identity"] or "null") or {}
        self.identity = Fields((), {})
        self.identity.cognito_identity_id = identity.get("cognitoIdentityId")
        self.identity.cognito_identity_pool_id = identity.get("cognitoIdentityPoolId")
        client = json.loads(headers["Lambda-Runtime-Client-Context"] or "null")
        self.client_context = client and Fields(("custom", "env", "client"), client)
        if self.client_context:
            names = ("installation_id", "app_title", "app_version_name", "app_version_code", "app_package_name")
            self.client_context.client = Fields(names, client.get("client"))
        self._deadline = int(headers["Lambda-Runtime-Deadline-Ms"])

    def get_remaining_time_in_millis(self):
        return max(0, self._deadline - int(time.time() * 1000))

    def log(self, message):
        sys.stdout.write(str(message))


class Lines(logging.Formatter):
    """Records as AWS writes them, with the call that they belong to."""

    converter = time.gmtime
    request = ""

    def format(self, record):
        record.request = Lines.request
        return super().format(record)


def log_as_aws_does():
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Lines("[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(request)s\t%(message)s", "%Y-%m-%dT%H:%M:%S"))
    logging.getLogger().addHandler(handler)


def found():
    module, dot, name = HANDLER.rpartition(".")
    if not dot:
        raise Refused("Runtime.MalformedHandlerName", f"Bad handler '{HANDLER}': write module.function")
    try:
        module = importlib.import_module(module.replace("/", "."))
    except SyntaxError as error:
        raise Refused("Runtime.UserCodeSyntaxError", f"Syntax error in module '{module}': {error}") from error
    except ImportError as error:
        raise Refused("Runtime.ImportModuleError", f"Unable to import module '{module}': {error}") from error
    handler = getattr(module, name, None)
    if handler is None:
        raise Refused("Runtime.HandlerNotFound", f"Handler '{name}' missing on module '{module.__name__}'")
    return handler


def number(value):
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def answered(handler, event, context):
    try:
        event = json.loads(event)
    except ValueError as error:
        raise Refused("Runtime.UnmarshalError", f"Unable to unmarshal input: {error}") from error
    result = handler(event, context)
    if isinstance(result, bytes):
        return result
    try:
        return json.dumps(result, default=number, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise Refused("Runtime.MarshalError", f"Unable to marshal response: {error}") from error


def failed(error, request=""):
    kind = error.kind if isinstance(error, Refused) else type(error).__name__
    # Without the lines of this file, and without the marks below a line: as AWS writes them.
    trace = [] if isinstance(error, Refused) else traceback.extract_tb(error.__traceback__)
    trace = [(at.filename, at.lineno, at.name, at.line) for at in trace if at.filename != failed.__code__.co_filename]
    trace = traceback.format_list(trace)
    sys.stdout.write(f"[ERROR] {kind}: {error}\n" + "".join(["Traceback (most recent call last):\n", *trace] if trace else []))
    sys.stdout.flush()
    body = {"errorMessage": str(error), "errorType": kind, "requestId": request, "stackTrace": trace}
    return json.dumps(body).encode(), {"Lambda-Runtime-Function-Error-Type": kind}


def main():
    # Layers come behind the code, as on AWS.
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    sys.path[:1] = [ROOT, "/opt/python", f"/opt/python/lib/{version}/site-packages"]
    if importlib.util.find_spec("awslambdaric"):
        runpy.run_module("awslambdaric", run_name="__main__", alter_sys=True)
        return
    # What was written before a process is ended is not lost with it.
    sys.stdout.reconfigure(line_buffering=True)
    api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])

    def ask(method, path, body=None, headers=None):
        api.request(method, BASE + path, body, headers or {})
        answer = api.getresponse()
        return answer.headers, answer.read()

    log_as_aws_does()
    try:
        handler = found()
    except Exception as error:
        ask("POST", "/init/error", *failed(error))
        sys.exit(1)
    while True:
        headers, event = ask("GET", "/invocation/next")
        request = Lines.request = headers["Lambda-Runtime-Aws-Request-Id"]
        os.environ.pop("_X_AMZN_TRACE_ID", None)
        if headers["Lambda-Runtime-Trace-Id"]:
            os.environ["_X_AMZN_TRACE_ID"] = headers["Lambda-Runtime-Trace-Id"]
        try:
            result = answered(handler, event, Context(headers))
        except Exception as error:
            ask("POST", f"/invocation/{request}/error", *failed(error, request))
        else:
            sys.stdout.flush()
            ask("POST", f"/invocation/{request}/response", result, {"Content-Type": "application/json"})


main()
