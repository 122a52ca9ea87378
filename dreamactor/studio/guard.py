"""What stands before the API: who may ask, from where, how much, and how slowly.

One ASGI middleware, so that it holds for whatever is mounted too:

  - `Host` names this machine, where only this machine is listened to (DNS rebinding);
  - requests that change something do not come from another site's page (CSRF);
  - the token, where there is one, as `Authorization: Bearer` or as the cookie of `POST /session`;
  - bodies are no larger than allowed, by what they announce and by what comes, and keep up a rate;
  - an answer that nobody reads is given up;
  - headers that keep browsers from guessing types, framing or sending us elsewhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dreamactor.errors import ConfigError
from dreamactor.studio.settings import Limits

COOKIE = "dreamactor_session"
SHORTEST = 16
"""Letters of a token; shorter ones can be guessed."""
JSON_BYTES = 64 << 10
"""Most bytes of a body that is no upload."""
READ_SECONDS = 60.0
"""Until a client that takes nothing of its answer is let go."""
LINGER = 2.0
"""Seconds for which the rest of a refused body is read and forgotten."""
SAFE = ("GET", "HEAD", "OPTIONS")
OPEN = ("/health", "/session", "/", "/studio.js", "/studio.css", "/favicon.svg")
"""Paths that need no token: no data is behind them."""
STRICT = "default-src 'none'; frame-ancestors 'self'"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "SAMEORIGIN",
    "Cache-Control": "no-store",
    "Content-Security-Policy": STRICT,
}


@dataclass(frozen=True)
class Access:
    """Who may ask."""

    hosts: tuple[str, ...]
    """Names in `Host`, without a port; ("*",) = any."""
    token: str | None = None

    def __post_init__(self) -> None:
        """Refuse a token that can be guessed.

        Raises:
            ConfigError: It is short, or not plain.
        """
        if self.token is not None and (
            len(self.token) < SHORTEST or not self.token.isascii() or not self.token.isprintable()
        ):
            raise ConfigError(
                f"DREAMACTOR_TOKEN: want {SHORTEST} or more plain letters and digits, "
                'such as of `python -c "import secrets; print(secrets.token_urlsafe())"`'
            )

    @property
    def cookie(self) -> str:
        """What a browser keeps in the token's place."""
        return hmac.new((self.token or "").encode(), b"session", hashlib.sha256).hexdigest()

    def knows(self, token: str) -> bool:
        """Whether this is the token, in a time that does not tell how near it is."""
        return self.token is None or hmac.compare_digest(token.encode(), self.token.encode())

    def admits(self, headers: Headers) -> bool:
        """Whether a request shows the token or the cookie."""
        if self.token is None:
            return True
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.knows(token.strip()):
            return True
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return found is not None and hmac.compare_digest(found.value, self.cookie)


class Guard:
    """The middleware."""

    def __init__(self, app: ASGIApp, access: Access, limits: Limits) -> None:
        self.app, self.access, self.limits = app, access, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no websockets here
        headers = Headers(scope=scope)
        body = _Body(receive, headers, self._most(scope), self.limits)
        answer = _Answer(send, body)
        try:
            for status, why in self._faults(scope, headers):
                return await refuse(answer, status, why)
            await self.app(scope, body, answer)
        except TimeoutError:
            if not answer.late:
                raise  # else nobody reads; the connection ends for want of an end of the answer

    def _faults(self, scope: Scope, headers: Headers) -> Iterator[tuple[int, str]]:
        host = headers.get("host", "")
        name = (urlsplit(f"//{host}").hostname or "") if _plain(host) else ""
        if "*" not in self.access.hosts and name not in self.access.hosts:
            yield 400, f"Host: want {' or '.join(self.access.hosts)}"
        if scope["method"] not in SAFE:
            origin = headers.get("origin")
            foreign = headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
            if foreign or (origin is not None and urlsplit(origin).netloc != host):
                yield 403, "this came from the page of another site"
        if scope["path"] not in OPEN and not self.access.admits(headers):
            yield 401, "want the server's token: Authorization: Bearer TOKEN"
        length, most = headers.get("content-length", "0"), self._most(scope)
        if not length.isdigit() or len(length) > 15:
            yield 400, "Content-Length: want a number"
        elif int(length) > most:
            yield 413, f"{int(length)} bytes are announced, the limit is {most}"

    def _most(self, scope: Scope) -> int:
        """Bytes that the body of a request may have."""
        if scope["path"] != "/uploads" or scope["method"] != "POST":
            return JSON_BYTES
        driving = b"kind=driving" in scope["query_string"]
        return self.limits.bytes_of("driving" if driving else "reference")


class _Body:
    """The body of a request: counted, and given up when it comes too slowly."""

    def __init__(self, receive: Receive, headers: Headers, most: int, limits: Limits) -> None:
        self._receive, self._most = receive, most
        self._patience, self._rate = limits.patience, limits.slowest << 10
        self._begun, self._bytes = time.monotonic(), 0
        self.unread = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        """Whether there is more of it."""
        self.late = False

    async def __call__(self) -> Message:
        if not self.unread:
            return await self._receive()  # waits for the client to go
        left = self._begun + self._patience + self._bytes / self._rate - time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(0, left))
        except TimeoutError as error:
            self.late = True
            seconds = time.monotonic() - self._begun
            raise HTTPException(
                408,
                f"{self._bytes} bytes in {seconds:.0f} s; want {self._rate >> 10} KiB a second",
            ) from error
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self.unread = message.get("more_body", False)
            if self._bytes > self._most:
                raise HTTPException(413, f"more than {self._most} bytes; that is the limit")
        return message

    async def drain(self) -> None:
        """Read on for a moment and forget it: who hangs up on a client that sends is not heard."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while self.unread:
                    message = await self._receive()
                    self.unread = message.get("more_body", False)


class _Answer:
    """The answer to a request: with our headers, and given up when nobody takes it."""

    def __init__(self, send: Send, body: _Body) -> None:
        self._send, self._body = send, body
        self.late = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            if self._body.unread:  # what is left of it is not the next request
                headers["Connection"] = "close"
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if last and self._body.unread and not self._body.late:
            await self._in_time({**message, "more_body": True})
            await self._body.drain()
            message = {"type": "http.response.body", "body": b""}
        await self._in_time(message)

    async def _in_time(self, message: Message) -> None:
        try:
            await asyncio.wait_for(self._send(message), READ_SECONDS)
        except TimeoutError:
            self.late = True
            raise


async def refuse(send: Send, status: int, why: str) -> None:
    """Answer with one line."""
    body = json.dumps({"error": why}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    raw = [(k.encode(), v.encode()) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _plain(host: str) -> bool:
    """Whether a `Host` can be taken apart."""
    try:
        return urlsplit(f"//{host}").port is not None or True
    except ValueError:
        return False
