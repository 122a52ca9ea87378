"""A suite of six cases in three scenarios, and clips of three systems that give themselves away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from dreamactor.bench.manifest import Media, Suite, SuiteCase, save_suite
from dreamactor.bench.study.design import Deck, Shown, StudyConfig, draw_raters, planted
from dreamactor.bench.study.plan import Plan, Rule
from dreamactor.image import write_png
from dreamactor.provenance import sha256
from dreamactor.video import write_clip

SYSTEMS = ("ours", "rivalone", "rivaltwo")
SCENARIOS = ("human2human", "human2animal", "toon2toon")
SIDE, FRAMES, FPS = 48, 6, 12
SECRET = "00" * 16


def moving(seed: int, speed: int = 4) -> NDArray[np.uint8]:
    """(FRAMES, SIDE, SIDE, 3) a square going right on a ground of its own."""
    rng = np.random.default_rng(seed)
    ground, colour = rng.integers(60, 200, (2, 3))
    clip = np.full((FRAMES, SIDE, SIDE, 3), ground, np.uint8)
    for t in range(FRAMES):
        clip[t, 12:36, 2 + speed * t : 20 + speed * t] = colour
    return clip


def write_named(path: Path, frames: NDArray[np.uint8], title: str) -> None:
    """A clip whose metadata say whose it is."""
    with av.open(str(path), "w") as file:
        file.metadata["title"] = file.metadata["comment"] = title
        track = file.add_stream("libx264", rate=FPS)
        track.width = track.height = SIDE
        track.pix_fmt = "yuv420p"
        for frame in frames:
            file.mux(track.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        file.mux(track.encode(None))


def study_inputs(root: Path) -> tuple[Path, Path]:
    """Write suite/ and clips/; the first driving clip stands still."""
    suite, clips = root / "suite", root / "clips"
    (suite / "media").mkdir(parents=True)
    media, cases = [], []
    for k, scenario in enumerate(SCENARIOS):
        write_png(suite / "media" / f"who{k}.png", moving(k)[0])
        write_clip(suite / "media" / f"how{k}.mp4", moving(9, 4 if k else 0), FPS)
        for kind, name in (("reference", f"who{k}.png"), ("driving", f"how{k}.mp4")):
            digest = sha256(suite / "media" / name)
            media.append(
                Media(name.split(".")[0], kind, f"media/{name}", digest, "CC0-1.0", "human")
            )
        cases += [SuiteCase(f"{scenario}/{n}", scenario, f"who{k}", f"how{k}") for n in range(2)]
    for k, system in enumerate(SYSTEMS):
        (clips / system).mkdir(parents=True)
        for c, case in enumerate(cases):
            write_named(clips / system / f"{case.result_name}.mp4", moving(10 * k + c), system)
    named = {m.name: m for m in media}
    save_suite(Suite(suite, "tiny", "1", "CC0-1.0", named, cases))
    return suite, clips


def paper_plan(root: Path, cases: int = 12, raters: int = 4, **settings: object) -> Plan:
    """A plan as `study make` draws it, but without files."""
    config = StudyConfig(gsb="ours", cases=cases, raters=raters, **settings)
    scenarios = {f"{SCENARIOS[k % 3]}/{k}": SCENARIOS[k % 3] for k in range(cases)}
    shown = {n: Shown(s, f"{n}.png", f"{n}.mp4") for n, s in scenarios.items()}
    motion = {name: float(k) for k, name in enumerate(scenarios)}
    deck = Deck(config, SECRET, SYSTEMS, shown, *planted(config, SYSTEMS, motion))
    raters = draw_raters(deck)
    rule = replace(Rule(), fails=config.fails, repeat=config.repeat, least=config.least)
    about = {"name": "tiny", "version": "1"}
    return Plan(root, about, {}, SECRET, SYSTEMS, "ours", scenarios, raters, rule)
