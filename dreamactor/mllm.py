"""Ask a vision-language model about pictures: one call, three ways to answer it.

    Endpoint   any server that speaks the OpenAI protocol: vLLM, Ollama, hosted ones
    Local      a model of the Qwen-VL family in this process, through transformers
    Recorded   answers that were written down before, for tests

The environment says which one (`from_environment`):

    DREAMACTOR_MLLM_URL      base of an endpoint, such as http://localhost:11434/v1
    DREAMACTOR_MLLM_MODEL    the endpoint's model; without a URL a folder or hub name for Local
    DREAMACTOR_MLLM_KEY      the endpoint's key, if it wants one
    DREAMACTOR_MLLM_TIMEOUT  seconds for one answer, all attempts included; default 60

A key is sent to its endpoint and nowhere else: it is in no message, name, record or repr.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, get_args
from urllib.parse import urlsplit

from PIL import Image

from dreamactor.errors import AnswerError, ConfigError, WeightsError
from dreamactor.image import Rgb

T = TypeVar("T")
Describer = Literal["auto", "offline"]
"""Who describes: the model that the environment names if it names one, or never a model."""

ATTEMPTS = 3
PAUSE = 0.5  # seconds before the second attempt, twice that before the third
TOKENS = 300
"""Most tokens of an answer, unless a client is told otherwise."""
LARGEST = 1 << 20  # bytes of a reply that are read; an answer has a few hundred
OPTIONAL = ("temperature", "max_tokens")  # some hosted models refuse these: asked without
DEFAULT_SECONDS = 60.0
FAMILY = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
"""Kinds of model whose prompt is put together here."""
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError)
"""What transformers raises on folders that are missing or damaged."""
PAD = "<|image_pad|>"
"""Token that stands for one cell of a picture."""
VARIABLES = tuple(f"DREAMACTOR_MLLM_{name}" for name in ("URL", "MODEL", "KEY", "TIMEOUT"))


class Client(Protocol):
    """Something that looks at pictures and answers in words."""

    @property
    def name(self) -> str:
        """For records: the model's name, without address or key."""

    def ask(self, images: Sequence[Rgb], text: str) -> str:
        """The answer to `text` about `images`, (H, W, 3) uint8 each.

        Raises:
            AnswerError: There was none in the time allowed.
            ConfigError: The settings are wrong, so asking again would not help.
        """


def choose(describer: str, device: str = "cpu") -> Client | None:
    """Who is asked; None where nobody is, and the offline describer does it.

    Raises:
        ConfigError: Another word, or a variable of the environment that cannot work.
    """
    if describer not in get_args(Describer):
        raise ConfigError(f"describer={describer!r}: want {' or '.join(get_args(Describer))}")
    return from_environment(os.environ, device) if describer == "auto" else None


def from_environment(
    environ: Mapping[str, str], device: str = "cpu", tokens: int | None = None
) -> Client | None:
    """The client that the environment names, or None.

    Args:
        environ: `os.environ`.
        device: Where a local model runs.
        tokens: Most of an answer; None takes `TOKENS`.

    Raises:
        ConfigError: A variable has a value that cannot work.
    """
    url, model, key, timeout = (environ.get(name, "").strip() for name in VARIABLES)
    if not url and not model:
        return None
    try:
        seconds = float(timeout or DEFAULT_SECONDS)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 3600:
        raise ConfigError(f"{VARIABLES[3]}={timeout!r}: want seconds, more than 0, at most 3600")
    if not url:
        return Local(model, seconds, device, tokens)
    return Endpoint(url, model, key, seconds, tokens)


