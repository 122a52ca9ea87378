"""`dreamactor animate`: one line for every fault, nothing left behind, signals."""

import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import av
import numpy as np
import oracle
import pytest
from copycat import Copycat
from filming import film, tone

from dreamactor import cli
from dreamactor.image import write_png
from dreamactor.video import probe

TESTS = Path(__file__).parent
DREAMACTOR = "from dreamactor.cli import main; main()"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Good and bad inputs; read only."""
    folder = tmp_path_factory.mktemp("inputs")
    picture = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    write_png(folder / "good.png", picture)
    film(folder / "good.mp4", 30)
    film(folder / "one.mp4", 1)
    no_frames(folder / "zero.mp4")
    film(folder / "sound.mp4", 30, audio="aac")
    whole = (folder / "good.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a clip")
    (folder / "text.png").write_text("not a picture")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:500])
    (folder / "huge.png").write_bytes(png_header(30_000, 30_000))
    damaged = bytearray(whole)
    middle = whole.index(b"mdat") + (len(whole) - whole.index(b"mdat")) // 3
    damaged[middle : middle + 300] = bytes(300)
    (folder / "damaged.mp4").write_bytes(damaged)
    only_sound(folder / "sound.m4a")
    return folder


def png_header(width, height):
    """The start of a picture; its pixels are never reached."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(
        ">I", zlib.crc32(chunk)
    ) + struct.pack(">I", 9) + b"IDAT" + bytes(9)  # fmt: skip


def no_frames(path):
    with av.open(str(path), "w") as output:
        track = output.add_stream("libx264", rate=25)
        track.height, track.width, track.pix_fmt = 48, 64, "yuv420p"
        output.start_encoding()


def only_sound(path):
    with av.open(str(path), "w", format="mp4") as output:
        track = output.add_stream("aac", rate=48000, layout="stereo")
        output.mux(track.encode(tone(1)))
        output.mux(track.encode(None))


@pytest.fixture
def command(inputs, tmp_path, monkeypatch, capsys):
    """Run `dreamactor animate` in this process with the copying backbone: code, stdout, stderr."""
    pytest.importorskip("torch")
    from dreamactor.diffusion import pipeline

    real = pipeline.load_backbone
    monkeypatch.setattr(
        pipeline,
        "load_backbone",
        lambda name, weights, *rest: real(name, weights, *rest) if weights else Copycat(),
    )
    handler = signal.getsignal(signal.SIGTERM)

    def command(*words, reference="good.png", driving="good.mp4", out="out.mp4"):
        given = ["--reference", inputs / reference, "--driving", inputs / driving]
        argv = ["dreamactor", "animate", *given, "--out", tmp_path / out, *words]
        monkeypatch.setattr(sys, "argv", [str(word) for word in argv])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    yield command
    signal.signal(signal.SIGTERM, handler)


def refused(result, message):
    code, shown, error = result
    assert code == 2
    assert shown == ""
    assert error.startswith("error: ")
    assert error.endswith("\n")
    assert error.count("\n") == 1
    assert message in error
    return True


# ---- good ----------------------------------------------------------------------------------------


