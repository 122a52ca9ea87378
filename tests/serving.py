"""A server of the studio's API inside a test, with jobs done by a thread, and a client for it."""

import http.client
import json
import threading
import time
from contextlib import contextmanager

import numpy as np
import uvicorn
from fake_animator import Fake, tell
from filming import film

from dreamactor.image import write_png
from dreamactor.local import listen
from dreamactor.studio.api import create_api
from dreamactor.studio.guard import Access
from dreamactor.studio.queue import Queue
from dreamactor.studio.server import config
from dreamactor.studio.settings import Limits, Setup
from dreamactor.studio.words import Words
from dreamactor.studio.worker import do


class Crew:
    """One worker, as a thread: nothing to spawn, nothing to kill. Wants the folder as cwd."""

    def __init__(self, queue, setup, animator):
        self.devices = {"0-cpu": "cpu"}
        self.queue, self.setup, self.animator = queue, setup, animator
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.work)

    alive = 1

    def work(self):
        while not self.over.wait(0.02):
            job = self.queue.claim("0-cpu") if self.animator else None
            if job is not None:
                do(self.queue, job, "cpu", self.setup, self.animator)

    def start(self):
        self.queue.release(blame=False)
        self.thread.start()

    def stop(self):
        self.over.set()
        self.thread.join()


class Client:
    """Asks; whatever is not said otherwise is JSON."""

    def __init__(self, port, token=None, root=None):
        self.port, self.token, self.root = port, token, root

    def ask(self, method, path, said=None, body=None, headers=None):
        """(status, headers, content) of one request."""
        headers = dict(headers or {})
        if said is not None:
            body = json.dumps(said)
            headers.setdefault("Content-Type", "application/json")
        if self.token:
            headers.setdefault("Authorization", f"Bearer {self.token}")
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            link.request(method, path, body, headers)
            reply = link.getresponse()
            content = reply.read()
        finally:
            link.close()
        kind = reply.headers.get("content-type", "")
        return reply.status, reply.headers, json.loads(content) if "json" in kind else content

    def get(self, path):
        status, _, content = self.ask("GET", path)
        assert status == 200, content
        return content

    def upload(self, kind, path):
        content = path if isinstance(path, bytes) else path.read_bytes()
        return self.ask("POST", f"/uploads?kind={kind}", body=content)

    def order(self, reference, driving, **settings):
        """An order of two files."""
        ids = {}
        for kind, path in (("reference", reference), ("driving", driving)):
            status, _, said = self.upload(kind, path)
            assert status == 201, said
            ids[kind] = said["id"]
        return {**ids, "consent": True, **settings}

    def submit(self, order):
        status, _, said = self.ask("POST", "/jobs", order)
        assert status == 201, said
        return said["id"]

    def wait(self, job, *states, seconds=20):
        end = time.monotonic() + seconds
        while (said := self.get(f"/jobs/{job}"))["state"] not in states:
            assert time.monotonic() < end, said
            time.sleep(0.02)
        return said


@contextmanager
def served(root, animator=None, setup=None, token=None, extend=(), words=None, **limits):
    """A client of a server in a thread; `animator` None leaves jobs in the queue."""
    root.mkdir(exist_ok=True)
    setup, limits = setup or Setup(), Limits(**{"free_mb": 1, **limits})
    queue = Queue(root / "queue.sqlite")
    app = create_api(
        root, queue, setup, limits, Access(("127.0.0.1", "localhost"), token),
        Crew(queue, setup, animator), words or Words("offline", tell), extend,
    )  # fmt: skip
    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(config(app, limits))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield Client(listening.getsockname()[1], token, root)
        finally:
            server.should_exit = True
            thread.join(20)
            queue.close()


def write_inputs(folder, frames=24, fps=12, sound=None):
    """A picture and a clip of two seconds."""
    picture = np.zeros((60, 40, 3), np.uint8)
    picture[:, :, 2] = 200
    write_png(folder / "who.png", picture)
    film(folder / "dance.mp4", frames, fps=fps, audio=sound)
    return folder / "who.png", folder / "dance.mp4"


__all__ = ["Client", "Crew", "Fake", "served", "write_inputs"]