@dataclass(frozen=True)
class Endpoint:
    """A server that speaks the OpenAI protocol.

    Attempts that fail for a passing reason (no connection, 429, 5xx, half a reply) are repeated
    while the time lasts; a server's Retry-After is kept to.
    """

    url: str
    """Base, to which /chat/completions is added."""
    model: str
    key: str = field(default="", repr=False)
    seconds: float = DEFAULT_SECONDS
    """For one answer, attempts and pauses included."""
    tokens: int | None = None
    """Most of an answer; None takes `TOKENS`."""

    def __post_init__(self) -> None:
        """Check everything that can be checked without a connection; see `Client.ask`."""
        try:
            parts = urlsplit(self.url)
            bare = (parts.hostname, parts.port, parts.username)  # a bad port raises here
        except ValueError:
            parts, bare = urlsplit(""), (None, None, None)
        if parts.scheme not in ("http", "https") or not bare[0]:
            # not quoted: who mixes the variables up has the key in this one
            raise ConfigError(f"{VARIABLES[0]}: not an address; want http://HOST:PORT/v1")
        if bare[2] is not None or parts.query or parts.fragment:
            raise ConfigError(f"{VARIABLES[0]}: a key in the address; put it in {VARIABLES[2]}")
        if not self.model:
            raise ConfigError(f"{VARIABLES[0]} is set, {VARIABLES[1]} is not; name a model too")
        if not (self.key.isascii() and self.key.isprintable()):
            raise ConfigError(f"{VARIABLES[2]}: want printable ASCII; is there a line break in it?")

    @property
    def name(self) -> str:
        """The model's."""
        return self.model

    def ask(self, images: Sequence[Rgb], text: str) -> str:
        """See `Client`."""
        content = [{"type": "text", "text": text}, *map(_part, images)]
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            **{"temperature": 0, "max_tokens": self.tokens or TOKENS, "stream": False},
        }
        deadline = time.monotonic() + self.seconds
        for attempt in count(1):
            left = deadline - time.monotonic()
            try:
                return self._answer(*within(left, partial(self._post, body, left)), body)
            except _PassingError as fault:
                wait = max(fault.wait, PAUSE * 2 ** (attempt - 1))
                if attempt >= ATTEMPTS or time.monotonic() + wait >= deadline:
                    times = "once" if attempt == 1 else f"{attempt} times"
                    raise AnswerError(f"{self.name}: {fault} (asked {times})") from None
                time.sleep(wait)
        raise AssertionError

    def _post(self, body: Mapping[str, Any], seconds: float) -> tuple[int, str, bytes]:
        """Status, Retry-After and body of one reply."""
        import httpx2  # 0.06 s

        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        where = self.url.rstrip("/") + "/chat/completions"
        reply = bytearray()
        try:
            with (
                httpx2.Client(timeout=max(seconds, 0.001)) as client,
                client.stream("POST", where, json=dict(body), headers=headers) as response,
            ):
                for piece in response.iter_bytes():
                    reply += piece
                    if len(reply) > LARGEST:
                        raise _PassingError("a reply of more than 1 MB")
        except httpx2.TimeoutException:
            raise _PassingError(f"no answer in {self.seconds:g} s") from None
        except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
            raise _PassingError(f"no connection ({type(error).__name__})") from None
        return response.status_code, response.headers.get("retry-after", ""), bytes(reply)

    def _answer(self, status: int, after: str, reply: bytes, body: dict[str, Any]) -> str:
        """The words of a reply; what the server refuses of `body` is taken out of it."""
        if status in (408, 409, 425, 429) or status >= 500:
            raise _PassingError(f"status {status}", _seconds(after))
        if status != 200:
            said = "" if status in (401, 403) else self._censored(reply.decode("utf-8", "replace"))
            refused = [name for name in OPTIONAL if name in body and name in said]
            if status == 400 and refused:
                for name in refused:
                    del body[name]
                raise _PassingError(f"status 400: refuses {', '.join(refused)}")
            about = {401: f"; is {VARIABLES[2]} right?", 403: f"; is {VARIABLES[2]} right?"}
            about[404] = f"; are {VARIABLES[0]} and {VARIABLES[1]} right?"
            said = f" ({' '.join(said.split())[:160]})" if said.strip() else ""
            raise ConfigError(f"{self.name}: status {status}{about.get(status, '')}{said}")
        try:
            choice = json.loads(reply)["choices"][0]
            message = choice["message"]
            words = message.get("content") or message.get("refusal") or ""
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise _PassingError("a reply that is no chat completion") from None
        if not isinstance(words, str) or not words.strip():
            raise _PassingError("an empty answer")
        if choice.get("finish_reason") == "length":
            raise _PassingError(f"an answer cut off at {body.get('max_tokens', 'the most')} tokens")
        return self._censored(words)

    def _censored(self, words: str) -> str:
        return words.replace(self.key, "***") if self.key else words