def test_a_clip_and_its_record(command, tmp_path):
    code, shown, error = command("--seed", 3, "--steps", 1, driving="sound.mp4")
    assert (code, error) == (0, "")
    assert shown.startswith(f"{tmp_path / 'out.mp4'}: 30 frames of 64 x 32, ")
    clip = probe(tmp_path / "out.mp4")
    assert (clip.frames, clip.fps, clip.size, clip.has_audio) == (30, 25, (32, 64), True)
    settings = json.loads((tmp_path / "out.json").read_text())["settings"]
    assert (settings["seed"], settings["steps"]) == (3, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.mp4"]


def test_all_options(command, tmp_path):
    words = ["--prompt", "a fox", "--guidance", 2, "--fit", "crop", "--fps", 10, "--no-audio",
             "--interpolate", "nearest", "--backbone", "nano", "--threads", 1,
             "--device", "cpu"]  # fmt: skip
    assert command(*words, driving="sound.mp4", out="out.webm")[0] == 0
    clip = probe(tmp_path / "out.webm")
    assert (clip.frames, clip.fps, clip.size, clip.has_audio) == (12, 10, (64, 64), False)
    settings = json.loads((tmp_path / "out.json").read_text())["settings"]
    assert (settings["prompt"], settings["guidance"], settings["threads"]) == ("a fox", 2, 1)


def test_offline_asks_nobody_whatever_is_set(command, tmp_path, monkeypatch):
    with oracle.oracle("a gray bird waves both wings") as server:
        monkeypatch.setenv("DREAMACTOR_MLLM_URL", server.url)
        monkeypatch.setenv("DREAMACTOR_MLLM_MODEL", "fox-vl")
        assert command("--describer", "offline")[0] == 0
        assert not server.bodies
        assert command("--overwrite")[0] == 0
        assert server.bodies
    assert json.loads((tmp_path / "out.json").read_text())["settings"]["describer"] == "auto"


def test_overwrite(command, tmp_path):
    (tmp_path / "out.mp4").write_text("old")
    (tmp_path / "out.json").write_text("old")
    assert command("--overwrite")[0] == 0
    assert probe(tmp_path / "out.mp4").frames == 30
    assert json.loads((tmp_path / "out.json").read_text())["synthetic"]


def test_dry_run_shows_the_plan_and_writes_nothing(command, tmp_path):
    code, shown, error = command("--dry-run", "--steps", 5)
    assert (code, error) == (0, "")
    plan = json.loads(shown)
    assert plan["settings"]["steps"] == 5
    assert plan["text"] == {"prompt": "described when it runs", "source": "offline"}
    assert [segment["new"] for segment in plan["segments"]] == [15]
    assert not list(tmp_path.iterdir())


# ---- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"reference": "gone.png"}, "gone.png: no such file"),
        ({"reference": "text.png"}, "text.png: not a picture"),
        ({"reference": "good.mp4"}, "good.mp4: not a picture"),
        ({"reference": "cut.png"}, "cut.png: truncated or damaged picture"),
        ({"reference": "huge.png"}, "huge.png: 900 megapixels, the limit is 100"),
        ({"reference": "."}, "is a folder, want a file"),
        ({"driving": "gone.mp4"}, "gone.mp4: no such file"),
        ({"driving": "text.mp4"}, "text.mp4: not a video"),
        ({"driving": "good.png"}, "good.png: has 1 frame; want at least 2"),
        ({"driving": "sound.m4a"}, "sound.m4a: no video stream, only audio"),
        ({"driving": "empty.mp4"}, "empty.mp4: the file is empty"),
        ({"driving": "zero.mp4"}, "zero.mp4: "),
        ({"driving": "one.mp4"}, "one.mp4: has 1 frame; want at least 2"),
        ({"driving": "truncated.mp4"}, "truncated.mp4: truncated"),
        ({"driving": "damaged.mp4"}, "damaged.mp4: truncated or damaged"),
        ({"out": "out.avi"}, "want one of .mp4 .mov .mkv .webm .gif"),
        ({"out": "gone/out.mp4"}, "does not exist; create it first"),
        ({"out": "."}, "want one of .mp4"),
    ],
)
def test_refuses_files(command, tmp_path, files, message):
    assert refused(command(**files), message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "0"], "steps=0: want 1 to 1000"),
        (["--steps", "two"], "Invalid value for '--steps'"),
        (["--fps", "0"], "fps=0.0: want 0.1 to 240"),
        (["--fps", "nan"], "fps=nan: want 0.1 to 240"),
        (["--guidance", "-1"], "guidance=-1.0: want 0 to 100"),
        (["--variant", "depth"], "variant='depth': want rgb or pose"),
        (
            ["--variant", "pose", "--pose", "rtm"],
            "pose='rtm': no such estimator, nearest is rtmlib",
        ),
        (["--pose", "rtmlib"], "pose='rtmlib': only variant pose looks for joints"),
        (["--adapter", "/gone"], "/gone: no such file"),
        (["--describer", "online"], "describer='online': want auto or offline"),
        (["--fit", "stretch"], "fit='stretch': want letterbox or crop"),
        (["--interpolate", "rife"], "interpolate='rife': want flow or nearest"),
        (["--backbone", "nanno"], "backbone='nanno': no such backbone, nearest is nano"),
        (["--device", "gpu"], "device='gpu': want cpu, cuda or cuda:N"),
        (["--threads", "0"], "threads=0: want 1 to 256"),
        (["--weights", "/gone"], "/gone: nano's weights are missing"),
        (["--sed", "1"], "No such option: --sed"),
        (["extra"], "unexpected extra argument"),
    ],
)
def test_refuses_settings(command, tmp_path, words, message):
    assert refused(command(*words), message)
    assert not list(tmp_path.iterdir())


