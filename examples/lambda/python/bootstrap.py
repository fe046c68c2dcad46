"""A runtime for AWS Lambda handlers in one file, over the Runtime API: `python3 bootstrap.py`. AWS's own is `awslambdaric`."""

import importlib
import json
import os
import time
import traceback
import urllib.request

BASE = f"http://{os.environ['AWS_LAMBDA_RUNTIME_API']}/2018-06-01/runtime"


class Context:
    def __init__(self, headers):
        self.aws_request_id = headers["Lambda-Runtime-Aws-Request-Id"]
        self.invoked_function_arn = headers["Lambda-Runtime-Invoked-Function-Arn"]
        self.function_name = os.environ["AWS_LAMBDA_FUNCTION_NAME"]
        self.memory_limit_in_mb = os.environ["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"]
        self._deadline = int(headers["Lambda-Runtime-Deadline-Ms"])

    def get_remaining_time_in_millis(self):
        return max(0, self._deadline - int(time.time() * 1000))


def post(path, body):
    urllib.request.urlopen(f"{BASE}/{path}", json.dumps(body).encode()).close()


def failed(error):
    stack = traceback.format_tb(error.__traceback__)
    return {"errorMessage": str(error), "errorType": type(error).__name__, "stackTrace": stack}


try:
    module, name = os.environ["_HANDLER"].rsplit(".", 1)
    handler = getattr(importlib.import_module(module), name)
except Exception as error:
    post("init/error", failed(error))
    raise

while True:
    with urllib.request.urlopen(f"{BASE}/invocation/next") as request:
        context, event = Context(request.headers), json.load(request)
    try:
        post(f"invocation/{context.aws_request_id}/response", handler(event, context))
    except Exception as error:
        post(f"invocation/{context.aws_request_id}/error", failed(error))
