"""Where source clips and identities come from: folders of files, or the synthetic world.

An item depends on its inputs' bytes, the seed and the generator alone. Who animates a clip is
drawn by rank: a picture that is added takes the place of another here and there, and changes
nothing elsewhere.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from tqdm import tqdm

from dreamactor.bootstrap.manifest import DataSet, Request
from dreamactor.bootstrap.triplets import Forward, Identity, SourceClip
from dreamactor.errors import ConfigError, MediaError
from dreamactor.image import Rgb, read_image, write_png
from dreamactor.runs import seed_of, write_text
from dreamactor.video import CLIP_SUFFIXES, probe, write_clip

if TYPE_CHECKING:
    from dreamactor.world.pairs import PairSampler

CLIPS = (*CLIP_SUFFIXES, ".avi")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif")

Kept = tuple[Path, str]
"""A file in the data set and its sha256."""


class Sources(Protocol):
    """What asks for items."""

    def requests(self, data: DataSet, generator: Mapping[str, Any]) -> Iterator[Request]:
        """One after the other; what they need is copied or drawn into the data set."""
        ...


@dataclass(frozen=True)
class Folders:
    """Clips of one folder with pictures of another; CLIP.txt beside CLIP.mp4 is its caption."""

    sources: Path
    references: Path
    per_source: int = 1
    """Different identities that each clip gets."""
    seed: int = 0

    def requests(self, data: DataSet, generator: Mapping[str, Any]) -> Iterator[Request]:
        """As `Sources`.

        Raises:
            ConfigError: A folder holds nothing, or too few pictures.
            MediaError: Files that cannot be read; the first is named.
        """
        clips = _kept(data, self.sources, CLIPS, probe)
        pictures = _kept(data, self.references, PICTURES, read_image)
        if self.per_source > len(pictures):
            raise ConfigError(
                f"per_source={self.per_source}: {self.references} holds {len(pictures)} different "
                f"pictures, so want at most {len(pictures)}"
            )
        for clip, name in clips.items():
            ranked = sorted(pictures, key=lambda picture: _draw(self.seed, clip, picture))
            for picture in ranked[: self.per_source]:
                notes = {"source": name, "identity": pictures[picture]}
                beside = (self.sources / name).with_suffix(".txt")
                if beside.is_file() and (text := beside.read_text(encoding="utf-8").strip()):
                    notes["text"] = text
                yield _request(clip, picture, self.seed, generator, notes)


@dataclass(frozen=True)
class World:
    """Pairs of the synthetic world: the driver's clip, the target's reference, and the truth.

    The first identity of clip i is its pair's target, for whom the truth is drawn too and kept
    with the inputs (an item's `notes` name it, and the subject's boxes). Further ones are the
    targets of the pairs behind it: other bodies and kinds, whose truth nobody knows.
    """

    sampler: PairSampler
    count: int
    per_source: int = 1
    seed: int = 0

    def requests(self, data: DataSet, generator: Mapping[str, Any]) -> Iterator[Request]:
        """As `Sources`; what is drawn already is not drawn again."""
        ahead = self.per_source - 1
        drawn: dict[int, dict[str, Any]] = {}
        for index in tqdm(range(self.count), unit="pair", desc="draw", disable=None, leave=False):
            for k in range(index, index + ahead + 1):
                drawn[k] = drawn.get(k) or self._pair(data, k)
            own = drawn.pop(index)
            for k, other in [(index, own), *drawn.items()]:
                truth = {"truth": own["truth"], "boxes": own["boxes"]} if k == index else {}
                notes = {**own["about"], "identity": other["about"]["index"], **truth}
                clip, picture = (_in(data, name) for name in (own["source"], other["identity"]))
                yield _request(clip, picture, self.seed, generator, notes)

    def _pair(self, data: DataSet, index: int) -> dict[str, Any]:
        """A pair's files in the data set; source and target show the same T moments."""
        from dreamactor.bench.metrics import subject_box
        from dreamactor.world.pairs import FPS, caption_of

        sampler = self.sampler
        key = f"{sampler.cast.digest[:12]}-{sampler.split}-{self.seed}-{sampler.size}-{index}"
        record = data.root / "drawn" / f"{key}.json"
        if record.is_file():
            known: dict[str, Any] = json.loads(record.read_text())
            return known
        record.parent.mkdir(exist_ok=True)
        pair = sampler.pair(self.seed, index)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_png(folder / "identity.png", np.ascontiguousarray(pair.reference[..., :3]))
            write_clip(folder / "source.mp4", _rgb(pair.driving[1:]), FPS)
            write_clip(folder / "truth.mp4", _rgb(pair.target), FPS)
            files = {p.stem: data.keep(p)[0].name for p in sorted(folder.iterdir())}
        about = {
            "world": f"{sampler.split}/{self.seed}",
            "index": index,
            "domain": pair.spec.domain,
            "style": pair.spec.target.style.kind,
            "framing": pair.spec.target.framing,
            "caption": pair.caption,
            "text": caption_of(pair.spec.driver, pair.spec.motion),
        }
        boxes = subject_box(pair.target[..., 3] > 0).tolist()  # (T, 4)
        found = {**files, "boxes": boxes, "about": about}
        write_text(record, json.dumps(found))
        return found


def _request(
    clip: Kept, picture: Kept, seed: int, generator: Mapping[str, Any], notes: Mapping[str, Any]
) -> Request:
    noise = _draw(seed, clip, picture) >> 32  # 31 bits
    return Request(Forward(SourceClip(*clip), Identity(*picture), noise), generator, notes)


def _draw(seed: int, clip: Kept, picture: Kept) -> int:
    """A random number of this clip with this picture, whatever else there is."""
    return seed_of(seed, f"bootstrap/{clip[1]}/{picture[1]}", 0)


def _in(data: DataSet, name: str) -> Kept:
    return data.root / "inputs" / name, name.partition(".")[0]


def _rgb(clip: Any) -> Iterator[Rgb]:
    return (np.ascontiguousarray(frame[..., :3]) for frame in clip)


def _kept(
    data: DataSet, folder: Path, suffixes: tuple[str, ...], check: Callable[[Path], object]
) -> dict[Kept, str]:
    """The files of a folder, copied, each content once, by sha256; with their names there."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; want one with {' '.join(suffixes)}")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    if not paths:
        raise ConfigError(f"{folder}: no file that ends in {' '.join(suffixes)}")
    found: dict[Kept, str] = {}
    bad: list[str] = []
    for path in tqdm(paths, unit="file", desc=folder.name, disable=None, leave=False):
        try:
            check(path)
            found.setdefault(data.keep(path), path.relative_to(folder).as_posix())
        except MediaError as error:
            bad.append(str(error))
    if bad:
        raise MediaError(
            f"{folder}: {len(bad)} of {len(paths)} files cannot be used; take them out. "
            f"The first: {bad[0]}"
        )
    return dict(sorted(found.items(), key=lambda kept: kept[0][1]))
