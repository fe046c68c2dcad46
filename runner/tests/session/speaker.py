"""Speaks every format of STDIN and STDOUT by hand, so that it can misbehave. What it does with a call stands in the header
`X-Do`, in `mless` in the event."""
import base64, json, os, sys, time

FORMAT, MODE = os.environ["FN_FORMAT"], os.environ.get("MODE", "")
stdin, stdout = sys.stdin.buffer, sys.stdout.buffer


def say(text):
    """In one write."""
    stdout.write(text)
    stdout.flush()


def log(text):
    print(text, file=sys.stderr, flush=True)


def chunks():
    body = []
    while True:
        body.append(stdin.read(int(stdin.readline(), 16)))
        stdin.readline()
        if not body[-1]:
            return b"".join(body)


def http():
    if not stdin.readline():
        return None
    headers = {}
    while line := stdin.readline().strip().decode():
        name, value = line.split(":", 1)
        headers[name.lower()] = value.strip()
    do = headers.get("x-do", "echo")
    if do in ("early", "deaf"):
        return do, b"", headers
    return do, chunks() if "transfer-encoding" in headers else stdin.read(int(headers["content-length"])), headers


def json_http():
    head = stdin.readline()
    if not head:
        return None
    head = json.loads(head)
    stdin.readline()
    do = head["headers"].get("X-Do", ["echo"])[0]
    if do in ("early", "deaf"):
        return do, b"", head
    return do, chunks() if head.get("chunked") else stdin.read(head["body_length"]), head


def line():
    text = stdin.readline()
    if not text:
        return None
    call = json.loads(text)
    if FORMAT == "json":
        body = call["body"].encode()
        if call.get("body_encoding") == "base64":
            body = base64.b64decode(body)
        return call["protocol"]["headers"].get("X-Do", ["echo"])[0], body, call
    if FORMAT == "cloudevent":
        headers = call["extensions"]["protocol"]["headers"]
        return headers.get("X-Do", ["echo"])[0], call.get("data", "").encode(), call
    event = call["event"]
    return event.get("do", "echo"), event.get("body", "").encode(), call


def answer(body, call):
    if FORMAT == "http":
        return b"HTTP/1.1 200 OK\r\nX-Kit: py\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    if FORMAT == "json-http":
        return b'{"headers":{"X-Kit":["py"]},"body_length":%d}\n\n' % len(body) + body
    if FORMAT == "json":
        if "body_encoding" in call:
            return json.dumps({"body": base64.b64encode(body).decode(), "body_encoding": "base64"}).encode() + b"\n"
        return json.dumps({"body": body.decode(), "protocol": {"headers": {"X-Kit": ["py"]}}}).encode() + b"\n"
    if FORMAT == "cloudevent":
        return json.dumps({"contentType": "text/plain", "data": body.decode()}).encode() + b"\n"
    reply = {"result": body.decode(), "errortype": "", "invokeid": call["context"]["aws_request_id"], "errors": False}
    reply["billing"] = {"duration": 1.25, "memory": "128", "used": 31}
    return json.dumps(reply).encode() + b"\n\n"


def greet():
    if MODE == "hung":
        time.sleep(1000)
    if MODE == "babble":
        say(b"hello\n")
    hello = json.loads(stdin.readline())
    os.environ.update(hello["env"])
    if MODE == "refuse":
        log("no such handler: " + hello["handler"])
        say(b'{"OK":false}\n')
    if MODE == "chatty":
        say(b'{"ok":true} and more\n')
    say(b'{"OK":true}\n')


def later(text):
    """Says it when nobody asks any more."""
    if os.fork() == 0:
        time.sleep(0.2)
        say(text)
        os._exit(0)


if MODE == "exit":
    log("goodbye")
    sys.exit(3)
if MODE == "banner":
    say(b"Welcome to my function\n")
if MODE == "stone":
    time.sleep(1000)
if MODE == "slow":
    time.sleep(0.5)
if FORMAT == "mless":
    greet()

while asked := {"http": http, "json-http": json_http}.get(FORMAT, line)():
    do, body, call = asked
    if do == "sleep":
        time.sleep(float(body))
    elif do == "crash":
        log("last words")
        os._exit(7)
    elif do == "exit":
        log("done")
        os._exit(0)
    elif do == "kill":
        os.kill(os.getpid(), 9)
    elif do == "garbage":
        say(b"what?\n")
        continue
    elif do == "nothing":
        stdout.close()
        os.close(1)
        time.sleep(1000)
    elif do == "half":
        whole = answer(b"x" * 1000, call)
        say(whole[: len(whole) // 2])
        log("half a word")
        os._exit(0)
    elif do == "stuck":
        whole = answer(b"x" * 1000, call)
        say(whole[: len(whole) // 2])
        time.sleep(1000)
    elif do == "excess":
        say(answer(body, call) + b"XXX")
        continue
    elif do == "twice":
        say(answer(body, call) + answer(b"of another call", call))
        continue
    elif do == "late":
        say(answer(body, call))
        later(b"late!")
        continue
    elif do == "later-answer":
        say(answer(body, call))
        later(answer(b"of another call", call))
        continue
    elif do == "space":
        say(b"\r\n \t\n" + answer(body, call) + b"\r\n \t\n\n")
        continue
    elif do == "mute":
        say(answer(body, call))
        os.close(1)
        time.sleep(1000)
    elif do == "leave":
        say(answer(body, call))
        os._exit(0)
    elif do == "give":
        body = b"x" * int(body)
    elif do == "pid":
        body = str(os.getpid()).encode()
    elif do == "log":
        log("a line of the log")
    elif do == "env":
        body = json.dumps(dict(os.environ)).encode()
    elif do == "early":
        body = b"early"
    elif do == "deaf":
        os.close(0)
        body = b"deaf"
        say(answer(body, call))
        time.sleep(1000)
    elif do == "eat":
        held = b"x" * (1 << 30)
    elif do == "wrong-id":
        say(answer(body, call).replace(call["context"]["aws_request_id"].encode(), b"another"))
        continue
    elif do == "fail":
        say(json.dumps({"result": {"errorMessage": "no"}, "errorType": "Oops", "InvokeId": call["context"]["aws_request_id"], "errors": True}).encode())
        continue
    elif do == "deadline":
        body = str(call["deadline"]).encode()
    say(answer(body, call))
