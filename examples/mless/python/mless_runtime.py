"""Runs a handler written for AWS Lambda in Stoker's format `mless`: `python3 mless_runtime.py`, with `handler: func.handler`.

First, once: {"handler": "func.handler", "env": {...}} on STDIN, {"ok": true} on STDOUT; `ok: false` if the handler cannot be loaded.
Then for each call: {"context": {...}, "deadline": milliseconds, "event": ...} on STDIN, and on STDOUT
{"result": ..., "errors": false, "errortype": "", "invokeid": the request's id, "billing": {"duration", "memory", "used"}}.
An exception is an answer too: `errors: true`, and the result says errorMessage, errorType and stackTrace.
The answers have STDOUT for themselves. What the handler prints, and what programs it starts print, is the log.
"""

import importlib
import json
import os
import resource
import sys
import time
import traceback


class CognitoIdentity:
    def __init__(self, told):
        self.cognito_identity_id = told.get("cognito_identity_id")
        self.cognito_identity_pool_id = told.get("cognito_identity_pool_id")


class Client:
    def __init__(self, told):
        for key in ("installation_id", "app_title", "app_version_name", "app_version_code", "app_package_name"):
            setattr(self, key, told.get(key))


class ClientContext:
    def __init__(self, told):
        self.client = Client(told.get("client") or {})
        self.custom = told.get("custom") or {}
        self.env = told.get("env") or {}


class Context:
    """What a handler is given besides the event: Lambda's names, mless' values."""

    def __init__(self, told, deadline):
        self.aws_request_id = told["aws_request_id"]
        self.invoked_function_arn = told["invoked_function_arn"]
        self.function_name = function_name(self.invoked_function_arn)
        self.function_version = os.environ.get("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
        self.memory_limit_in_mb = memory_size()
        self.log_group_name = os.environ.get("AWS_LAMBDA_LOG_GROUP_NAME", f"/aws/lambda/{self.function_name}")
        self.log_stream_name = os.environ.get("AWS_LAMBDA_LOG_STREAM_NAME", "")
        self.identity = CognitoIdentity(told.get("identity") or {})
        self.client_context = ClientContext(told["client_context"]) if told.get("client_context") else None
        self._deadline = deadline

    def get_remaining_time_in_millis(self):
        return max(0, int(self._deadline - time.time() * 1000))


def function_name(arn):
    return os.environ.get("AWS_LAMBDA_FUNCTION_NAME") or (arn.split(":") + [""] * 7)[6]


def memory_size():
    """Megabytes, as text: what Stoker gave the container, unless the environment names a size of its own."""
    return os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE") or os.environ.get("FN_MEMORY", "1536")


class Messages:
    """JSON values, one after the other: usually one a line, but a value may stand on several, or a line hold several."""

    def __init__(self, source):
        self.source, self.held, self.decoder = source, "", json.JSONDecoder()

    def next(self):
        """The next value; None when no more will come."""
        while True:
            self.held = self.held.lstrip()
            if self.held:
                try:
                    value, end = self.decoder.raw_decode(self.held)
                    self.held = self.held[end:]
                    return value
                except ValueError:
                    pass  # not all of it is there yet
            line = self.source.readline()
            if not line:
                return None
            self.held += line


def load(name):
    """`func.handler`, `package/func.handler` or `package.func.handler`, looked for where the function is."""
    module, dot, attribute = name.rpartition(".")
    if not dot:
        raise ValueError(f"the handler {name!r} is not of the form module.function")
    sys.path.insert(0, os.getcwd())
    return getattr(importlib.import_module(module.replace("/", ".")), attribute)


def failure(error):
    trace = traceback.extract_tb(error.__traceback__)
    return {
        "errorMessage": str(error),
        "errorType": type(error).__name__,
        # Without this file's own lines.
        "stackTrace": [list(frame) for frame in trace if frame.filename != __file__],
    }


def invoke(handler, request):
    """One call; gives the text of its reply."""
    context = Context(request["context"], request["deadline"])
    began = time.monotonic()
    errors = False
    try:
        result = json.dumps(handler(request["event"], context), allow_nan=False)
    except Exception as error:
        traceback.print_exc()
        errors, result = True, json.dumps(failure(error))
    reply = {
        "errortype": "unhandled" if errors else "",
        "invokeid": context.aws_request_id,
        "errors": errors,
        "billing": {
            "duration": (time.monotonic() - began) * 1000,
            "memory": memory_size(),
            "used": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        },
    }
    # The result is text already, so that a value that is no JSON was the handler's error.
    return f'{{"result":{result},{json.dumps(reply)[1:]}'


def main():
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)

    def answer(text):
        answers.write(text + "\n")
        answers.flush()

    messages = Messages(open(0, encoding="utf-8", closefd=False))
    startup = messages.next()
    if startup is None:
        return
    os.environ.update(startup.get("env") or {})
    os.environ["_HANDLER"] = startup["handler"]
    try:
        handler = load(startup["handler"])
    except Exception:
        traceback.print_exc()
        answer('{"ok":false}')
        sys.exit(1)
    answer('{"ok":true}')
    while (request := messages.next()) is not None:
        answer(invoke(handler, request))


if __name__ == "__main__":
    main()
