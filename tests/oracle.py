"""A server that speaks the OpenAI protocol on this machine, with faults on demand.

Each request takes the next item of `script`; the last one stays. An item is what the model says
(str), or a fault: a function that gets the handler.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Oracle:
    def __init__(self, script):
        self.script, self.bodies, self.headers, self.times = list(script), [], [], []
        self.url = ""

    def next(self):
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]


@contextmanager
def oracle(*script):
    """Serve; yields what was asked so far and where."""
    seen = Oracle(script)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/v1/chat/completions"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.bodies.append(json.loads(body))
            seen.headers.append(dict(self.headers))
            seen.times.append(time.monotonic())
            item = seen.next()
            if isinstance(item, str):
                send(self, completion(item))
            else:
                item(self)

        def log_message(self, *_):
            pass

        def handle(self):
            with suppress(OSError):  # the client hung up, as it should
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    seen.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def completion(words, reason="stop", **message):
    said = {"role": "assistant", "content": words, **message}
    return json.dumps({"choices": [{"index": 0, "message": said, "finish_reason": reason}]})


def send(handler, text, status=200, **headers):
    data = text.encode()
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


# ---- faults ----------------------------------------------------------------------------------


def status(number, text="{}", **headers):
    return lambda handler: send(handler, text, number, **headers)


def silent(handler):
    """Takes the request and says nothing for a long time."""
    time.sleep(20)


def dripping(handler):
    """One byte now and then, so that no single read ever waits long."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


def dripping_head(handler):
    """The same before the first byte of the body."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    for _ in range(200):
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.1)


def half(handler):
    """The length of a reply, and half of it."""
    data = completion("waves both arms").encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.close_connection = True


def truncated(handler):
    """A whole reply whose JSON ends too early."""
    send(handler, completion("waves both arms")[:-20])


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * 65536)


def refusal(handler):
    send(handler, completion(None, refusal="I'm sorry, I can't help with that."))


def cut(handler):
    send(handler, completion("waves both", "length"))