def test_refuses_a_gif_that_players_would_slow_down(command, tmp_path):
    assert refused(command("--fps", 60, out="out.gif"), "a gif shows at most 50")


def test_refuses_weights_of_another_hash(command, tmp_path):
    from test_nano import save, tiny_nano

    weights = tmp_path / "weights"
    weights.mkdir()
    nano = tiny_nano()
    save(nano, weights, files=dict.fromkeys(save(nano, weights), "0" * 64))
    assert refused(command("--weights", weights), "vae.safetensors: sha256 is")
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_refuses_weights_that_know_no_canvas(command, tmp_path):
    from test_nano import save, tiny_nano

    weights = tmp_path / "weights"
    weights.mkdir()
    save(tiny_nano(), weights, task="video")
    path = weights / "transformer.safetensors"
    assert refused(
        command("--weights", weights),
        f"{path}: weights of the task 'video', want 'animate'; make them with "
        f"`dreamactor train nano start={path}`",
    )


@pytest.mark.parametrize("name", ["out.mp4", "out.json"])
def test_refuses_to_replace_without_being_told(command, tmp_path, name):
    (tmp_path / name).write_text("old")
    assert refused(command(), f"{name}: is there already; pass --overwrite")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "old")]


def test_refuses_to_replace_an_input(command, inputs, tmp_path):
    driving = film(tmp_path / "driving.mp4", 30)
    before = driving.read_bytes()
    result = command("--overwrite", driving=driving, out="driving.mp4")
    assert refused(result, "is an input too; choose another --out")
    assert driving.read_bytes() == before


def test_refuses_a_folder_it_may_not_write_to(command, tmp_path, monkeypatch):
    access = os.access  # a locked folder does not stop root
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and access(path, mode))
    assert refused(command(), "no permission to write")


