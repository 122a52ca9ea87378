"""`dreamactor serve`: an API that strangers may use, and a queue that survives its server."""

import asyncio
import io
import json
import logging
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest
from filming import film
from PIL import Image
from safetensors.numpy import save_file

pytest.importorskip("fastapi", reason="no web framework: pip install 'dreamactor[studio]'")
from fake_animator import tell
from serving import Client, Fake, served, write_inputs

from dreamactor import cli
from dreamactor.backbones.headers import NANO, read_header, read_manifest
from dreamactor.backbones.load import check_present
from dreamactor.errors import ConfigError
from dreamactor.studio import guard
from dreamactor.studio.crew import only_server
from dreamactor.studio.guard import Access
from dreamactor.studio.queue import Queue
from dreamactor.studio.server import Place, access
from dreamactor.studio.settings import Setup
from dreamactor.studio.words import Words
from dreamactor.video import probe

TESTS = Path(__file__).parent
NAMES = re.compile(
    r"queue\.sqlite(-wal|-shm)?|(server|workers)\.lock|uploads|jobs|"
    r"uploads/[0-9a-f]{16}(/file\.(png|mp4))?|"
    r"jobs/[0-9a-f]{16}(/(result\.mp4|result\.json|driving\.mp4|preview\.jpg))?"
)
"""All that may ever lie in a server's folder."""
ADAPTER = {"model": "adapter", "backbone": "nano", "weights": "f" * 64, "variant": "pose"}
log = logging.getLogger("figures")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return write_inputs(folder, sound="aac")


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Of a server that many tests share; its jobs are done at once."""
    root, before = tmp_path_factory.mktemp("shared"), os.getcwd()
    os.chdir(root)
    with served(root, Fake()) as found:
        yield found
    os.chdir(before)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A server's folder, and where its one worker works."""
    (tmp_path / "served").mkdir()
    monkeypatch.chdir(tmp_path / "served")
    return tmp_path / "served"


def write_nano(folder, **header):
    """The shipped weights of nano, but for what the transformer says of itself."""
    shutil.copytree(NANO, folder)
    path = folder / "transformer.safetensors"
    said = read_header(path) | header
    save_file({}, path, {"dreamactor": json.dumps(said)})


def lies_in(root):
    return {str(path.relative_to(root)) for path in root.rglob("*")}


# ---- what it is for -------------------------------------------------------------------------


def test_exact_from_upload_to_result(client, inputs, tmp_path):
    order = client.order(*inputs, prompt="", seed=7, steps=3)
    name = client.submit(order)
    said = client.wait(name, "done")
    assert (said["asked"]["seed"], said["asked"]["consent"], said["error"]) == (7, True, None)
    status, headers, clip = client.ask("GET", f"/jobs/{name}/result?download=true")
    assert (status, headers["content-type"]) == (200, "video/mp4")
    assert headers["content-disposition"] == f'attachment; filename="dreamactor_{name}.mp4"'
    (tmp_path / "got.mp4").write_bytes(clip)
    assert probe(tmp_path / "got.mp4").frames == 24
    record = client.get(f"/jobs/{name}/record")
    assert record["settings"]["seed"] == 7
    assert str(client.root) not in json.dumps(record)  # folders of the server stay its own
    assert client.get("/jobs")[0] == said
    assert client.get("/health") == {"ok": True, "workers": 1, "queued": 0, "running": 0}
    assert client.get("/about")["variants"] == ["rgb"]


def test_exact_a_part_of_the_clip_drives_and_is_heard(client, inputs, tmp_path):
    name = client.submit(client.order(*inputs, start=0.5, end=1.25))
    client.wait(name, "done")
    for what in ("driving", "result"):
        _, _, content = client.ask("GET", f"/jobs/{name}/{what}")
        (tmp_path / "part.mp4").write_bytes(content)
        clip = probe(tmp_path / "part.mp4")
        assert (clip.frames, clip.has_audio) == (9, True)
    with av.open(str(tmp_path / "part.mp4")) as part:
        sound = sum(frame.samples for frame in part.decode(audio=0)) / 48000
    assert sound == pytest.approx(0.75, abs=0.06)
    driving = client.order(*inputs)["driving"]
    status, headers, _ = client.ask("GET", f"/uploads/{driving}/file")
    assert (status, headers["content-type"]) == (200, "video/mp4")


