"""A function with Fn's development kit for Python, unchanged."""

import io
import json

from fdk import response


def handler(ctx, data: io.BytesIO = None):
    name = "world"
    try:
        name = json.loads(data.getvalue()).get("name", name)
    except ValueError:
        pass  # no JSON, no name
    return response.Response(
        ctx, response_data=json.dumps({"message": f"Hello, {name}!"}), headers={"Content-Type": "application/json"}
    )
