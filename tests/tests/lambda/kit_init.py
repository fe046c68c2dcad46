"""A handler whose module does what KIT_FIRST says when it is loaded for the first time in a sandbox, and tells how it was started."""

import json
import os
import time
import urllib.request

from snapshot_restore_py import register_after_restore

first = not os.path.exists("/tmp/tried")
open("/tmp/tried", "w").close()
if first and os.environ.get("KIT_FIRST") == "raise":
    raise RuntimeError("not at the first time")
if first and os.environ.get("KIT_FIRST") == "exit":
    os._exit(3)
if first and os.environ.get("KIT_FIRST") == "hang":
    time.sleep(3600)
restored = []


@register_after_restore
def after_restore():
    if os.environ.get("KIT_HOOK") == "raise":
        raise RuntimeError("thrown by a hook")
    restored.append("once")


def handler(event, context):
    keys = None
    if "AWS_CONTAINER_CREDENTIALS_FULL_URI" in os.environ:
        headers = {"Authorization": os.environ["AWS_CONTAINER_AUTHORIZATION_TOKEN"]}
        request = urllib.request.Request(os.environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"], headers=headers)
        keys = json.load(urllib.request.urlopen(request))
    if event.get("gate"):
        # Opening a named pipe returns when the other end is opened too, by another call.
        open(event["gate"], event["mode"]).close()
    return {
        "first": first,
        "kind": os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"],
        "container": os.environ["AWS_LAMBDA_LOG_STREAM_NAME"],
        "most": os.environ.get("AWS_LAMBDA_MAX_CONCURRENCY"),
        "key": os.environ.get("AWS_ACCESS_KEY_ID"),
        "keys": keys,
        "restored": restored,
        "pid": os.getpid(),
        "remaining": context.get_remaining_time_in_millis(),
    }