def test_exact_events_tell_a_job_to_its_end(root, inputs):
    with served(root, Fake(seconds=1.0)) as client:
        name = client.submit(client.order(*inputs))
        status, headers, lines = client.ask("GET", f"/jobs/{name}/events")
        assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        told = [json.loads(x[6:]) for x in lines.decode().split("\n") if x.startswith("data: ")]
        assert [job["state"] for job in told[-2:]] == ["running", "done"]
        assert told[-1]["step"] == told[-1]["steps"] == 5
        assert len({json.dumps(job) for job in told}) == len(told)  # nothing is told twice
        status, _, preview = client.ask("GET", f"/jobs/{name}/preview")
        assert (status, preview[:2]) == (200, b"\xff\xd8")


def test_exact_cancel_and_remove(root, inputs):
    with served(root, Fake(seconds=30, steps=300)) as client:
        order = client.order(*inputs)
        running, waiting = client.submit(order), client.submit(order)
        client.wait(running, "running")
        assert client.ask("DELETE", f"/jobs/{running}")[0] == 409
        assert client.get(f"/jobs/{waiting}")["ahead"] == 1
        assert client.ask("POST", f"/jobs/{waiting}/cancel")[2]["state"] == "cancelled"
        assert client.ask("POST", f"/jobs/{running}/cancel")[2]["stop"] is True
        client.wait(running, "cancelled")
        assert client.ask("GET", f"/jobs/{running}/result")[0] == 404
        assert client.ask("DELETE", f"/jobs/{running}")[0] == 204
        assert client.ask("GET", f"/jobs/{running}")[0] == 404
        assert not (root / "jobs" / running).exists()


def test_exact_describing(client, inputs):
    order = client.order(*inputs)
    part = {"reference": order["reference"], "driving": order["driving"], "start": 0.5}
    assert client.ask("POST", "/describe", part)[2]["prompt"] == "a thing moves from 0.5"


def test_refuses_to_describe_without_a_path_of_the_server(root, inputs):
    with served(root, words=Words("auto", tell)) as client:
        order = client.order(*inputs)
        part = {"reference": order["reference"], "driving": order["driving"]}
        status, _, said = client.ask("POST", "/describe", part)
        assert (status, said) == (422, {"error": "the driving clip: no describer here"})


def test_exact_every_call_is_in_the_openapi_description(client):
    found = client.get("/openapi.json")["paths"]
    assert set(found) == {
    "/uploads", "/uploads/{name}", "/uploads/{name}/file", "/describe", "/jobs", "/jobs/{name}",
    "/jobs/{name}/events", "/jobs/{name}/cancel", "/jobs/{name}/result", "/jobs/{name}/record",
    "/jobs/{name}/preview", "/jobs/{name}/driving", "/about", "/health", "/session",
    }  # fmt: skip
    assert all(call["description"] for path in found.values() for call in path.values())
    order = client.get("/openapi.json")["components"]["schemas"]["Order"]["properties"]
    names = ["quality", "balanced", "fast", "low-memory"]
    assert order["preset"]["anyOf"][0]["enum"] == list(client.get("/about")["presets"]) == names


# ---- refusals -------------------------------------------------------------------------------


