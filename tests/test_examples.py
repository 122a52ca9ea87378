"""The shipped examples are what examples.json says, held out, and small."""

import importlib.util
import json
import sys
from pathlib import Path

import av
import numpy as np
import pytest

import dreamactor
from dreamactor.backbones.base import Native
from dreamactor.conditioning.canvas import LatentGrid
from dreamactor.demo import EXAMPLES, read_examples
from dreamactor.diffusion.segments import plan
from dreamactor.image import read_image
from dreamactor.interpolate import frames_needed
from dreamactor.video import iter_frames, probe
from dreamactor.world.cast import load_cast

ROOT = Path(__file__).parents[1]
INDEX = json.loads((EXAMPLES / "examples.json").read_text())
NANO = Native(256, 256, fps=12.0, frames=17, overlap=4, steps=8, shift=3.0, guidance=1.0)
MEDIA = 3 * 2**20  # bytes of all examples together
TURN = 25.0  # degrees between the views of reference and driver, as in training

each = pytest.mark.parametrize("entry", INDEX["examples"], ids=lambda entry: entry["name"])


@pytest.fixture(scope="module")
def cast():
    return load_cast(Path(dreamactor.__file__).parent / "data" / "mini.castpack")


@pytest.fixture(scope="module")
def maker():
    """scripts/examples.py as a module."""
    spec = importlib.util.spec_from_file_location("examples", ROOT / "scripts" / "examples.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["examples"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["examples"]


def test_index_is_what_its_maker_says(maker, cast):
    assert maker.index(cast) == INDEX


def test_pictures_of_an_example_are_those_that_ship(maker, cast):
    """Same frames, up to what H.264 loses and another OpenGL driver rounds."""
    renderer = maker.Renderer(cast)
    try:
        renderer.context  # noqa: B018 - opens it
    except dreamactor.errors.AssetError as fault:
        pytest.skip(str(fault))
    example = maker.EXAMPLES[0]
    reference, frames, _ = maker.draw(cast, renderer, example)
    shipped = read_image(EXAMPLES / example.name / "reference.png")
    clip = [frame for _, frame in iter_frames(EXAMPLES / example.name / "driving.mp4")]
    assert np.abs(reference.astype(int) - shipped).mean() < 1
    assert len(clip) == len(frames)
    assert np.abs(frames.astype(int) - np.stack(clip)).mean() < 4


def test_kinds_of_examples():
    looks = [entry["looks"] for entry in INDEX["examples"]]
    names = [(pair["reference"]["name"], pair["driving"]["name"]) for pair in looks]
    animals = [sum(name.startswith("fauna/") for name in pair) for pair in names]
    assert animals.count(2) >= 1, "an animal drives an animal"
    assert animals.count(0) >= 3, "people drive people"
    assert all(reference != driving for reference, driving in names)
    assert any("cartoon" in entry["shows"].lower() for entry in INDEX["examples"])
    assert sum(entry["sound"] for entry in INDEX["examples"]) >= 1


@each
def test_looks_and_motions_are_held_out(entry, cast):
    for look in entry["looks"].values():
        assert look["split"] == cast.looks[look["name"]].split == "test"
    assert entry["motions"]
    for name, split in entry["motions"].items():
        assert split == cast.motions[name].split == "test"


@each
def test_media_are_as_promised(entry):
    reference = read_image(EXAMPLES / entry["reference"])
    clip = probe(EXAMPLES / entry["driving"])
    frames = [frame for _, frame in iter_frames(EXAMPLES / entry["driving"])]
    assert 384 <= min(reference.shape[:2]) <= max(reference.shape[:2]) == 512
    assert clip.fps == entry["fps"] in (24, 30)
    assert clip.duration == entry["seconds"] >= 1.25
    assert clip.frames == len(frames) == round(entry["seconds"] * entry["fps"])
    assert all(256 <= side <= 384 for side in clip.size)
    assert {frame.shape for frame in frames} == {(*clip.size, 3)}
    assert clip.has_audio == entry["sound"]
    still = np.abs(np.diff(np.stack(frames).astype(np.int16), axis=0)).mean(axis=(1, 2, 3))
    assert still.max() > 1, "something moves"


def test_a_clip_with_sound_takes_more_than_two_segments():
    long = next(entry for entry in INDEX["examples"] if entry["sound"])
    clip = probe(EXAMPLES / long["driving"])
    count = frames_needed(clip.frames, clip.fps, 12)
    assert len(plan(count, NANO, LatentGrid(stride_t=4, stride_s=8, channels=32))) > 2
    with av.open(str(EXAMPLES / long["driving"])) as container:
        track = container.streams.audio[0]
        sound = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)
        assert track.codec_context.name == "aac"
        assert sound.shape[1] / track.rate == pytest.approx(long["seconds"], abs=0.05)
        assert 0.01 < np.sqrt((sound**2).mean()) < 0.5
        assert np.abs(sound).max() < 1


def test_another_aspect_ratio_is_among_the_references():
    sizes = {read_image(example.reference).shape[:2] for example in read_examples()}
    assert (512, 512) in sizes
    assert (512, 384) in sizes


def test_views_of_reference_and_driver_are_alike(maker):
    assert all(abs(example.turn) <= TURN for example in maker.EXAMPLES)


def test_nothing_else_ships_and_all_is_small():
    listed = {EXAMPLES / e[role] for e in INDEX["examples"] for role in ("reference", "driving")}
    there = {path for path in EXAMPLES.rglob("*") if path.is_file()}
    assert there == listed | {EXAMPLES / "examples.json"}
    assert sum(path.stat().st_size for path in there) <= MEDIA
