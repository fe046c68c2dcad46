"""Runs a Python handler of AWS Lambda that came as a zip: by `awslambdaric`, where the zip or the host has it, else by what is below,
which speaks the same Runtime API and finds the same words for what is wrong."""

import importlib
import importlib.util
import json
import logging
import os
import runpy
import socket
import sys
import time
import traceback
from decimal import Decimal

ROOT, HANDLER = os.environ["LAMBDA_TASK_ROOT"], sys.argv[1]
API = os.environ["AWS_LAMBDA_RUNTIME_API"]
# Bytes that an answer may have.
LIMIT = 6 * 1024 * 1024 + 100


def asking(method, what, body=b"", **headers):
    """A request."""
    lines = [f"{method} /2018-06-01/runtime/{what} HTTP/1.1", f"host: {API}", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "\r\n"]).encode() + body


NEXT = asking("GET", "invocation/next")


class Connection:
    """One to the Runtime API, by hand: Python's HTTP client costs several times what an exchange does."""

    def __init__(self):
        host, port = API.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answers = self.socket.makefile("rb", 64 * 1024)

    def ask(self, *requests):
        """Makes them in one write; gives the headers and the body of the last answer."""
        self.socket.sendall(b"".join(requests))
        for _ in requests:
            headers = dict(self.lines())
            body = self.answers.read(int(headers.get("content-length", 0)))
        return headers, body

    def lines(self):
        """The headers of an answer: those of the Runtime API have a length, all of them."""
        while True:
            line = self.answers.readline()
            if not line:
                raise ConnectionError("the Runtime API has closed its connection")
            if line == b"\r\n":
                return
            name, _, value = line.decode(errors="replace").partition(":")
            yield name.lower(), value.strip()


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
        self.aws_request_id = headers["lambda-runtime-aws-request-id"]
        self.invoked_function_arn = headers.get("lambda-runtime-invoked-function-arn")
        self.tenant_id = headers.get("lambda-runtime-aws-tenant-id")
        self.function_name = os.environ["AWS_LAMBDA_FUNCTION_NAME"]
        self.function_version = os.environ["AWS_LAMBDA_FUNCTION_VERSION"]
        self.memory_limit_in_mb = os.environ["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"]
        self.log_group_name = os.environ["AWS_LAMBDA_LOG_GROUP_NAME"]
        self.log_stream_name = os.environ["AWS_LAMBDA_LOG_STREAM_NAME"]
        identity = json.loads(headers.get("lambda-runtime-cognito-identity") or "null") or {}
        self.identity = Fields((), {})
        self.identity.cognito_identity_id = identity.get("cognitoIdentityId")
        self.identity.cognito_identity_pool_id = identity.get("cognitoIdentityPoolId")
        client = json.loads(headers.get("lambda-runtime-client-context") or "null")
        self.client_context = client and Fields(("custom", "env", "client"), client)
        if self.client_context:
            names = ("installation_id", "app_title", "app_version_name", "app_version_code", "app_package_name")
            self.client_context.client = Fields(names, client.get("client"))
        self._deadline = int(headers["lambda-runtime-deadline-ms"])

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


def failing(what, error, request=""):
    """The request that tells it; in the log it is at once."""
    kind = error.kind if isinstance(error, Refused) else type(error).__name__
    # Without the lines of this file, and without the marks below a line: as AWS writes them.
    trace = [] if isinstance(error, Refused) else traceback.extract_tb(error.__traceback__)
    trace = [(at.filename, at.lineno, at.name, at.line) for at in trace if at.filename != failing.__code__.co_filename]
    trace = traceback.format_list(trace)
    sys.stdout.write(f"[ERROR] {kind}: {error}\n" + "".join(["Traceback (most recent call last):\n", *trace] if trace else []))
    sys.stdout.flush()
    body = {"errorMessage": str(error), "errorType": kind, "requestId": request, "stackTrace": trace}
    # It becomes a header, whatever a handler calls its errors.
    kind = "".join(letter for letter in kind[:1000] if " " <= letter <= "~")
    return asking("POST", what, json.dumps(body).encode(), content_type="application/json", lambda_runtime_function_error_type=kind)


def main():
    # Layers come behind the code, as on AWS.
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    sys.path[:1] = [ROOT, "/opt/python", f"/opt/python/lib/{version}/site-packages"]
    if importlib.util.find_spec("awslambdaric"):
        runpy.run_module("awslambdaric", run_name="__main__", alter_sys=True)
        return
    # What was written before a process is ended is not lost with it.
    sys.stdout.reconfigure(line_buffering=True)
    api = Connection()
    log_as_aws_does()
    try:
        handler = found()
    except Exception as error:
        api.ask(failing("init/error", error))
        sys.exit(1)
    answer = []
    while True:
        headers, event = api.ask(*answer, NEXT)
        request = Lines.request = headers["lambda-runtime-aws-request-id"]
        os.environ.pop("_X_AMZN_TRACE_ID", None)
        if headers.get("lambda-runtime-trace-id"):
            os.environ["_X_AMZN_TRACE_ID"] = headers["lambda-runtime-trace-id"]
        try:
            result = answered(handler, event, Context(headers))
        except Exception as error:
            answer = [failing(f"invocation/{request}/error", error, request)]
        else:
            sys.stdout.flush()
            # One that is too long is refused for that: more than shows it is not needed.
            answer = [asking("POST", f"invocation/{request}/response", result[: LIMIT + 1], content_type="application/json")]


main()