class Local:
    """A model of the Qwen-VL family, loaded at the first question.

    Pictures and words become one prompt here, and not by transformers' processor: that one wants
    torchvision for clips, which are never asked about. Only safetensors are read, and no code.

    Args:
        model: Folder, or name on the hub.
        seconds: Most seconds of generating one answer; loading comes on top.
        device: Where it runs.
        tokens: Most of an answer; None takes `TOKENS`.
    """

    def __init__(
        self,
        model: str | Path,
        seconds: float = DEFAULT_SECONDS,
        device: str = "cpu",
        tokens: int | None = None,
    ) -> None:
        self._source, self._seconds, self._device = str(model), seconds, device
        self._tokens = tokens
        self._loaded: tuple[Any, Any, Any] | None = None

    @property
    def name(self) -> str:
        """The folder's, or the hub's."""
        return Path(self._source).name if Path(self._source).is_dir() else self._source

    def ask(self, images: Sequence[Rgb], text: str) -> str:
        """The likeliest answer.

        Raises:
            AnswerError: The time was over before the answer was.
            WeightsError: There is no such model, or it is of another family.
        """
        import torch

        loaded = self._load()
        try:
            return self._generate(images, text, *loaded)
        except (ValueError, torch.OutOfMemoryError) as error:  # a strip of a picture; too many
            raise AnswerError(f"{self.name}: {' '.join(str(error).split())[:160]}") from error

    def _generate(
        self, images: Sequence[Rgb], text: str, model: Any, tokenizer: Any, pictures: Any
    ) -> str:
        import torch

        shown = [Image.fromarray(image) for image in images]
        seen = pictures(images=shown, return_tensors="pt") if shown else {}
        prompt = self._prompt(tokenizer, text, self._cells(seen, pictures.merge_size))
        words = tokenizer(prompt, return_tensors="pt")
        is_picture = words["input_ids"] == tokenizer.convert_tokens_to_ids(PAD)
        given = {**words, **seen, "mm_token_type_ids": is_picture.int()}
        given = {key: value.to(self._device) for key, value in given.items()}
        most = self._tokens or TOKENS
        with torch.inference_mode():
            tokens = model.generate(
                **given, max_new_tokens=most, do_sample=False, max_time=self._seconds
            )[0, words["input_ids"].shape[1] :]
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        if tokens[-1].item() not in ends:
            limits = f"{most} tokens or {self._seconds:g} s"
            raise AnswerError(f"{self.name}: the answer was not over after {limits}")
        return str(tokenizer.decode(tokens, skip_special_tokens=True))

    @staticmethod
    def _cells(seen: Any, merge: int) -> list[int]:
        """Tokens of each picture: its patches, merged `merge` by `merge`."""
        grids = seen["image_grid_thw"].prod(dim=1).tolist() if seen else []
        return [int(patches) // merge**2 for patches in grids]

    @staticmethod
    def _prompt(tokenizer: Any, text: str, cells: Sequence[int]) -> str:
        """The chat with as many `PAD` as each picture has cells."""
        shown = "".join(f"<|vision_start|>{PAD * number}<|vision_end|>" for number in cells)
        turn = [{"role": "user", "content": shown + text.replace("<|", "< |")}]
        return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))

    def _load(self) -> tuple[Any, Any, Any]:
        """Model, tokenizer and what turns pictures into patches."""
        if self._loaded is None:
            from transformers import (
                AutoImageProcessor,
                AutoModelForImageTextToText,
                AutoTokenizer,
                PreTrainedConfig,
            )

            source, safe = self._source, {"trust_remote_code": False}
            try:
                kind = PreTrainedConfig.get_config_dict(source, **safe)[0].get("model_type")
                if kind not in FAMILY:
                    wanted = ", ".join(FAMILY)
                    raise WeightsError(f"{source}: is {kind or 'no model'}, want one of {wanted}")
                model: Any = AutoModelForImageTextToText.from_pretrained(
                    source, dtype="auto", use_safetensors=True, **safe
                )
                model = model.to(self._device).eval()
                tokenizer = AutoTokenizer.from_pretrained(source, **safe)
                pictures = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                    source, backend="pil", **safe
                )
            except DAMAGE as error:
                reason = " ".join(str(error).split())[:120] or type(error).__name__
                raise WeightsError(
                    f"{source}: want a folder or hub name of a Qwen-VL model: {reason}"
                ) from error
            self._loaded = (model, tokenizer, pictures)
        return self._loaded


