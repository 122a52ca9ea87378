"""Cached examples: what both stages of the recipe train on, whatever they were made from.

A cache is a folder of safetensors shards beside cache.json, which says what they share:

    NNNNNN.safetensors    target, motion (N, C, F, h, w), text (N, L, D), perhaps subject
                          (N, 1, F, h, w); 16 bits each; the header holds the keys of N examples.
                          As far as the backbone reads them: image (N, n, E), states of the
                          reference; canvas (N, C, F, h, w), the reference half with the reference
                          alone, where hidden pixels go through the autoencoder
    silence.safetensors   text (L, D) that stands for no text, where that is not zeros

target is the reference, then the frames to generate; motion is the driving signal beside them.
A shard is written whole or not at all. An example that is driven by its own target is refused
wherever it turns up: trained on it, a network copies and the loss looks splendid. Where drivers
are placed it is looked for before that, and not again: moved, a copy is no longer the same.

Legend: N examples, C latent channels, F latent frames, h x w cells of one half, L tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dreamactor.backbones.load import Variant
from dreamactor.conditioning.augment import lead_frames
from dreamactor.conditioning.canvas import VERSION
from dreamactor.errors import ConfigError, WeightsError
from dreamactor.image import atomic
from dreamactor.runs import write_text

SILENCE = "silence.safetensors"
CPU = torch.device("cpu")
SHARE = 0.25
"""Most of a GPU's memory that examples may take, to stay there from their first reading on."""
COPY = 0.25
"""Unlikeness from which on driver and target are two clips. Of 14 clips of the world a copy at
H.264's crf 32 had at most .070, one 10 % brighter .011, and the twin of another body at least
.66; 64 clips and their skeletons had at least .85. A copy that is a frame late may pass: .30."""


@dataclass(frozen=True)
class CacheHeader:
    """What all examples of a cache share."""

    task: Variant
    backbone: str
    vae: str
    """sha256 of the autoencoder's file; of several files that of theirs in order."""
    fps: float
    settings: dict[str, Any]
    """How they were made; JSON values."""
    canvas: int = VERSION

    @property
    def lead(self) -> int | None:
        """Frames at the start of each example that show no skeleton; None where clips drive."""
        return lead_frames(self.fps, self.settings["lead"]) if self.task == "pose" else None


def unlikeness(target: Tensor, motion: Tensor) -> Tensor:
    """How much driver and target differ: 0 for the same clip, about 1 for unrelated ones.

    Args:
        target: (N, C, F, h, w) latents; frame 0, the reference, does not count.
        motion: Same shape.

    Returns:
        (N,) squared difference over the sum of both variances, with each channel's mean taken
        off, since the plain ground of two pictures may be alike.
    """
    a, b = (x[:, :, 1:].flatten(2).float() for x in (target, motion))  # (N, C, F * h * w)
    a, b = a - a.mean(dim=2, keepdim=True), b - b.mean(dim=2, keepdim=True)
    apart, each = (a - b).square().sum(dim=(1, 2)), (a.square() + b.square()).sum(dim=(1, 2))
    return apart / each.clamp_min(1e-12)


def check_examples(keys: Sequence[str], tensors: dict[str, Tensor], placed: bool = False) -> None:
    """Refuse what nobody should train on.

    Args:
        keys: Of N examples.
        tensors: Theirs, as a shard has them.
        placed: Whether their drivers were moved; then copies are not looked for.

    Raises:
        ConfigError: Shapes that do not belong together, numbers that are not finite, or a driving
            signal that is the target; names the example.
    """
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    if shapes["target"] != shapes["motion"] or {len(v) for v in tensors.values()} != {len(keys)}:
        raise ConfigError(f"examples of {len(keys)} keys and {shapes}: want one shape and number")
    tensors = {name: value.float() for name, value in tensors.items()}  # 16 bits are slow on a CPU
    for name, value in tensors.items():
        finite = value.isfinite().flatten(1).all(dim=1)
        if not finite.all():
            bad = keys[int((~finite).nonzero()[0])]
            raise ConfigError(f"{bad}: {name} holds numbers that are not finite; make it anew")
    if not placed:
        check_copies(keys, tensors["target"], tensors["motion"])


def check_copies(keys: Sequence[str], target: Tensor, motion: Tensor) -> None:
    """Refuse a driving signal that is the target.

    Args:
        keys: Of N examples.
        target: As for `unlikeness`.
        motion: Likewise; as it comes, not placed.

    Raises:
        ConfigError: Names the example.
    """
    for key, found in zip(keys, unlikeness(target, motion).tolist(), strict=True):
        if found < COPY:
            raise ConfigError(
                f"{key}: the driving clip is the target (unlikeness {found:.3f}, want {COPY} or "
                "more); a network would learn to copy it. Want another identity in the same motion"
            )


