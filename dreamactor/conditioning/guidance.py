"""Three texts that guide the target: what moves, who shall move, and both in one sentence.

    motion      of the driving clip       "waves both hands"
    appearance  of the reference          "a gray bird with colorful feathers"
    prompt      limbs renamed, fused      "a gray bird with colorful feathers waves both wings"

A vision-language model says them where there is one; an answer that breaks the rules is asked
again, once, with the reason. Where it fails for good the offline describer steps in, which needs
no model: what it says is vague, but never invented. After DreamActor-M2 (arXiv 2601.21716), text
guidance of the pose variant; the paper does not print its prompts, these (`prompts/`) are ours.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any, Literal, get_args

from dreamactor import mllm
from dreamactor.conditioning.limbs import PLAN_OF, plan_of, remap, strangers
from dreamactor.conditioning.looks import NAMES, Mask, describe_looks
from dreamactor.conditioning.motion_words import from_flow, from_track
from dreamactor.conditioning.skeleton import PoseTrack
from dreamactor.errors import AnswerError, DreamActorError
from dreamactor.image import Rgb, atomic, read_image, resize
from dreamactor.mllm import Client, request_id
from dreamactor.video import iter_frames, probe, resample

Kind = Literal["motion", "appearance", "prompt"]
KINDS: tuple[Kind, ...] = get_args(Kind)
OFFLINE = "offline"
"""Source of a text that needed no model."""
TRIES = 2  # of one text; the second time the reason is told
SECONDS, FPS = 10.0, 12  # of the driving clip that are looked at, and how often
SIDE = 320  # pixels of the longer side of what is kept, and shown to a model
SHOWN = 8  # frames that a model sees
FILES: dict[Kind, str] = {"motion": "motion", "appearance": "appearance", "prompt": "fusion"}
WORDS: dict[Kind, tuple[int, int]] = {"motion": (1, 30), "appearance": (2, 30), "prompt": (3, 45)}
"""Fewest and most words of each text; a third more than what is asked for."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scene:
    """What is described, scaled down."""

    reference: Rgb
    """(H, W, 3)."""
    frames: Sequence[Rgb]
    """(h, w, 3) each, of one shape: the driving clip's beginning."""
    fps: float
    """Of these frames."""
    track: PoseTrack | None = None
    """Joints of these frames' time, where they are known: motion is told from them."""
    mask: Mask | None = None
    """(H, W) of the reference's subject, where it is known."""
    species: str | None = None
    """What the reference shows, where it is known: the world's caption of a look."""


@dataclass(frozen=True)
class Texts:
    """The three texts, and who said each."""

    motion: str
    appearance: str
    prompt: str
    sources: Mapping[str, str]
    """Text -> a model's name, `OFFLINE`, or "given"."""
    notes: Sequence[str] = field(default=())
    """Why a model's answer was not taken."""

    def plain(self) -> dict[str, Any]:
        """For JSON: the texts, their sources, the versions of the prompts, the notes."""
        asked = any(source not in (OFFLINE, "given") for source in self.sources.values())
        versions = {FILES[kind]: read_prompt(kind)[0] for kind in KINDS} if asked else {}
        return {**vars(self), "sources": dict(self.sources), "notes": list(self.notes),
                "prompts": versions}  # fmt: skip


def given(prompt: str) -> Texts:
    """The user's own words; nothing is described."""
    return Texts("", "", prompt, {"prompt": "given"})


def look(reference: Rgb, driving: Path, seconds: float, track: PoseTrack | None = None) -> Scene:
    """Read what is to be described: the reference, and the beginning of the clip.

    Args:
        reference: (H, W, 3).
        driving: The clip.
        seconds: Its length; at most `SECONDS` of it are read.
        track: Its joints, if they are known.

    Raises:
        MediaError: The clip cannot be read.
    """
    frames: list[Rgb] = []
    before = None
    for frame in resample(iter_frames(driving), FPS, min(seconds, SECONDS)):
        frames.append(frames[-1] if frame is before else _shrunk(frame))  # shown twice: one array
        before = frame
    if track is not None:
        track = track[: max(1, round(SECONDS * track.fps))]
    return Scene(_shrunk(reference), frames, FPS, track)