def test_refuses_orders_in_one_line(root, inputs):
    with served(root, steps=8) as client:
        order = client.order(*inputs)
        swapped = {"reference": order["driving"], "driving": order["reference"]}
        for change, status, why in [
            ({"consent": False}, 422, "consent=false: want true"),
            ({"consent": 1}, 422, "consent"),
            ({"reference": "0" * 16}, 404, "no upload 0000000000000000 of a reference"),
            (swapped, 404, "of a reference"),
            ({"driving": "../" * 5 + "x"}, 422, "driving: String should match"),
            ({"steps": 9}, 422, "steps=9: want 1 to 8"),
            ({"steps": 0}, 422, "steps"),
            ({"preset": "quality"}, 422, "preset=quality: takes 16 steps; want 1 to 8"),
            ({"preset": "quick"}, 422, "preset: Input should be 'quality', 'balanced'"),
            ({"start": 2.5}, 422, "start=2.5: the clip has 2 s"),
            ({"start": 1.0, "end": 0.5}, 422, "end=0.5: want more than start, 1"),
            ({"guidance": 1e9}, 422, "guidance=1000000000.0: want 0 to 100"),
            ({"fps": 1e9}, 422, "fps=1000000000.0: want 0.1 to 240"),
            ({"variant": "pose"}, 422, "this server has weights for rgb"),
            ({"variant": "both"}, 422, "variant"),
            ({"weights": "/etc"}, 422, "weights: Extra inputs are not permitted"),
            ({"prompt": "x" * 1001}, 422, "prompt: String should have at most 1000"),
            ({"prompt": "a\0b"}, 422, "prompt: Value error, want no control characters"),
            ({"negative": "\x1b[2J"}, 422, "negative: Value error, want no control"),
            ({"prompt": "\ud800"}, 422, "prompt"),
            ({"seed": -1}, 422, "seed"),
        ]:
            found, _, said = client.ask("POST", "/jobs", order | change)
            assert (found, why in said["error"], "\n" in said["error"]) == (status, True, False), (
                change, said,
            )  # fmt: skip
        for body, kind in ((b"{", "application/json"), (b"[]", "application/json"), (b"", "x/y")):
            assert client.ask("POST", "/jobs", body=body, headers={"Content-Type": kind})[0] == 422
        for before in (-1, 1 << 63, 10**23):
            found, _, said = client.ask("GET", f"/jobs?before={before}")
            assert (found, said["error"].startswith("before: Input should be")) == (422, True)
        assert client.ask("PATCH", "/jobs")[0] == 405
        assert client.get("/jobs") == []


def test_refuses_what_is_no_picture_or_clip(client, inputs):
    picture, clip = inputs
    before = lies_in(client.root)
    for kind, content, status, why in [
        ("reference", b"", 422, "the file is empty"),
        ("reference", b"GIF89a is what this says it is", 422, "not a picture of a kind"),
        ("reference", picture.read_bytes()[:60], 422, "truncated or damaged picture"),
        ("driving", picture, 422, "has 1 frame"),
        ("driving", clip.read_bytes()[:2000], 422, "truncated"),
        ("driving", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", 422, "not a video"),
        ("driving", b"ffconcat version 1.0\nfile /etc/passwd\n", 422, "not a video"),
        ("passport", picture, 422, "kind"),
    ]:
        found, _, said = client.upload(kind, content)
        assert (found, why in said["error"]) == (status, True), said
        assert "/" not in said["error"].replace("H.264", "")  # no path of the server
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert client.ask("POST", "/uploads?kind=reference", body=b"--x", headers=form)[0] == 415
    assert lies_in(client.root) == before


def test_refuses_strangers(root, inputs):
    token = "correct-horse-battery"
    with served(root, token=token) as client:
        order = client.order(*inputs)
        name = client.submit(order)
        nobody = Client(client.port)
        for method, path in [
            ("GET", "/jobs"), ("GET", f"/jobs/{name}"), ("POST", "/jobs"), ("GET", "/about"),
            ("POST", "/uploads?kind=reference"), ("GET", "/openapi.json"), ("GET", "/nothing"),
            ("GET", f"/uploads/{order['driving']}/file"), ("POST", f"/jobs/{name}/cancel"),
        ]:  # fmt: skip
            for headers in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Cookie": "dreamactor_session=0"},
            ):
                assert nobody.ask(method, path, headers=headers)[0] == 401, path
        assert nobody.get("/health")["queued"] == 1  # says nothing about anybody
        assert nobody.ask("POST", "/session", {"token": "wrong"})[0] == 401
        status, headers, _ = nobody.ask("POST", "/session", {"token": token})
        cookie = headers["set-cookie"]
        assert status == 204
        assert all(word in cookie for word in ("HttpOnly", "SameSite=strict"))
        assert token not in cookie
        shown = {"Cookie": cookie.partition(";")[0]}
        assert nobody.ask("GET", f"/jobs/{name}", headers=shown)[0] == 200


