"""A function with Fn's kits for Python of the time of STDIN: 0.0.33 (json, cloudevent) and 0.0.7 (http)."""

import json

import fdk

calls = 0


def handler(ctx, data=None, loop=None):
    global calls
    calls += 1
    # Format http gives a stream, json a text, cloudevent what the text means.
    if hasattr(data, "readall"):
        data = data.readall().decode()
    if isinstance(data, str) and data.startswith("{"):
        data = json.loads(data)
    if isinstance(data, dict) and data.get("do") == "throw":
        raise ValueError("thrown by the handler")
    return {"calls": calls, "echo": data}


if __name__ == "__main__":
    fdk.handle(handler)