def _shrunk(picture: Rgb) -> Rgb:
    scale = min(1.0, SIDE / max(picture.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    return resize(picture, (height, width))


def describe_files(
    reference: str | Path, driving: str | Path, client: Client | None = None
) -> Texts:
    """The three texts of a picture and a clip; see `describe`.

    Raises:
        MediaError: One of them cannot be read.
    """
    picture, clip = read_image(reference), probe(driving)
    return describe(look(picture, Path(driving), float(clip.duration)), client)


def describe_clip(clip: Path, client: Client | None = None) -> str:
    """What a clip shows, in the words that a prompt for it would have.

    Its first frame is taken for the reference, as in training; see `describe`.

    Raises:
        MediaError: It cannot be read.
    """
    found = probe(clip)
    reference = next(picture for _, picture in iter_frames(clip))
    return describe(look(reference, clip, float(found.duration)), client).prompt


def describe(scene: Scene, client: Client | None = None) -> Texts:
    """The three texts of a scene.

    Answers are kept in the user's cache, by the hash of everything that was asked: only those of
    models, and only where one gave all three.

    Args:
        scene: From `look`, or put together from what is known.
        client: Who is asked; None takes the offline describer for all three.

    Returns:
        Always three texts; the notes (also logged as warnings) say what a model failed at.

    Raises:
        ConfigError: The client's settings are wrong.
        WeightsError: A local model is missing or of the wrong kind.
    """
    if client is None:
        return _offline(scene)
    cache = cache_folder()
    kept = cache / f"{_digest(scene, client)}.json" if cache else None
    if kept and (known := _read(kept)):
        return known
    texts = _asked(scene, client)
    if kept and not texts.notes:
        _keep(kept, texts)
    return texts


def _offline(scene: Scene) -> Texts:
    told = from_track(scene.track) if scene.track else ""
    motion = told or from_flow(scene.frames, scene.fps)  # no torso in sight tells nothing
    appearance = describe_looks(scene.reference, scene.mask, scene.species)
    return Texts(motion, appearance, fuse(appearance, motion), dict.fromkeys(KINDS, OFFLINE))


def _asked(scene: Scene, client: Client) -> Texts:
    texts: dict[str, str] = {}
    sources: dict[str, str] = {}
    notes: list[str] = []
    reached = True
    for kind in KINDS:
        try:
            if not reached:
                raise AnswerError(f"{client.name}: not asked again")
            texts[kind] = _answer(scene, client, kind, texts)
            sources[kind] = client.name
        except AnswerError as error:
            reached = isinstance(error, _UnusableError)
            offline = _offline(scene)
            texts[kind] = (
                fuse(texts["appearance"], texts["motion"])
                if kind == "prompt"
                else getattr(offline, kind)
            )
            sources[kind] = OFFLINE
            notes.append(f"{kind}: {error}; the offline describer steps in")
            log.warning("text guidance, %s", notes[-1])
    return Texts(**texts, sources=sources, notes=tuple(notes))


class _UnusableError(AnswerError):
    """There was an answer, but it breaks the rules."""


def _answer(scene: Scene, client: Client, kind: Kind, texts: Mapping[str, str]) -> str:
    """A model's text that keeps the rules."""
    images, question = _request(scene, kind, texts)
    wrong = ""
    for _ in range(TRIES):
        again = f"\n\nAn earlier answer could not be used: {wrong}." if wrong else ""
        answer = clean(client.ask(images, question + again))
        wrong = fault(kind, answer, texts.get("appearance", ""))
        if not wrong:
            return answer
    raise _UnusableError(f"{client.name}: {wrong}")


def _request(scene: Scene, kind: Kind, texts: Mapping[str, str]) -> tuple[list[Rgb], str]:
    """Pictures and words of one question."""
    template = Template(read_prompt(kind)[1])
    if kind == "appearance":
        return [scene.reference], template.substitute()
    if kind == "prompt":
        return [], template.substitute(texts)
    count = min(SHOWN, len(scene.frames))
    steps = [round(k * (len(scene.frames) - 1) / max(count - 1, 1)) for k in range(count)]
    gap = (len(scene.frames) - 1) / max(count - 1, 1) / scene.fps
    return [scene.frames[k] for k in steps], template.substitute(count=count, gap=f"{gap:.2f}")


def read_prompt(kind: Kind) -> tuple[int, str]:
    """Version and words of one of our prompts; `$name` stands for what is filled in."""
    return mllm.read_prompt(Path(__file__).parent / "prompts" / f"{FILES[kind]}.txt")


# ---- rules ----------------------------------------------------------------------------------

_REFUSAL = re.compile(
    r"\b(sorry|as an ai|language model|apologi[sz]e|(i|we)('m| am| are)? ?"
    r"(cannot|can't|can not|could not|couldn't|unable|not able|won't|don't))\b",
    re.IGNORECASE,
)
_MEDIUM = re.compile(r"\b(image|picture|photo(graph)?|video|clip|frame|footage)s?\b", re.IGNORECASE)
_MARKUP = re.compile(r"[*#`{}<>|\[\]]")
_LOOKS = """
blond blonde bearded beard hair haired bald mustache moustache skin skinned elderly old young
teenage male female handsome pretty shirt t-shirt dress skirt trousers pants jeans shorts jacket
coat hoodie suit tie hat cap helmet glasses sunglasses shoes sneakers boots scarf sweater leggings
uniform robe tunic armor armour cape gray teal beige golden silver
"""
LOOKS = frozenset(_LOOKS.split()) | set(NAMES)
"""Words for looks; in a fused prompt they must come from the reference."""
_ANIMATE = {noun for noun, plan in PLAN_OF.items() if plan != "limbless"}


def fault(kind: Kind, text: str, appearance: str = "") -> str:
    """What is wrong with an answer, in words that a model can use; empty where nothing is.

    Args:
        kind: Which text it is.
        text: The answer, after `clean`.
        appearance: Of the reference; what a fused prompt may say of looks.

    Example:
        >>> fault("prompt", "a gray bird in a red shirt waves its wings", "a gray bird")
        "it speaks of 'red', 'shirt', which the other subject is not said to have"
    """
    words = text.split()
    fewest, most = WORDS[kind]
    if not fewest <= len(words) <= most:
        return f"it has {len(words)} words, want {fewest} to {most}"
    if _REFUSAL.search(text):
        return "it refuses, or speaks of itself"
    if "\n" in text or _MARKUP.search(text):
        return "it has markup or several lines, want one plain phrase"
    if sum(letter.isascii() for letter in text) < 0.9 * len(text):
        return "it is not in English"
    if found := _MEDIUM.search(text):
        return f"it speaks of the {found[0].lower()}, not of the subject"
    said = set(re.findall(r"[a-z-]+", text.lower()))
    if kind == "motion" and (named := said & LOOKS):
        return f"it speaks of looks: {_listed(named)}"
    if kind == "prompt":
        own = set(re.findall(r"[a-z-]+", appearance.lower()))
        if foreign := (said & (LOOKS | _ANIMATE)) - own:
            return f"it speaks of {_listed(foreign)}, which the other subject is not said to have"
        if limbs := strangers(text, plan_of(appearance)) - own:
            return f"the other subject has no {_listed(limbs)}"
    return ""


def _listed(words: set[str]) -> str:
    return ", ".join(map(repr, sorted(words)))


def clean(answer: str) -> str:
    """An answer without what models put around it: thoughts, a label, quotes, the full stop."""
    answer = re.sub(r"<think>.*?(</think>|$)", "", answer, flags=re.DOTALL).strip()
    answer = re.sub(
        r"^\W*(motion|appearance|prompt|answer|sentence)\W*:\s*", "", answer, flags=re.I
    )
    answer = answer.strip().strip("\"'“”*").strip()
    return re.sub(r"[ \t]+", " ", answer).rstrip(".").rstrip()


_SUBJECT = re.compile(
    r"^(an?|the|one|this)\s+([\w-]+\s+){0,2}?(subject|character|animal|creature|"
    + "|".join(sorted(_ANIMATE))
    + r")\s+",
    re.IGNORECASE,
)
_WHERE = re.compile(r"^(.*?)(, (?:before|on|in|at|against|under) .*)?$")


def fuse(appearance: str, motion: str) -> str:
    """Both texts in one sentence, with the limbs of who is described.

    Example:
        >>> fuse("a gray bird, on grass", "a person is waving both hands")
        'a gray bird is waving both wings, on grass'
    """
    found = _WHERE.match(appearance)
    assert found is not None
    who, where = found[1], found[2] or ""
    return f"{who} {remap(_SUBJECT.sub('', motion), plan_of(who))}{where}"


# ---- cache ----------------------------------------------------------------------------------


def cache_folder() -> Path | None:
    """Where a user's answers are kept; None where there is no home."""
    with suppress(RuntimeError):
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(root) / "dreamactor" / "texts"
    return None


def _digest(scene: Scene, client: Client) -> str:
    """Of all that the answers depend on."""
    digest = hashlib.sha256(f"{client.name}\n{read_prompt('prompt')}".encode())
    for kind in ("motion", "appearance"):
        digest.update(request_id(*_request(scene, kind, {})).encode())
    return digest.hexdigest()


def _read(path: Path) -> Texts | None:
    """Texts that were kept; None where there are none, or they are damaged."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        texts = Texts(**{kind: kept[kind] for kind in KINDS}, sources=kept["sources"])
        for kind in KINDS:
            if fault(kind, getattr(texts, kind), texts.appearance) or not texts.sources[kind]:
                return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return texts


def _keep(path: Path, texts: Texts) -> None:
    """Write texts whole or not at all; a cache that cannot be written is no fault."""
    with suppress(OSError, DreamActorError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as hidden:
            hidden.write_text(json.dumps(texts.plain(), indent=1) + "\n", encoding="utf-8")