def test_refuses_pages_of_other_sites(client, inputs):
    order = client.order(*inputs)
    own = f"http://127.0.0.1:{client.port}"
    for headers, status in [
        ({"Host": "evil.example"}, 400),
        ({"Host": "127.0.0.1.evil.example"}, 400),
        ({"Host": "["}, 400),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": f"http://127.0.0.1:{client.port + 1}"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": own, "Sec-Fetch-Site": "same-origin"}, 201),
        ({"Host": f"localhost:{client.port}"}, 201),
    ]:
        found, _, said = client.ask("POST", "/jobs", order, headers=headers)
        assert found == status, headers
        if found == 201:
            client.wait(said["id"], "done")
    _, headers, _ = client.ask("GET", f"/uploads/{order['driving']}/file")
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'self'"


def test_refuses_to_be_open_to_all(tmp_path):
    with pytest.raises(ConfigError, match=r"host=0\.0\.0\.0 without a token"):
        access(Place(tmp_path, "0.0.0.0"), None)
    with pytest.raises(ConfigError, match="want 16 or more"):
        Access(("*",), "short")
    assert access(Place(tmp_path, names=("me.example",)), None).hosts[-1] == "me.example"


def test_refuses_settings_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("DREAMACTOR_TOKEN", raising=False)
    (tmp_path / "file").write_text("x")
    write_nano(tmp_path / "pose", variant="pose", lead=4)
    save_file({}, tmp_path / "lora.safetensors", {"dreamactor": json.dumps(ADAPTER)})
    other = tmp_path / "other.safetensors"
    save_file({}, other, {"dreamactor": json.dumps(ADAPTER | {"backbone": "mini"})})
    for words, why in [
        (["backbone=foo"], "backbone='foo': no such backbone, nearest is"),
        (["weights=/nonexist"], "/nonexist: nano's weights are missing (no manifest.json)"),
        ([f"weights={tmp_path}"], "nano's weights are missing (no manifest.json)"),
        ([f"weights={tmp_path / 'pose'}"], "the weights of nano are trained for pose"),
        ([f"weights={'x' * 300}"], "cannot be reached: File name too long"),
        (["backbone=wan2.2-i2v-a14b", "weights=/nonexist"], "/nonexist: no such folder; want"),
        (["adapter=/nonexist"], "/nonexist: weights are missing"),
        ([f"adapter={tmp_path / 'file'}"], "file: not a readable safetensors file"),
        ([f"adapter={other}"], "an adapter of mini ffffffffffff..., here is nano"),
        ([f"pose_adapter={tmp_path / 'lora.safetensors'}"], "ffffffffffff..., here is nano"),
        (["pose_adapter=/nonexist"], "/nonexist: weights are missing"),
        (["pose_weights=/nonexist"], "/nonexist: nano's weights are missing"),
        (["threads=0"], "threads=0: want 1 to 256"),
        (["offload=model"], "only for large backbones"),
        (["--device", "cuda:9"], "device=cuda:9: torch sees"),
        (["limit.seconds=nan"], "seconds=nan: want a number"),
        (["limit.patience=inf"], "patience=inf: want a finite number"),
        (["limit.queue=0"], "queue=0: want 1 or more"),
        (["limit.qeue=3"], "nearest is queue"),
        (["wieghts=x"], "nearest is weights"),
        (["--host", "0.0.0.0"], "without a token"),
        (["--device", "tpu"], "want cpu, cuda or cuda:N"),
        (["--port", "99999"], "cannot be listened on"),
        (["--folder", str(tmp_path / "file")], "file: cannot be written: File exists"),
        (["--folder", str(tmp_path / "file" / "in")], "in: cannot be written: Not a directory"),
    ]:
        for command in ("serve", "studio"):
            call = ["dreamactor", command, "--folder", str(tmp_path / "f"), *words]
            monkeypatch.setattr(sys, "argv", call)
            with pytest.raises(SystemExit) as ended:
                cli.main()
            said = capsys.readouterr().err
            assert (ended.value.code, said.count("\n"), why in said) == (2, 1, True), said


