"""A function for Fn's kits for Python of the time of STDIN: 0.0.33 (json, cloudevent) and 0.0.7 (http)."""

import fdk


def handler(ctx, data=None, loop=None):
    # Format http gives a stream.
    return {"echo": data.readall().decode() if hasattr(data, "readall") else data}


if __name__ == "__main__":
    fdk.handle(handler)