@pytest.mark.parametrize("room", [0, 300, 1000])
@pytest.mark.parametrize("out", ["out.mp4", "out.webm", "out.gif"])
def test_a_full_disk_leaves_nothing(command, tmp_path, room, out):
    """A limit on the size of files stands for the disk (Python ignores SIGXFSZ)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        result = command(out=out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refused(result, f"{tmp_path / out}: cannot be written: File too large")
    assert not list(tmp_path.iterdir())


def test_a_disk_too_full_for_the_record_leaves_nothing(command, tmp_path, monkeypatch):
    from dreamactor import provenance

    monkeypatch.setattr(
        provenance.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "Full"))
    )
    assert refused(command(), "cannot be written: Full")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["animate"], "Missing option '--reference'"),
        (["dance"], "No such command 'dance'"),
        (["world", "pool", "--shards", "x"], "Invalid value"),
    ],
)
def test_usage_errors_of_every_command_are_one_line(monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", ["dreamactor", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert refused((end.value.code, *capsys.readouterr()), message)


# ---- processes -----------------------------------------------------------------------------------


def test_faults_of_the_user_are_found_without_torch(inputs, tmp_path):
    out = ["--out", str(tmp_path / "o.mp4")]
    words = ["animate", "--reference", str(inputs / "good.png"), "--driving", "gone.mp4", *out]
    check = "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules)); "
    done = subprocess.run(
        [sys.executable, "-c", check + DREAMACTOR, *words], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert done.stderr == "error: gone.mp4: no such file\n"


@pytest.mark.parametrize("words", [[], ["train"]])
def test_help_needs_neither_torch_nor_opencv(words):
    check = (
        "import sys, atexit; "
        "atexit.register(lambda: print({'torch', 'cv2', 'numpy', 'av'} & set(sys.modules))); "
    )
    done = subprocess.run(
        [sys.executable, "-c", check + DREAMACTOR, *words, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.endswith("set()\n")


SLOW = """
import sys, time
sys.path.insert(0, sys.argv.pop(1))
from copycat import Copycat
from dreamactor.diffusion import pipeline

class Slow(Copycat):
    def decode(self, latents):
        print("working", flush=True)
        time.sleep(20 if len(self.canvases) > 1 else 0)
        return super().decode(latents)

pipeline.load_backbone = lambda *_: Slow()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_nothing(inputs, tmp_path, number):
    words = ["animate", "--reference", inputs / "good.png", "--driving", inputs / "good.mp4",
             "--fps", 25, "--out", tmp_path / "out.mp4"]  # fmt: skip
    film(tmp_path / "long.mp4", 60)
    words[4] = tmp_path / "long.mp4"
    argv = [sys.executable, "-c", SLOW + DREAMACTOR, TESTS, *words]
    with subprocess.Popen(
        [str(word) for word in argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["working\n"] * 2
        assert len(list(tmp_path.glob(".out.mp4.*.part"))) == 1
        start = time.monotonic()
        process.send_signal(number)
        shown, error = process.communicate(timeout=15)
    assert process.returncode == 130
    assert (shown, error) == ("", "")
    assert time.monotonic() - start < 10
    assert [path.name for path in tmp_path.iterdir()] == ["long.mp4"]


FINALIZER = """
import signal, time
from dreamactor import cli

class Dies:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def app(**_):
    Dies()
    time.sleep(20)

cli.app = app
cli.main()
"""


def test_ctrl_c_within_a_finalizer_counts():
    """unchanged by: what Python does at that moment, which swallows what is raised there."""
    start = time.monotonic()
    found = subprocess.run(
        [sys.executable, "-c", FINALIZER], capture_output=True, text=True, timeout=30, check=False
    )
    assert (found.returncode, found.stdout, found.stderr) == (130, "", "")
    assert time.monotonic() - start < 15


MEMORY = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from collections import deque
from copycat import Copycat
from dreamactor import animate
from dreamactor.provenance import peak_memory

folder = Path(sys.argv[2])
for name in ("short", "short", "long"):  # the signer's library stays, once it was loaded
    animate(reference=folder / "r.png", driving=folder / f"{name}.mp4", out=folder / f"{name}o.mp4",
            backbone=Copycat(canvases=deque(maxlen=0), noises=deque(maxlen=0)), steps=1,
            overwrite=True)
    print(peak_memory())
"""


def test_memory_does_not_grow_with_length(inputs, tmp_path):
    write_png(tmp_path / "r.png", np.zeros((64, 64, 3), np.uint8))
    film(tmp_path / "short.mp4", 120, 12)
    film(tmp_path / "long.mp4", 1200, 12)
    argv = [sys.executable, "-c", MEMORY, str(TESTS), str(tmp_path)]
    # see test_variant
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=env)
    _, short, long = map(float, done.stdout.split())
    assert long - short < 20  # MiB; 1,080 frames of 64 x 64 as float32 would be 51