def test_exact_weights_and_adapters_that_fit_are_taken(tmp_path):
    write_nano(tmp_path / "pose", variant="pose", lead=4)
    digest = read_manifest(NANO)["files"]["transformer.safetensors"]
    path = tmp_path / "lora.safetensors"
    save_file({}, path, {"dreamactor": json.dumps(ADAPTER | {"weights": digest})})
    for setup in (Setup(), Setup(pose_weights=tmp_path / "pose"), Setup(pose_adapter=path)):
        setup.check("cpu")
    with pytest.raises(ConfigError, match="variant=rgb: the adapter is trained for pose"):
        Setup(adapter=path).check("cpu")


def test_refuses_a_gpu_beyond_the_last(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    check_present("cuda:1")
    with pytest.raises(ConfigError, match="cuda:2: torch sees 2 CUDA devices here; the last is"):
        check_present("cuda:2")


def test_refuses_a_second_server_in_a_folder(tmp_path):
    with only_server(tmp_path), pytest.raises(ConfigError, match="another server is at it"):
        only_server(tmp_path).__enter__()


# ---- abuse ----------------------------------------------------------------------------------


def raw(port, *pieces, pause=0.0, seconds=10):
    """What a server answers to bytes, sent with pauses; (answer, seconds, bytes sent).

    Sending ends with the first byte that comes back or with the connection; what was said before is
    read in either case.
    """
    begun, sent, heard, first = time.monotonic(), 0, b"", None
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as link:
        with suppress(ConnectionError):
            for piece in pieces:
                link.sendall(piece)
                sent += len(piece)
                if pause and select.select([link], [], [], pause)[0]:
                    first = time.monotonic()
                    break
        with suppress(ConnectionError):
            while more := link.recv(4096):
                heard += more
    return heard, (first or time.monotonic()) - begun, sent


def head(method, path, port, **headers):
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
    lines += [f"{k.replace('_', '-')}: {v}" for k, v in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def test_refuses_paths_out_of_the_folder(client, inputs):
    (client.root.parent / "secret.mp4").write_bytes(b"secret")
    name = client.submit(client.order(*inputs))
    client.wait(name, "done")
    for path in [
        "/../../../etc/passwd", "/uploads/../queue.sqlite", "/jobs/../queue.sqlite",
        "/jobs/..%2f..%2fsecret/result", "/jobs/%2e%2e/result", f"/jobs/{name}/..%2f..%2f..",
        f"/jobs/{name}%00/result", f"/jobs/{name}/result%00.json", "/uploads/..%5c..%5c/file",
        f"/jobs//{name}/result", f"//jobs/{name}/../../secret.mp4", "/studio.js/../../secret",
        f"/jobs/{name.upper() + 'é'}/result".encode().decode("latin-1"), "/uploads/C:/file",
        "/jobs/" + "a" * 9000 + "/result", "/static/../../secret.mp4", "file:///etc/passwd",
    ]:  # fmt: skip
        said, _, _ = raw(
            client.port,
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode(
                "latin-1"
            ),
        )
        assert re.match(rb"HTTP/1.1 4\d\d ", said), (path, said[:200])
        assert b"root:" not in said
        assert b"secret" not in said
    evil = {
        "Content-Disposition": 'attachment; filename="../../../evil.png"',
        "X-Name": "/evil",
    }
    content = inputs[0].read_bytes()
    status, _, said = client.ask(
        "POST",
        "/uploads?kind=reference&filename=../evil&name=%2fevil",
        body=content,
        headers=evil,
    )
    assert status == 201
    assert "evil" not in json.dumps(said)
    assert {x for x in lies_in(client.root) if not NAMES.fullmatch(x)} == set()
    assert not list(client.root.parent.rglob("*evil*"))


def png(width, height, rows, depth=1, colour=0):
    """A picture whose head and pixels are stated; `rows` is what is compressed."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    shape = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    packed = zlib.compress(rows, 1)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", shape) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def test_refuses_decompression_bombs(root, tmp_path):
    bomb = png(30_000, 30_000, bytes(3751 * 30_000))  # 900 megapixels
    wide = png(7000, 7000, bytes(876 * 7000))  # 49 megapixels: allowed, where there is memory
    many = io.BytesIO()
    frames = [Image.new("P", (2500, 2500), k) for k in range(12)]
    frames[0].save(many, "GIF", save_all=True, append_images=frames[1:], duration=40)
    film(tmp_path / "wide.mkv", 2, size=(3200, 3200), options={"preset": "ultrafast"})
    film(tmp_path / "long.mp4", 100, fps=1)
    assert max(len(bomb), len(wide), len(many.getvalue())) < 1 << 20
    with served(root, decode_seconds=1.0) as client:
        for kind, content, why in [
            ("reference", bomb, "900 megapixels, the limit is 100"),
            ("driving", tmp_path / "wide.mkv", "3200 x 3200, the limit is 9 megapixels"),
            ("driving", tmp_path / "long.mp4", "100.0 s long, the limit is 60"),
            ("driving", many.getvalue(), "takes more than 1 s to decode"),
        ]:
            begun = time.monotonic()
            status, _, said = client.upload(kind, content)
            seconds = time.monotonic() - begun
            assert (status, why in said["error"]) == (422, True), said
            log.info("%s: %.1f s", said["error"], seconds)
            assert seconds < 8
    with served(root) as client:
        status, _, said = client.upload("reference", wide)
        assert (status, said["width"]) == (201, 1280)
    with served(root, decode_mb=64) as client:
        status, _, said = client.upload("reference", wide)
        assert (status, said["error"] == "takes more than 64 MiB of memory to decode") == (
            422,
            True,
        ), said
        log.info(said["error"])
        status, _, _ = client.upload("reference", png(8, 8, bytes(2 * 8)))
        assert status == 201  # the next one does not suffer


def test_exact_of_polyglots_the_pixels_alone_are_served(client, inputs):
    script = b"*/=1;fetch('//evil.example')/*<script>alert(1)</script><!--"
    gif = io.BytesIO()
    Image.new("P", (8, 8), 3).save(gif, "GIF", comment=script)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("evil.js", script)
    text = b"tEXt" + b"Comment\0" + script
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    whole = png(8, 8, bytes(2 * 8))
    clip = inputs[1].read_bytes() + struct.pack(">I", 8 + len(script)) + b"free" + script
    for kind, content, media in [
        ("reference", gif.getvalue() + script, "image/png"),
        ("reference", whole + packed.getvalue(), "image/png"),
        ("reference", whole[:33] + chunk + whole[33:] + script, "image/png"),
        ("driving", clip, "video/mp4"),
    ]:
        status, _, said = client.upload(kind, content)
        assert status == 201, said
        status, headers, back = client.ask("GET", f"/uploads/{said['id']}/file")
        assert (status, headers["content-type"]) == (200, media)
        assert headers["x-content-type-options"] == "nosniff"
        for foreign in (b"script", b"evil", b"PK\3\4", b"GIF8"):
            assert foreign not in back
    html = b"<html><script>alert(1)</script>" + whole
    assert client.upload("reference", html)[0] == 422
    assert not list((client.root / "uploads").rglob("raw"))


def test_refuses_more_bytes_than_allowed_and_no_later(root, monkeypatch):
    monkeypatch.setattr(guard, "LINGER", 0.5)
    with served(root, picture_mb=1, patience=2) as client:
        port, piece = client.port, bytes(1 << 16)
        said, _, _ = raw(
            port, head("POST", "/uploads?kind=reference", port, Content_Length=1 << 30)
        )
        assert b" 413 " in said.split(b"\r\n")[0]
        assert b"1073741824 bytes are announced, the limit is 1048576" in said
        chunked = head("POST", "/uploads?kind=reference", port, Transfer_Encoding="chunked")
        pieces = [b"10000\r\n" + piece + b"\r\n"] * 640  # 40 MiB
        said, _, sent = raw(port, chunked, *pieces, pause=0.001)
        assert b" 413 " in said.split(b"\r\n")[0]
        assert sent < 2.5 * (1 << 20)
        log.info("a body without end: refused after %.2f MiB of at most 1", sent / (1 << 20))
        said, _, _ = raw(port, head("POST", "/jobs", port, Content_Length=1 << 20))
        assert b"the limit is 65536" in said
        said, _, _ = raw(port, head("GET", "/jobs", port, X_Long="x" * 600_000))
        assert said == b"" or said.startswith(b"HTTP/1.1 4")  # hung up on, or refused
        assert list((root / "uploads").iterdir()) == []
        assert client.get("/health")["ok"]


def test_refuses_to_wait_for_who_is_slow(root):
    with served(root, patience=0.5, slowest=64) as client:
        port, drops = client.port, [b"x"] * 100
        start = head("POST", "/uploads?kind=reference", port, Content_Length=100)
        said, seconds, _ = raw(port, start, *drops, pause=0.05)
        assert b" 408 " in said.split(b"\r\n")[0]
        assert b"want 64 KiB a second" in said
        log.info("a body of 20 bytes a second: cut off after %.2f s of 0.5", seconds)
        assert seconds < 3
        said, seconds, _ = raw(port, *[b"%c" % c for c in b"GET /health HTTP/1.1\r\n"], pause=0.05)
        assert (said, seconds < 3) == (b"", True)
        log.info("a head of 20 bytes a second: cut off after %.2f s of 0.5", seconds)
        said, seconds, _ = raw(port, b"")  # says nothing at all
        assert (said, seconds < 3) == (b"", True)
        start = head("POST", "/jobs", port, Content_Length=60_000, Content_Type="application/json")
        said, seconds, _ = raw(port, start, *drops, pause=0.05)
        assert (b" 408 " in said.split(b"\r\n")[0], seconds < 3) == (True, True)
        time.sleep(0.6)
        assert list((root / "uploads").iterdir()) == []
        assert client.get("/health")["ok"]


# ---- a server as a program ------------------------------------------------------------------


class Program:
    """A server with slow jobs in a process of its own."""

    def __init__(self, folder, seconds):
        self.folder, self.diary, self.seconds = folder, folder.parent / "diary", seconds
        self.process = None

    def start(self):
        program = (sys.executable, str(TESTS / "fake_animator.py"))
        self.process = subprocess.Popen(
            [*program, str(self.folder), str(self.diary), str(self.seconds)],
            env={**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"},
            stdout=subprocess.PIPE,
            text=True,
        )
        said = self.process.stdout.readline()
        self.client = Client(int(re.search(r":(\d+)/", said)[1]))
        end = time.monotonic() + 60
        while True:
            try:
                return said, self.client.get("/health")
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.05)

    def kill(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.process.stdout.close()
        return code

    def status(self, name):
        """A line of /proc in MiB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{name}:\s+(\d+)", text)[1]) / 1024

    def lines(self, word):
        """Jobs of which the diary says that, in order."""
        if not self.diary.is_file():
            return []
        said = [line.split() for line in self.diary.read_text().splitlines()]
        return [job for what, job, _ in said if what == word]


@pytest.fixture
def program(tmp_path):
    found = Program(tmp_path / "served", 0.4)
    yield found
    if found.process.poll() is None:
        found.kill()


def test_exact_a_killed_server_goes_on_and_does_every_job_once(program, inputs):
    program.start()
    order = program.client.order(*inputs)
    jobs = [program.client.submit({**order, "seed": k}) for k in range(10)]
    for ended in (2, 5):
        end = time.monotonic() + 60
        while len(program.lines("end")) < ended or not program.client.get("/health")["running"]:
            assert time.monotonic() < end
            time.sleep(0.02)
        program.kill()
        said, _ = program.start()
        assert 1 <= int(re.search(r"goes on with (\d+) jobs", said)[1]) <= 12 - ended
    for job in jobs:
        program.client.wait(job, "done", seconds=60)
    ended = program.lines("end")
    assert len(set(ended)) == len(ended)  # none twice, though twice killed
    # a worker that is killed between publishing a clip and writing that down does not do it again
    assert len(jobs) - 2 * 2 <= len(set(ended) & set(jobs)) == len(ended)
    begun = program.lines("begin")
    assert len(begun) > len(jobs)  # what was under way began again
    last = program.client.submit(order)
    program.client.wait(last, "running")
    assert program.kill(signal.SIGTERM) == 0
    queue = Queue(program.folder / "queue.sqlite")
    assert (queue.job(last).state, queue.job(last).tries) == ("queued", 0)  # for the next server
    queue.close()
    assert {x for x in lies_in(program.folder) if not NAMES.fullmatch(x)} == set()


async def visit(port, body, order, times, statuses):
    """One client: takes a file to the server, hands a job in, asks for it three times."""

    async def ask(method, path, content=b"", kind="application/json"):
        begun = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            head(
                method, path, port, Connection="close", Content_Type=kind,
                Content_Length=len(content),
            ) + content
        )  # fmt: skip
        said = await reader.read()
        writer.close()
        first, _, rest = said.partition(b"\r\n\r\n")
        status = int(first.split()[1])
        times.setdefault(path.partition("?")[0].split("/")[1], []).append(time.monotonic() - begun)
        statuses.append((status, b"retry-after" in first.lower()))
        return status, json.loads(rest)

    status, said = await ask("POST", "/uploads?kind=reference", body, "application/octet-stream")
    if status != 201:
        return
    asked = json.dumps({**order, "reference": said["id"]}).encode()
    status, said = await ask("POST", "/jobs", asked)
    for _ in range(3):
        await ask("GET", f"/jobs/{said['id']}" if status == 201 else "/health")


def test_exact_200_clients_at_once_are_served_or_told_to_wait(program, inputs):
    program.start()
    order = program.client.order(*inputs)
    bodies = []
    for k in range(200):
        content = io.BytesIO()
        Image.new("RGB", (64, 64), (k, 0, 0)).save(content, "PNG")
        bodies.append(content.getvalue())
    before, times, statuses = program.status("VmRSS"), {}, []

    async def all_at_once():
        await asyncio.gather(
            *(visit(program.client.port, body, order, times, statuses) for body in bodies)
        )

    begun = time.monotonic()
    asyncio.run(all_at_once())
    seconds = time.monotonic() - begun
    grown = program.status("VmHWM") - before
    counts = {s: sum(x == s for x, _ in statuses) for s in sorted({x for x, _ in statuses})}
    log.info("200 clients, %d requests in %.1f s: %s", len(statuses), seconds, counts)
    for what, took in times.items():
        log.info("%s: p50 %.2f, p95 %.2f, most %.2f s", what, *np.percentile(took, (50, 95, 100)))
    log.info("memory of the server: %.0f MiB before, %.1f MiB more at most", before, grown)
    assert set(counts) <= {200, 201, 429}
    assert counts[201] >= 200 + 32  # all uploads, and a full queue
    assert counts[429] > 0
    assert all(later for status, later in statuses if status == 429)
    assert grown < 40
    queue = program.client.get("/health")
    assert queue["queued"] + queue["running"] <= 32
    assert program.client.upload("driving", bytes(100 << 20))[0] == 422
    grown = program.status("VmHWM") - before
    log.info("and after an upload of 100 MiB: %.1f MiB more at most", grown)
    assert grown < 40
