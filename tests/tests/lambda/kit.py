"""A handler for AWS's runtime client for Python that does what its event says."""

import json
import os
import signal
import sys
import time

calls = 0


def handler(event, context):
    global calls
    calls += 1
    do = event.get("do") if isinstance(event, dict) else None
    if do == "throw":
        raise ValueError("thrown on purpose")
    if do == "exit":
        os._exit(event["status"])
    if do == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if do == "hang":
        time.sleep(3600)
    if do == "large":
        return "x" * event["size"]
    if do == "echo":
        return event
    if do == "nothing":
        return None
    if do == "log":
        print("printed", context.aws_request_id)
        print("complained", context.aws_request_id, file=sys.stderr)
    if do == "meet":
        # Opening a named pipe returns when the other end is opened too: by another call, in another process.
        open(event["gate"], event["mode"]).close()
    seen = None
    if do == "tmp":
        with open("/tmp/seen", "a+") as file:
            file.write("x")
            file.seek(0)
            seen = len(file.read())
    custom = context.client_context.custom if context.client_context else None
    return {
        "calls": calls,
        "pid": os.getpid(),
        "seen": seen,
        "request_id": context.aws_request_id,
        "arn": context.invoked_function_arn,
        "name": context.function_name,
        "memory": context.memory_limit_in_mb,
        "remaining": context.get_remaining_time_in_millis(),
        "tenant": getattr(context, "tenant_id", None),
        "custom": custom,
        "identity": context.identity.cognito_identity_id if context.identity else None,
        "trace": os.environ.get("_X_AMZN_TRACE_ID"),
        "env": dict(os.environ),
    }


def http(event, context):
    """A function URL's event in, its answer out."""
    return {
        "statusCode": 201,
        "headers": {"x-kit": "python", "content-type": "application/json"},
        "cookies": ["a=1", "b=2"],
        "body": json.dumps(event),
    }
