"""`bootstrap pairs`: every item once, whole, whatever is killed, torn or repeated."""

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import standin
import torch
from standin import Tint
from test_nano import TINY, save, tiny_nano
from test_variant import Known

import dreamactor
from dreamactor import cli
from dreamactor.backbones.lora import AdapterInfo, adapter_state, attach, save_adapter
from dreamactor.bootstrap import pairs
from dreamactor.bootstrap.generators import Animator
from dreamactor.bootstrap.manifest import DataSet, Request, check_name
from dreamactor.bootstrap.pairs import Made, Making, PairsConfig, make_pairs, run_pairs
from dreamactor.bootstrap.sources import Folders, World
from dreamactor.bootstrap.triplets import Forward, Identity, SourceClip
from dreamactor.diffusion import animator
from dreamactor.errors import AssetError, ConfigError, MediaError
from dreamactor.provenance import sha256
from dreamactor.video import iter_frames, probe
from dreamactor.world.cast import load_cast
from dreamactor.world.pairs import PairSampler


@pytest.fixture
def folders(tmp_path):
    sources, references = standin.write_inputs(tmp_path)
    return Folders(sources, references, per_source=2)


def begun(diary):
    return Counter(name for word, name, _ in standin.diary_of(diary) if word == "begin")


def left_behind(out):
    hidden = [p.name for p in (out / "items").glob(".*")]
    return hidden + [p.name for p in (out / "claims").iterdir()]


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_exact_every_clip_with_every_picture(folders, tmp_path):
    made = make_pairs(tmp_path / "out", folders, Tint())
    assert (made.items, made.made, made.failed) == (6, 6, {})
    pairs = set()
    for item in made.data.items():
        synthesis = made.data.synthesis(item)
        forward = synthesis.forward
        pairs.add((forward.source.sha256, forward.identity.sha256))
        assert sha256(forward.source.path) == forward.source.sha256
        assert sha256(forward.identity.path) == forward.identity.sha256
        assert sha256(synthesis.clip.path) == synthesis.clip.sha256
        assert probe(synthesis.clip.path).frames == standin.FRAMES
    assert len(pairs) == 6
    assert left_behind(tmp_path / "out") == []
    lines = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["item"] for line in lines] == made.data.items()
    assert all(json.loads(line)["synthetic"] is True for line in lines)