@dataclass(frozen=True)
class Recorded:
    """Answers that were written down before, by `request_id`.

    Example:
        >>> Recorded({request_id([], "What moves?"): "a fox"}).ask([], "What moves?")
        'a fox'
    """

    answers: Mapping[str, str]
    name: str = "recorded"

    @classmethod
    def read(cls, path: Path) -> Recorded:
        """From a JSON object, request -> answer.

        Raises:
            ConfigError: No such file, or not such an object.
        """
        try:
            answers = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: want a JSON file of recorded answers: {error}") from error
        if not isinstance(answers, dict) or not all(isinstance(a, str) for a in answers.values()):
            raise ConfigError(f"{path}: want a JSON object of texts")
        return cls(answers)

    def ask(self, images: Sequence[Rgb], text: str) -> str:
        """See `Client`."""
        key = request_id(images, text)
        if key not in self.answers:
            raise AnswerError(f"{self.name}: no answer to request {key[:12]}")
        return self.answers[key]


def request_id(images: Sequence[Rgb], text: str) -> str:
    """Hex digest of what is asked: the words, and size and pixels of every picture."""
    digest = hashlib.sha256(text.encode())
    for image in images:
        digest.update(repr(image.shape).encode() + image.tobytes())
    return digest.hexdigest()


def read_prompt(path: Path) -> tuple[int, str]:
    """Version and words of a prompt of ours; `$name` stands for what is filled in."""
    first, _, words = path.read_text(encoding="utf-8").partition("\n")
    return int(first.removeprefix("version: ")), words.strip()


class _PassingError(Exception):
    """A fault that may be gone at the next attempt, after `wait` seconds."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns, for which it has so many seconds.

    A library's own timeouts count from byte to byte, so a server that drips would hold us for
    ever. The call goes on in a daemon thread that nobody waits for.

    Raises:
        _PassingError: The time is over.
    """
    results: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            results.put((call(), None))
        except BaseException as error:
            results.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        result, error = results.get(timeout=max(seconds, 0.001))
    except queue.Empty:
        raise _PassingError("no answer in time") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def _part(image: Rgb) -> dict[str, Any]:
    """A picture as a part of a message."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90)
    url = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def _seconds(after: str) -> float:
    """Of a Retry-After: a number or a date; 0 where it is neither."""
    with suppress(ValueError):
        return max(0.0, float(after)) if math.isfinite(float(after)) else 0.0
    with suppress(ValueError, TypeError):
        then = parsedate_to_datetime(after)
        then = then if then.tzinfo else then.replace(tzinfo=UTC)
        return max(0.0, (then - datetime.now(UTC)).total_seconds())
    return 0.0
