"""A function with Fn's development kit for Python that does what the body says."""

import io
import json
import os

from fdk import response

calls = 0


def handler(ctx, data: io.BytesIO = None):
    global calls
    calls += 1
    body = json.loads(data.getvalue() or b"{}")
    what = body.get("do")
    if what == "throw":
        raise ValueError("thrown by the handler")
    if what == "exit":
        os._exit(3)
    if what == "status":
        said = {"method": ctx.Method(), "url": ctx.RequestURL()}
        return answer(ctx, said, status=201, headers={"X-Kit": "seen"})
    if what == "echo":
        return answer(ctx, body)
    return answer(ctx, {
        "calls": calls,
        "call_id": ctx.CallID(),
        "deadline": ctx.Deadline(),
        "header": ctx.Headers().get("x-any"),
        "app": ctx.AppName() if hasattr(ctx, "AppName") else os.environ.get("FN_APP_NAME"),
    })


def answer(ctx, said, status=200, headers=None):
    headers = {"Content-Type": "application/json", **(headers or {})}
    return response.Response(ctx, response_data=json.dumps(said), headers=headers, status_code=status)