def test_same_command_again_makes_nothing_and_a_torn_item_is_redone(folders, tmp_path):
    out, diary = tmp_path / "out", tmp_path / "diary"
    first = make_pairs(out, folders, Tint(diary))
    torn, lost, kept = first.data.items()[:3]
    whole = (out / "items" / torn / "clip.mp4").read_bytes()
    stamp = (out / "items" / kept / "clip.mp4").stat().st_mtime_ns
    again = make_pairs(out, folders, Tint(diary))
    assert (again.made, sum(begun(diary).values())) == (0, 6)

    (out / "items" / torn / "clip.mp4").write_bytes(whole[: len(whole) // 2])
    (out / "items" / lost / "item.json").write_text('{"item": ')
    again = make_pairs(out, folders, Tint(diary))
    assert (again.made, sum(begun(diary).values())) == (2, 8)
    assert (out / "items" / torn / "clip.mp4").read_bytes() == whole
    assert (out / "items" / kept / "clip.mp4").stat().st_mtime_ns == stamp


def test_exact_a_worker_killed_in_the_middle_costs_nothing(folders, tmp_path):
    out, diary = tmp_path / "out", tmp_path / "diary"
    result = []
    generator = Tint(diary, seconds=0.5)
    parent = threading.Thread(
        target=lambda: result.append(make_pairs(out, folders, generator, workers=2))
    )
    parent.start()
    wait_for(lambda: diary.exists() and len(standin.diary_of(diary)) >= 4)
    wait_for(lambda: standin.diary_of(diary)[-1][0] == "begin")
    _, name, victim = standin.diary_of(diary)[-1]
    os.kill(int(victim), signal.SIGKILL)  # it began and will not end
    parent.join(60)
    assert not parent.is_alive()
    (made,) = result
    assert (made.items, len(made.data.items()), made.failed) == (6, 6, {})
    assert all(made.data.is_whole(item) for item in made.data.items())
    ends = Counter(name for word, name, _ in standin.diary_of(diary) if word == "end")
    assert set(ends.values()) == {1}  # nothing was made twice
    assert begun(diary)[name] == 2  # the other worker made it anew
    assert set(begun(diary).values()) == {1, 2}
    assert len({process for _, _, process in standin.diary_of(diary)}) == 2
    assert left_behind(out) == []


def test_refuses_to_call_it_done_when_all_workers_died(folders, tmp_path):
    out, diary, fault = tmp_path / "out", tmp_path / "diary", []

    def make():
        try:
            make_pairs(out, folders, Tint(diary, seconds=0.5), workers=1)
        except MediaError as error:
            fault.append(str(error))

    parent = threading.Thread(target=make)
    parent.start()
    wait_for(lambda: diary.exists() and len(standin.diary_of(diary)) >= 3)
    os.kill(int(standin.diary_of(diary)[0][2]), signal.SIGTERM)
    parent.join(60)
    assert "items are missing since all workers died" in fault[0]
    assert [p.name for p in (out / "items").glob(".*")] == []  # it cleaned up behind itself
    assert len(make_pairs(out, folders, Tint(diary)).data.items()) == 6


def test_same_command_after_all_was_killed(folders, tmp_path):
    out, diary = tmp_path / "out", tmp_path / "diary"
    context = multiprocessing.get_context("spawn")
    command = context.Process(target=make_pairs, args=(out, folders, Tint(diary, seconds=0.3)))
    command.start()
    wait_for(lambda: diary.exists() and len(standin.diary_of(diary)) >= 3)
    command.kill()
    command.join()
    assert left_behind(out) != []
    survivors = {p: p.stat().st_mtime_ns for p in (out / "items").glob("[!.]*/clip.mp4")}
    assert survivors
    made = make_pairs(out, folders, Tint(diary))
    assert (len(made.data.items()), made.made) == (6, 6 - len(survivors))
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in survivors.items())
    assert left_behind(out) == []


def test_exact_two_commands_at_once_share_the_work(folders, tmp_path):
    out, diary = tmp_path / "out", tmp_path / "diary"
    context = multiprocessing.get_context("spawn")
    commands = [
        context.Process(target=make_pairs, args=(out, folders, Tint(diary, seconds=0.2)))
        for _ in range(2)
    ]
    for command in commands:
        command.start()
    for command in commands:
        command.join(60)
        assert command.exitcode == 0
    assert len(DataSet(out).items()) == 6
    assert set(begun(diary).values()) == {1}
    assert len({process for _, _, process in standin.diary_of(diary)}) == 2


def test_exact_who_lost_its_claim_publishes_nothing(folders, tmp_path):
    data = DataSet.begin(tmp_path / "out", Tint().about)
    request = next(iter(folders.requests(data, Tint().about)))

    class Overslept(Tint):
        def __call__(self, forward, out):
            super().__call__(forward, out)
            (data.claims.folder / f"{request.item}.1").write_text("{}")  # taken over meanwhile

    Making(data.root, 60.0, Overslept(), {request.item: request}).attempt(request.item)
    assert data.items() == []
    assert list((tmp_path / "out" / "items").iterdir()) == []


def test_unchanged_by_names_of_files_and_further_clips(tmp_path):
    sources, references = standin.write_inputs(tmp_path, clips=2, pictures=4)
    pick = Folders(sources, references, per_source=1)
    before = {r.item for r in pick.requests(DataSet.begin(tmp_path / "a", {}), {})}
    (sources / "clip0.mp4").rename(sources / "zebra.mp4")
    (tmp_path / "more").mkdir()
    more, _ = standin.write_inputs(tmp_path / "more", clips=3)
    shutil.copy(more / "clip2.mp4", sources / "another.mp4")
    after = {r.item for r in pick.requests(DataSet.begin(tmp_path / "b", {}), {})}
    assert before < after
    assert len(after) == 3


def test_exact_an_item_is_named_by_all_that_makes_it():
    forward = Forward(SourceClip(Path("x"), "a"), Identity(Path("y"), "b"), seed=1)
    request = Request(forward, {"name": "tint", "steps": 4}, {})
    moved = replace(forward, source=SourceClip(Path("elsewhere"), "a"))
    assert Request(moved, {"steps": 4, "name": "tint"}, {"note": 1}).item == request.item
    others = [
        replace(request, forward=replace(forward, seed=2)),
        replace(request, forward=replace(forward, identity=Identity(Path("y"), "c"))),
        replace(request, forward=replace(forward, source=SourceClip(Path("x"), "c"))),
        replace(request, generator={"name": "tint", "steps": 5}),
    ]
    assert len({request.item, *(other.item for other in others)}) == 5


def test_exact_a_failure_is_told_and_tried_again(folders, tmp_path):
    pictures = sorted(folders.references.iterdir())
    refusing = Tint(refuses=sha256(pictures[0]))
    made = make_pairs(tmp_path / "out", folders, refusing)
    assert (made.made, set(made.failed.values())) == (3, {"this picture is not taken"})
    made = make_pairs(tmp_path / "out", folders, Tint())
    assert (made.made, made.failed, len(made.data.items())) == (3, {}, 6)
    made = make_pairs(tmp_path / "short", folders, Tint(drops=1))
    assert made.made == 0
    assert all("6 frames at 12 gave 5 at 12" in why for why in made.failed.values())


def test_refuses_another_generator_in_the_same_folder(folders, tmp_path):
    make_pairs(tmp_path / "out", folders, Tint())
    with pytest.raises(ConfigError, match="begun with another strength of the generator"):
        make_pairs(tmp_path / "out", folders, Tint(strength=0.2))


def test_refuses_folders_that_hold_too_little(folders, tmp_path):
    def make(**changes):
        make_pairs(tmp_path / "out", replace(folders, **changes), Tint())

    with pytest.raises(ConfigError, match="holds 2 different pictures, so want at most 2"):
        make(per_source=3)
    with pytest.raises(ConfigError, match="no such folder"):
        make(sources=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"no file that ends in \.png"):
        make(references=folders.sources)
    (folders.sources / "broken.mp4").write_bytes(b"not a clip")
    with pytest.raises(MediaError, match=r"1 of 4 files cannot be used.*broken\.mp4"):
        make()


def test_refuses_names_that_are_paths(tmp_path):
    data = DataSet.begin(tmp_path, {})
    for name in ("../x", "", "a" * 20 + "/", "Z" * 20):
        with pytest.raises(ConfigError, match="want 20 hex digits"):
            data.folder(name)
    with pytest.raises(ConfigError, match="such as anna-b"):
        check_name("Anna B")
    with pytest.raises(ConfigError, match="no data set"):
        DataSet(tmp_path / "other")


def test_same_by_ray(folders, tmp_path):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'dreamactor[ray]'")
    here = make_pairs(tmp_path / "here", folders, Tint())
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    try:
        there = make_pairs(tmp_path / "there", folders, Tint(), workers=2, ray=True)
    finally:
        ray.shutdown()
    assert there.made == 6
    for item in here.data.items():
        assert there.data.facts(item)["clip"] == here.data.facts(item)["clip"]


@pytest.fixture(scope="module")
def sampler():
    found = PairSampler(load_cast(cli.world.MINI), "test", size=64, frames=4)
    try:
        found.renderer.context  # noqa: B018 - opens it
    except AssetError as fault:
        pytest.skip(str(fault))
    return found


def test_exact_world_pairs_show_the_same_moments(sampler, tmp_path):
    made = make_pairs(tmp_path, World(sampler, count=2, per_source=2), Tint())
    assert made.made == 4
    known = [made.data.facts(item)["notes"] for item in made.data.items()]
    own = [notes for notes in known if notes["index"] == notes["identity"]]
    assert sorted(notes["index"] for notes in own) == [0, 1]
    assert all(("truth" in notes) == (notes in own) for notes in known)
    for notes in own:
        pair = sampler.pair(0, notes["index"])
        truth = np.stack([f for _, f in iter_frames(tmp_path / "inputs" / notes["truth"])])
        assert truth.shape == pair.target[..., :3].shape
        assert np.abs(truth.astype(int) - pair.target[..., :3]).mean() < 6  # coded, 64 pixels wide
        assert np.shape(notes["boxes"]) == (4, 4)


def test_same_world_items_without_drawing_again(sampler, tmp_path, monkeypatch):
    world = World(sampler, count=2)
    first = make_pairs(tmp_path, world, Tint())
    monkeypatch.setattr(sampler, "pair", None)
    again = make_pairs(tmp_path, world, Tint())
    assert (first.made, again.made) == (2, 0)


def test_exact_nano_is_a_generator(folders, tmp_path):
    one = replace(folders, per_source=1)
    for name in ("clip1.mp4", "clip2.mp4"):
        (folders.sources / name).unlink()
    nano = Animator(steps=1)
    made = make_pairs(tmp_path / "out", one, nano)
    (item,) = made.data.items()
    facts = made.data.facts(item)
    assert (facts["generator"]["name"], facts["generator"]["steps"]) == ("nano", 1)
    record = json.loads((made.data.folder(item) / "clip.json").read_text())
    assert record["inputs"]["driving"]["sha256"] == facts["source"]["sha256"]
    assert record["settings"]["seed"] == facts["seed"]
    assert record["output"]["sha256"] == facts["clip"]["sha256"]


@pytest.fixture
def posed(tmp_path, monkeypatch):
    """What an `Animator` of the pose variant takes, of tiny weights; estimators that look."""
    folder, looks = tmp_path / "weights", []
    folder.mkdir()
    digest = save(tiny_nano(), folder)["transformer.safetensors"]

    def adapter(name, seed):
        torch.manual_seed(seed)
        transformer, info = TINY.build(), AdapterInfo("pose", "nano", digest, rank=2, lead=4)
        for parameter in attach(transformer, info):
            torch.nn.init.normal_(parameter, std=0.3)
        save_adapter(folder / name, adapter_state(transformer), info)
        return folder / name

    class Finder(Known):
        def __init__(self, name):
            super().__init__()
            self.name, self.weights, self.looks = name, {"k": name[0] * 64}, looks

    monkeypatch.setattr(animator, "load_estimator", lambda name, weights, device: Finder(name))
    given = {"weights": folder, "adapter": adapter("a.safetensors", 1), "variant": "pose"}
    yield {**given, "steps": 1}, adapter("b.safetensors", 2), looks
    animator._load.cache_clear()
    animator._load_estimator.cache_clear()


def test_exact_the_pose_variant_is_a_generator(folders, tmp_path, posed):
    """Skeletons of the source clip drive; the manifest says whose, and by which adapter."""
    given, _, looks = posed
    one = replace(folders, per_source=1)
    made = make_pairs(tmp_path / "out", one, Animator(**given))
    assert (made.made, made.failed) == (3, {})
    lines = (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    (about,) = {json.dumps(json.loads(line)["generator"], sort_keys=True) for line in lines}
    about = json.loads(about)
    assert about["variant"] == "pose"
    assert about["estimator"] == {"name": "keypoints", "weights": {"k": "k" * 64}}
    assert about["adapter"]["sha256"] == sha256(given["adapter"])
    assert about["adapter"]["lead"] == 4
    for item in made.data.items():
        record = json.loads((made.data.folder(item) / "clip.json").read_text())
        assert record["estimator"] == about["estimator"]
        assert record["backbone"]["adapter"] == about["adapter"]
        assert record["lead_frames"] == 3
    sources = [made.data.synthesis(item).forward.source.path for item in made.data.items()]
    seen = {np.stack(frames).tobytes() for frames in looks}
    assert seen == {np.stack([f for _, f in iter_frames(path)]).tobytes() for path in sources}


def test_another_adapter_or_estimator_is_another_item(folders, tmp_path, posed):
    """exact: as with all that has a say; the same file in another place has none."""
    given, other, _ = posed
    moved = tmp_path / "moved.safetensors"
    shutil.copy(given["adapter"], moved)
    changes = {"same": {}, "moved": {"adapter": moved}, "adapter": {"adapter": other},
               "estimator": {"pose": "mediapipe"}}  # fmt: skip
    items = {}
    for name, change in changes.items():
        about = Animator(**given | change).about
        data = DataSet.begin(tmp_path / name, about)
        items[name] = {request.item for request in folders.requests(data, about)}
    assert items["same"] == items["moved"]
    assert not items["same"] & items["adapter"]
    assert not items["same"] & items["estimator"]
    make_pairs(tmp_path / "out", replace(folders, per_source=1), Animator(**given))
    with pytest.raises(ConfigError, match="begun with another adapter of the generator"):
        make_pairs(tmp_path / "out", folders, Animator(**given | {"adapter": other}))


def test_refuses_an_adapter_of_another_variant(folders, tmp_path, posed):
    for change in ({"variant": "rgb"}, {"adapter": None}):
        with pytest.raises(ConfigError, match="trained for"):
            make_pairs(tmp_path / "out", folders, Animator(**posed[0] | change))
    assert not (tmp_path / "out").exists()


def test_refuses_settings_that_cannot_work():
    with pytest.raises(ConfigError, match="pose='keypoints': only variant pose looks for joints"):
        PairsConfig(pose="keypoints")
    with pytest.raises(ConfigError, match="no such estimator, nearest is rtmlib"):
        PairsConfig(variant="pose", pose="rtmlab")
    with pytest.raises(ConfigError, match="device='gpu': want cpu, cuda or cuda:N"):
        PairsConfig(device="gpu")
    with pytest.raises(ConfigError, match="workers=-1: want 0 or more"):
        PairsConfig(workers=-1)


def test_pairs_of_the_world_have_the_size_that_is_asked_for(tmp_path, monkeypatch):
    """exact: 96 pixels, as a backbone of that size wants them."""
    asked = []
    found = Made(None, items=0, made=0, failed={})
    monkeypatch.setattr(pairs, "make_pairs", lambda _, sources, *__: asked.append(sources) or found)
    mini = Path(dreamactor.__file__).parent / "data" / "mini.castpack"
    run_pairs(tmp_path / "data", None, None, mini, PairsConfig(size=96))
    assert asked[0].sampler.size == 96
    with pytest.raises(ConfigError, match="size=16: want 32 or more"):
        PairsConfig(size=16)