def open_cache(folder: Path, header: CacheHeader, leads: bool = True) -> None:
    """Begin a cache, or go on with one that was begun alike.

    Raises:
        ConfigError: It was made with other settings.
    """
    path, text = folder / "cache.json", json.dumps(asdict(header), indent=1, sort_keys=True) + "\n"
    if path.is_file() and path.read_text() != text:
        old, new = ({**h, **h.pop("settings")} for h in map(json.loads, (path.read_text(), text)))
        differs = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
        raise ConfigError(f"{folder}: this cache was made with another {', '.join(differs)}")
    if leads and not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, text)


def write_silence(folder: Path, text: Tensor) -> None:
    """Keep what stands for no text, (L, D), unless it is zeros."""
    if text.any():
        halves = {"text": _half(text)}
        with atomic(folder / SILENCE) as hidden:
            hidden.write_bytes(save(halves))


def _half(value: Tensor) -> Tensor:
    """In 16 bits, on the CPU; bfloat16 stays, for a text encoder's numbers may not fit a half."""
    kept = value if value.dtype == torch.bfloat16 else value.half()
    return kept.cpu().contiguous()


def _sent(value: Tensor, device: torch.device) -> Tensor:
    """On a device; a GPU fetches it by itself."""
    if device.type != "cuda":
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Parts (n, L, ...) of one tensor one after the other, with zeros behind shorter texts."""
    longest = max(part.shape[1] for part in parts)
    return torch.cat([_longer(part, longest) for part in parts])


def _longer(part: Tensor, length: int) -> Tensor:
    """(n, L, ...) -> (n, length, ...)."""
    empty = part.new_zeros(len(part), length - part.shape[1], *part.shape[2:])
    return torch.cat([part, empty], dim=1) if empty.numel() else part


def shard_path(folder: Path, index: int) -> Path:
    """Where a shard lies."""
    return folder / f"{index:06d}.safetensors"


def write_examples(
    path: Path, keys: Sequence[str], tensors: dict[str, Tensor], placed: bool = False
) -> None:
    """Write a shard, whole or not at all.

    Raises:
        ConfigError: As `check_examples`.
    """
    halves = {name: _half(value) for name, value in tensors.items()}
    check_examples(keys, halves, placed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as hidden:
        hidden.write_bytes(save(halves, metadata={"keys": json.dumps(list(keys))}))


class Cache:
    """The examples of a folder, by number.

    Args:
        folder: As `dreamactor train cache` makes it; complete, or as far as it has come.

    Raises:
        ConfigError: There is no cache, or no example in it.
        WeightsError: A shard is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._open = folder, ExitStack()
        self.header = read_cache_header(folder)
        self._shards: list[Any] = []
        self._places: list[tuple[int, int]] = []  # shard and row of each example
        self.keys: list[str] = []
        for path in sorted(folder.glob("[0-9]*.safetensors")):
            try:
                shard = self._open.enter_context(safe_open(path, framework="pt"))
                keys = json.loads(shard.metadata()["keys"])
            except (SafetensorError, OSError, TypeError, KeyError) as error:
                raise WeightsError(f"{path}: not a shard of a cache ({error})") from error
            self._places += [(len(self._shards), row) for row in range(len(keys))]
            self._shards.append(shard)
            self.keys += keys
        if not self.keys:
            raise ConfigError(
                f"{folder}: the cache is empty; fill it with `dreamactor train cache`"
            )
        shapes = {tuple(s.get_slice("target").get_shape()[1:]) for s in self._shards}
        if len(shapes) > 1:
            raise ConfigError(f"{folder}: shards of {sorted(shapes)}; want one shape in a cache")
        self.shape: tuple[int, ...] = shapes.pop()
        """(C, F, h, w)."""
        self.silence = _read_silence(folder / SILENCE)
        """(L, D) text that stands for no text; None = zeros."""
        self._sound: set[int] = set()  # examples that were looked at
        self._kept: dict[str, Tensor] = {}  # where all examples have a place: see `keep`

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def placed(self) -> bool:
        """Whether drivers were brought to where the subject stands."""
        return bool(self.header.settings.get("placed"))

    @property
    def digest(self) -> str:
        """Of what it holds, as far as names tell."""
        return hashlib.sha256(json.dumps([asdict(self.header), self.keys]).encode()).hexdigest()

    def batch(self, which: Sequence[int], device: torch.device = CPU) -> dict[str, Tensor]:
        """Some examples, float32; a subject that is not known is everywhere.

        An example is looked at when it is read first: `check_examples` takes longer than all else.

        Args:
            which: Their numbers.
            device: Where they are wanted; they travel in 16 bits, once if they are kept there.

        Raises:
            ConfigError: As `check_examples`.
        """
        out = {name: value.float() for name, value in self._halves(which, device).items()}
        if self.silence is not None:
            length = max(out["text"].shape[1], len(self.silence))
            out["text"] = _longer(out["text"], length)
            silence = _longer(self.silence[None].to(device), length)
            out["silence"] = silence.expand_as(out["text"])
        out.setdefault("subject", torch.ones_like(out["target"][:, :1]))
        return out

    def keep(self, device: torch.device, most: float) -> bool:
        """Keep examples on a device from their first reading on, if all of them fit.

        Args:
            device: The one that batches are wanted on.
            most: Bytes that they may take.

        Returns:
            Whether they will stay there. Not where texts differ in length: a batch's are as long as
            its longest.
        """
        shapes = [
            {name: tuple(s.get_slice(name).get_shape()[1:]) for name in s.keys()}  # noqa: SIM118
            for s in self._shards
        ]
        one = self._read([0], CPU)
        size = sum(value.nbytes for value in one.values()) * len(self)
        if size > most or any(shape != shapes[0] for shape in shapes):
            return False
        self._kept = {
            name: torch.empty((len(self), *value.shape[1:]), dtype=value.dtype, device=device)
            for name, value in one.items()
        }
        self._sound.clear()  # what was read before has to come there too
        return True

    def _halves(self, which: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        """Some examples in 16 bits, looked at."""
        fresh = [k for k in dict.fromkeys(which) if k not in self._sound]
        if not self._kept:
            found = self._read(which, device)
            if fresh:
                places = [which.index(k) for k in fresh]
                self._look(fresh, {name: value[places] for name, value in found.items()})
            return found
        if fresh:
            read = self._read(fresh, device)
            self._look(fresh, read)
            for name, value in read.items():
                self._kept[name][fresh] = value
        rows = torch.tensor(which, device=device)
        return {name: value[rows].to(device) for name, value in self._kept.items()}

    def _read(self, which: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        """From the shards, in 16 bits."""
        rows = [self._places[k] for k in which]
        return {
            name: _sent(
                joined([self._shards[s].get_slice(name)[r : r + 1] for s, r in rows]), device
            )
            for name in self._shards[0].keys()  # noqa: SIM118
        }

    def _look(self, which: Sequence[int], halves: dict[str, Tensor]) -> None:
        """Refuse, the first time, what nobody should train on."""
        check_examples([self.keys[k] for k in which], halves, self.placed)
        self._sound.update(which)

    def close(self) -> None:
        """Let go of the files."""
        self._kept.clear()
        self._open.close()


def check_cache(folder: Path) -> str:
    """Look at every example of a cache; a line that sums up.

    Raises:
        ConfigError: As `Cache` and `check_examples`.
        WeightsError: A shard is damaged.
    """
    cache, least = Cache(folder), float("inf")
    for k in range(len(cache)):
        batch = cache.batch([k])
        least = min(least, float(unlikeness(batch["target"], batch["motion"])))
    if len(set(cache.keys)) < len(cache):
        raise ConfigError(f"{folder}: a key stands there twice; want every example once")
    size = " x ".join(map(str, cache.shape))
    return (
        f"{folder}: {len(cache)} examples of {cache.header.task}, {size}; "
        f"driver{', placed,' if cache.placed else ''} and target are unlike by {least:.2f} or more"
    )


def _read_silence(path: Path) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            text: Tensor = file.get_tensor("text").float()
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not the silence of a cache ({error})") from error
    return text


def read_cache_header(folder: Path) -> CacheHeader:
    """What the examples of a folder share.

    Raises:
        ConfigError: There is no cache.
    """
    path = folder / "cache.json"
    try:
        header = CacheHeader(**json.loads(path.read_text()))
    except OSError as error:
        raise ConfigError(
            f"{folder}: no cache here (no cache.json); make one with `dreamactor train cache`"
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not the header of a cache ({error})") from error
    if header.task not in get_args(Variant) or header.canvas != VERSION:
        raise ConfigError(
            f"{path}: task {header.task}, canvas version {header.canvas}; "
            f"want {' or '.join(get_args(Variant))}, version {VERSION}"
        )
    return header
