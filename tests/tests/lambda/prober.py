"""A runtime of its own, that asks its Runtime API for everything that a good one does not, and answers with what it was told.

With INIT=exit in the environment it ends before it asks for work, with INIT=error after it posted an error of its init.
"""

import json
import os
import queue
import socket
import sys
import threading

HOST, PORT = os.environ["AWS_LAMBDA_RUNTIME_API"].split(":")
RUNTIME, EXTENSION = "/2018-06-01/runtime", "/2020-01-01/extension"
told = {}


def ask(method, path, body=b"", **headers):
    """One request on a connection of its own: status, headers in lower case without those of the day, body."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}:{PORT}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    with socket.create_connection((HOST, int(PORT))) as connection:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    said = dict(line.split(": ", 1) for line in lines)
    said = {name.lower(): value for name, value in said.items() if name.lower() not in ("date", "connection")}
    return {"status": int(status.split(" ")[1]), "headers": said, "body": body.decode()}


def note(step, *asked, **headers):
    told[step] = ask(*asked, **headers)
    return told[step]


def register(step, events, name="inside", **headers):
    body = events if isinstance(events, bytes) else json.dumps({"events": events}).encode()
    if name is not None:
        headers["Lambda-Extension-Name"] = name
    return note(step, "POST", f"{EXTENSION}/register", body, **headers)


note("ping", "GET", "/2018-06-01/ping")
note("no such path", "GET", "/2018-06-01/nothing")
note("no such version", "GET", "/2017-01-01/runtime/invocation/next")
note("another method of next", "POST", f"{RUNTIME}/invocation/next")
note("another method of response", "GET", f"{RUNTIME}/invocation/x/response")
note("another method of an init's error", "GET", f"{RUNTIME}/init/error")
note("a response before next", "POST", f"{RUNTIME}/invocation/x/response", b"1")
note("an error before next", "POST", f"{RUNTIME}/invocation/x/error", b"{}")
note("restore/next without snapshots", "GET", f"{RUNTIME}/restore/next")
note("restore/error without snapshots", "POST", f"{RUNTIME}/restore/error", b"{}")
note("credentials without snapshots", "GET", "/2021-04-23/credentials", Authorization="x")
if os.environ.get("INIT") == "error":
    note("init/error", "POST", f"{RUNTIME}/init/error", b'{"errorMessage":"mine","errorType":"Mine"}', Lambda_Runtime_Function_Error_Type="Runtime.Mine")
    sys.exit(1)
if os.environ.get("INIT") == "exit":
    sys.exit(7)

register("an extension without a name", ["INVOKE"], None)
register("an extension with an empty name", ["INVOKE"], "")
register("an extension without JSON", b"{")
register("an extension with keys", b'{"events":[],"configurationKeys":["a"]}')
register("an extension with an unknown event", ["SLEEP"])
register("an inner extension with SHUTDOWN", ["SHUTDOWN"])
one = register("an extension", ["INVOKE"], Lambda_Extension_Accept_Feature="accountId,more,")
register("an extension once more", ["INVOKE"])
register("an extension without events", b"{}", "second")
me = one["headers"].get("lambda-extension-identifier", "")
note("extension/next without an identifier", "GET", f"{EXTENSION}/event/next")
note("extension/next with none", "GET", f"{EXTENSION}/event/next", Lambda_Extension_Identifier="none")
nobody = "00000000-0000-4000-8000-000000000000"
note("extension/next with one of nobody", "GET", f"{EXTENSION}/event/next", Lambda_Extension_Identifier=nobody)
for end in ("init", "exit"):
    path = f"{EXTENSION}/{end}/error"
    note(f"extension's {end}/error without an identifier", "POST", path, b"{}")
    note(f"extension's {end}/error without a type", "POST", path, b"{}", Lambda_Extension_Identifier=me)
    note(f"extension's {end}/error with one of nobody", "POST", path, b"{}", Lambda_Extension_Identifier=nobody,
         Lambda_Extension_Function_Error_Type="Extension.X")
note("logs of nobody", "PUT", "/2020-08-15/logs", b"{}", Lambda_Extension_Identifier=nobody)
note("telemetry of nobody", "PUT", "/2022-07-01/telemetry", b"{}", Lambda_Extension_Identifier=nobody)
note("telemetry", "PUT", "/2022-07-01/telemetry", b"{}", Lambda_Extension_Identifier=me)


def extension(identifier):
    """Is told of everything, and does nothing."""
    while True:
        events.put(ask("GET", f"{EXTENSION}/event/next", Lambda_Extension_Identifier=identifier))


events = queue.Queue()
for step in ("an extension", "an extension without events"):
    identifier = told[step]["headers"].get("lambda-extension-identifier", "")
    threading.Thread(target=extension, args=(identifier,), daemon=True).start()

first = True
while True:
    work = note("next", "GET", f"{RUNTIME}/invocation/next")
    at = f"{RUNTIME}/invocation/{work['headers']['lambda-runtime-aws-request-id']}"
    event = json.loads(work["body"])
    do = event["do"]
    if first:
        first = False
        note("next once more", "GET", f"{RUNTIME}/invocation/next")
        note("init/error after next", "POST", f"{RUNTIME}/init/error", b"{}")
        note("restore/next after next", "GET", f"{RUNTIME}/restore/next")
        note("a response of another call", "POST", f"{RUNTIME}/invocation/{nobody}/response", b"1")
        note("an error of another call", "POST", f"{RUNTIME}/invocation/{nobody}/error", b"{}")
        note("a response of a call that is none", "POST", f"{RUNTIME}/invocation/%3Cscript%3E/response", b"1")
        register("an extension too late", ["INVOKE"], "late")
        note("telemetry too late", "PUT", "/2022-07-01/telemetry", b"{}", Lambda_Extension_Identifier=me)
    if do == "tell":
        if "an event of the extension" not in told:
            told["an event of the extension"] = events.get()
        note("a response", "POST", f"{at}/response", json.dumps(told).encode(), Content_Type="application/json")
        note("a response once more", "POST", f"{at}/response", b"1")
        note("an error after a response", "POST", f"{at}/error", b"{}")
        note("init/error after a response", "POST", f"{RUNTIME}/init/error", b"{}")
    elif do == "error":
        kind = {"Lambda-Runtime-Function-Error-Type": event["type"]} if "type" in event else {}
        note("an error", "POST", f"{at}/error", event["body"].encode(), **{"Content-Type": event.get("as", "application/json"), **kind})
        note("an error once more", "POST", f"{at}/error", b"{}")
        note("a response after an error", "POST", f"{at}/response", b"1")
    elif do == "answer":
        note("an answer", "POST", f"{at}/response", event["body"].encode(), **event.get("headers", {}))
    elif do == "large":
        note("a response that is too large", "POST", f"{at}/response", b"x" * event["size"])
        note("an error after what was too large", "POST", f"{at}/error", b"{}")
    elif do == "stream":
        with socket.create_connection((HOST, int(PORT))) as connection:
            head = f"POST {at}/response HTTP/1.1\r\nHost: x\r\nConnection: close\r\nLambda-Runtime-Function-Response-Mode: streaming\r\nTransfer-Encoding: chunked\r\n"
            end = f"0\r\n{event.get('trailers', '')}\r\n"
            named = event.get("trailer", "")
            connection.sendall((head + named + "\r\n3\r\none\r\n3\r\ntwo\r\n" + end).encode())
            while connection.recv(1 << 16):
                pass
    elif do == "cut":
        with socket.create_connection((HOST, int(PORT))) as connection:
            connection.sendall(f"POST {at}/response HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf".encode())
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1 << 16)
    elif do == "exit":
        os._exit(event["status"])
