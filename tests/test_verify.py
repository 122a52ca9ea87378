"""Marks of results: the manifest, who signs it, and `dreamactor verify` on all kinds of files."""

import errno
import json
import resource
import shutil
import stat
import sys
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from copycat import Copycat
from cryptography.hazmat.primitives.asymmetric import ec
from filming import film, frames_of

from dreamactor import cli, manifest, signer, verify, watermark
from dreamactor.diffusion.pipeline import animate
from dreamactor.errors import ConfigError, MediaError
from dreamactor.image import write_png
from dreamactor.video import write_clip


def moving(i, height, width):
    """A slope with a rough square that moves."""
    frame = (
        np.linspace(60, 180, width)[None, :, None].repeat(height, 0).repeat(3, 2).astype(np.uint8)
    )
    rough = np.random.default_rng(0).integers(0, 256, (height // 2, width // 2, 3), dtype=np.uint8)
    frame[4 : 4 + height // 2, i : i + width // 2] = rough
    return frame


@pytest.fixture
def made(tmp_path):
    """Animate with the copying backbone; the inputs have names that must not get out."""
    private = tmp_path / "private_folder"
    private.mkdir()
    write_png(private / "my_daughter.png", moving(0, 64, 64))
    film(private / "my_waltz.mp4", 12, 12, size=(64, 64), draw=moving)

    def made(name="out.mp4", **settings):
        settings = {"prompt": "", "backbone": Copycat(), "overwrite": True} | settings
        return animate(
            reference=private / "my_daughter.png",
            driving=private / "my_waltz.mp4",
            out=tmp_path / name,
            **settings,
        )

    return made


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `dreamactor verify`: exit code, stdout, stderr."""

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["dreamactor", "verify", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    return command


def touch(path, mark=b"mvhd", offset=8):
    """Change one byte that no decoder looks at: of the time when an mp4 was made."""
    data = bytearray(path.read_bytes())
    data[data.index(mark) + offset] ^= 1
    path.write_bytes(data)


# ---- what results have ---------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".gif", ".webm", ".mkv"])
def test_results_are_marked_and_the_marks_agree(made, command, tmp_path, suffix):
    result = made(f"out{suffix}")
    beside = suffix in (".webm", ".mkv")
    told = result.facts["marks"]
    assert told["c2pa"] == {"where": "beside" if beside else "file", "signer": "local"}
    files = {f"out{suffix}", "out.json", "private_folder"} | ({"out.c2pa"} if beside else set())
    assert {path.name for path in tmp_path.iterdir()} == files
    code, shown, error = command(result.out)
    assert (code, error) == (0, "")
    assert "made by DreamActor" in shown
    assert "says that a trained model made it" in shown
    assert "signed by this machine's local certificate" in shown
    assert "record     out.json: its sha256 agrees" in shown
    code, shown, error = command(result.out, "--json")
    found = json.loads(shown)
    assert (code, found["code"], found["contradictions"]) == (0, 0, [])
    assert found["manifest"]["settings"]["watermark"] == told["watermark"]
    if suffix != ".webm":  # 12 small frames; what survives is measured in docs/marks.md
        assert found["watermark"]["identity"] == told["watermark"]["identity"]


def test_a_manifest_says_what_the_result_is_made_of(made):
    result = made(seed=7)
    seen = manifest.look(result.out)
    assert (seen.state, seen.generated, seen.faults) == ("valid", True, ())
    inputs = result.facts["inputs"]
    assert seen.ingredients == {k: f"sha256:{inputs[k]['sha256']}" for k in inputs}
    assert set(seen.ingredients) == {"reference", "driving"}
    assert seen.settings["settings"]["seed"] == 7
    assert seen.settings["backbone"] == {"name": "copycat", "weights": ["0" * 64]}
    assert seen.settings["versions"]["dreamactor"] == result.facts["versions"]["dreamactor"]


def test_a_manifest_names_no_file_and_no_words_of_the_users(made, tmp_path):
    weights = {"lora/my_secret_style.safetensors@1": "0" * 64}
    result = made(prompt="a secret wish", backbone=Copycat(weights=weights))
    data = result.out.read_bytes()
    for word in ("daughter", "waltz", "private", "secret", "out.mp4", tmp_path.name):
        assert word.encode() not in data, word


def test_marks_can_be_left_out(made, command, tmp_path):
    result = made(watermark=False, manifest=False)
    assert result.facts["marks"] == {
        "watermark": None,
        "c2pa": {"where": None, "why": "not asked for"},
    }
    assert command(result.out)[0] == 0  # by its record
    result.record.unlink()
    code, shown, _ = command(result.out)
    assert code == 1
    assert "no mark found" in shown
    plain = made("plain.mp4", watermark=False, manifest=False)
    for a, b in zip(frames_of(plain.out), frames_of(result.out), strict=True):
        assert np.array_equal(a, b)


def test_the_same_pixels_have_the_same_identity(made):
    def identity(**settings):
        return made(**settings).facts["marks"]["watermark"]["identity"]

    first = identity()
    assert identity(name="other.mov", manifest=False, audio=False) == first
    assert identity(seed=1) != first
    assert identity(prompt="a fox") != first
    assert identity(backbone=Copycat(name="copydog")) != first


def test_a_manifest_of_the_clip_before_does_not_stay(made, tmp_path):
    made("out.webm")
    assert (tmp_path / "out.c2pa").exists()
    made("out.webm", manifest=False)
    assert not (tmp_path / "out.c2pa").exists()


def test_refuses_to_replace_a_manifest_without_being_told(made, tmp_path):
    (tmp_path / "out.c2pa").write_text("mine")
    with pytest.raises(MediaError, match=r"out\.c2pa: is there already; pass --overwrite"):
        made("out.webm", overwrite=False)
    made("out.mp4", overwrite=False)
    assert (tmp_path / "out.c2pa").read_text() == "mine"


@pytest.mark.parametrize("name", ["out.mp4", "out.webm"])
def test_a_manifest_that_cannot_be_written_leaves_nothing(made, monkeypatch, tmp_path, name):
    import c2pa

    def full(*_):
        raise c2pa.C2paError("Io: No space left on device")

    monkeypatch.setattr(c2pa.Builder, "sign", full)
    with pytest.raises(MediaError, match=rf"{name}: its C2PA manifest cannot be written: Io: No"):
        made(name)
    assert [path.name for path in tmp_path.iterdir()] == ["private_folder"]


@pytest.fixture
def tight(made, tmp_path):
    """A limit on the size of files stands for a disk: without its manifest the clip fits."""

    @contextmanager
    def tight(name):
        clip = made(name, manifest=False).out
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (clip.stat().st_size + 2000, hard))
        clip.unlink()
        clip.with_suffix(".json").unlink()
        try:
            with pytest.raises(MediaError, match=rf"{name}: its C2PA .* written: File too large$"):
                yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [path.name for path in tmp_path.iterdir()] == ["private_folder"]

    return tight


@pytest.mark.parametrize("name", ["out.mp4", "out.mov", "out.gif"])
def test_a_disk_too_full_for_the_manifest_leaves_nothing(made, tight, name):
    with tight(name):
        made(name)


def test_a_full_disk_of_which_c2pa_says_nothing_is_told(made, tight, monkeypatch):
    import c2pa

    def sign(*given):
        with suppress(OSError):
            given[-1].write(bytes(1 << 20))
        raise c2pa.C2paError("Io: Other: UntrackedPointer: 0x2")

    with tight("out.gif"):
        monkeypatch.setattr(c2pa.Builder, "sign", sign)
        made("out.gif")


def test_a_disk_too_full_for_the_manifest_beside_leaves_nothing(made, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(manifest.Path, "write_bytes", full)
    with pytest.raises(MediaError, match=r"out\.mkv: its C2PA .* written: No space left on device"):
        made("out.mkv")
    assert [path.name for path in tmp_path.iterdir()] == ["private_folder"]


# ---- files that were changed, and files of others ------------------------------------------------


def test_a_changed_clip_is_told(made, command):
    result = made()
    touch(result.out)
    code, shown, error = command(result.out)
    assert (code, error) == (3, "")
    assert "NOT valid: assertion.bmffHash.mismatch" in shown
    assert "it names as signer: this machine's local certificate" in shown
    assert "record     out.json: its sha256 does NOT agree" in shown
    assert "CHANGED    the file or its manifest was changed after it was signed" in shown


def test_a_changed_manifest_is_told(made, command):
    result = made()
    data = result.out.read_bytes()
    result.out.write_bytes(
        data.replace(b'"seed":0', b'"seed":1').replace(b"reference", b"referense")
    )
    assert result.out.read_bytes() != data
    assert command(result.out)[0] == 3
    assert manifest.look(result.out).state == "broken"


def test_a_manifest_of_another_clip_is_told(made, command, tmp_path):
    first, other = made("first.webm"), made("other.webm", seed=1)
    shutil.copy(tmp_path / "other.c2pa", tmp_path / "first.c2pa")
    assert command(other.out)[0] == 0
    code, shown, _ = command(first.out)
    assert code == 3
    assert "NOT valid, in first.c2pa beside it: assertion.dataHash.mismatch" in shown


def test_encoded_again_only_the_watermark_is_left(made, command, tmp_path):
    result = made()
    again = tmp_path / "again.mp4"
    write_clip(again, frames_of(result.out), 12, crf=14)
    code, shown, _ = command(again)
    assert code == 0
    assert "manifest   none" in shown
    assert f"identity {result.facts['marks']['watermark']['identity']}" in shown
    shutil.copy(result.record, tmp_path / "again.json")
    assert command(again)[0] == 3, "the record is of other bytes"


def test_a_record_of_other_frames_is_told(made, command):
    result = made()
    facts = json.loads(result.record.read_text())
    facts["marks"]["watermark"]["identity"] = "\033[31mfake"
    result.record.write_text(json.dumps(facts))
    code, shown, _ = command(result.out)
    assert code == 3
    assert "the record tells of watermark ?[31mfake, the frames have" in shown


@pytest.mark.parametrize("text", ["[", "[]", "{}", '{"output": 3}', '{"output": {"sha256": []}}'])
def test_a_record_of_somebody_else_is_none(made, tmp_path, text):
    result = made(watermark=False, manifest=False)
    result.record.write_text(text)
    found = verify.verify(result.out).record
    assert found is None or not found.agrees


@pytest.mark.parametrize("kind", ["picture", "clip"])
def test_files_without_marks(command, tmp_path, kind):
    if kind == "picture":
        path = tmp_path / "a.png"
        write_png(path, moving(0, 64, 64))
    else:
        path = film(tmp_path / "a.mp4", 4, draw=moving)
    code, shown, error = command(path)
    assert (code, error) == (1, "")
    assert "no mark found; that says nothing of where the file is from" in shown


def test_one_frame_as_a_picture(made, command, tmp_path):
    frame = np.kron(moving(0, 64, 64), np.ones((4, 4, 1), np.uint8))
    write_png(tmp_path / "frame.png", watermark.Marker("3fa211ee", frame.shape[:2]).mark(frame))
    code, shown, _ = command(tmp_path / "frame.png")
    assert code == 0
    assert "identity 3fa211ee" in shown


@pytest.mark.parametrize("name", ["gone.mp4", "text.mp4", "empty.mp4", "cut.mp4", "."])
def test_refuses_what_is_neither_clip_nor_picture(made, command, tmp_path, name):
    (tmp_path / "text.mp4").write_text("not a clip")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "cut.mp4").write_bytes(made().out.read_bytes()[:-2000])
    code, shown, error = command(tmp_path / name)
    assert (code, shown) == (2, "")
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("suffix", [".gif", ".mp4", ".webm"])
def test_random_damage_is_told(made, tmp_path, suffix):
    """Whatever is changed in a file, nothing but a state comes of it."""
    result, rng = made(f"out{suffix}"), np.random.default_rng(0)
    path = tmp_path / "out.c2pa" if suffix == ".webm" else result.out
    data, states = path.read_bytes(), []
    for _ in range(60):
        bad = bytearray(data)
        for place in rng.integers(0, min(len(bad), 8000), 2):  # the manifest is at the beginning
            bad[place] ^= int(rng.integers(1, 256))
        path.write_bytes(bad)
        states.append(manifest.look(result.out).state)
    assert set(states) <= {"broken", "none", "valid"}
    assert states.count("broken") > 40
    assert states.count("valid") < 5  # padding alone was hit


def test_foreign_texts_are_one_printable_line():
    assert manifest.shown("a\033[31m\nb\u202ec" + "x" * 500) == ("a?[31m b?c" + "x" * 500)[:200]


def test_actions_of_any_shape():
    for data in (None, [], {"actions": 3}, {"actions": [3, {}, {"digitalSourceType": []}]}):
        assert not manifest._generated(data)
    made = {"digitalSourceType": f"{manifest.SOURCE}compositeWithTrainedAlgorithmicMedia"}
    assert manifest._generated({"actions": [{}, made]})


# ---- who signs -----------------------------------------------------------------------------------


@pytest.fixture
def press(tmp_path, monkeypatch):
    """A certificate of a press, named by the environment."""
    root, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    chain = [
        signer._certificate(*pair, "Example Press")
        for pair in ((key, "x", root), (root, "root", root))
    ]
    (tmp_path / "cert.pem").write_text("".join(map(signer._pem, chain)))
    (tmp_path / "key.pem").write_text(signer._pem(key))
    monkeypatch.setenv(signer.CERTIFICATE, str(tmp_path / "cert.pem"))
    monkeypatch.setenv(signer.KEY, str(tmp_path / "key.pem"))
    return tmp_path


def test_the_users_certificate_signs(made, press, command, monkeypatch):
    result = made()
    assert result.facts["marks"]["c2pa"] == {"where": "file", "signer": "user"}
    assert "signed by your certificate" in command(result.out)[1]
    for name in signer.VARIABLES:
        monkeypatch.delenv(name)
    code, shown, _ = command(result.out)
    assert code == 0
    assert "signed by Example Press, DreamActor x, whom nobody here vouches for" in shown


def test_a_local_certificate_of_another_machine_vouches_for_nothing(
    made, command, monkeypatch, tmp_path
):
    result = made()
    monkeypatch.setenv(signer.HOME, str(tmp_path / "another_home"))
    for _ in range(2):  # without one of its own, and with
        code, shown, _ = command(result.out)
        assert code == 0
        assert "a local certificate of another machine, which says nothing of who" in shown
        signer.local()
    touch(result.out)
    assert "it names as signer: a local certificate of another machine" in command(result.out)[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (signer.KEY, None, f"{signer.KEY} is not set; want both"),
        (signer.CERTIFICATE, "gone.pem", "gone.pem: No such file or directory"),
        (signer.CERTIFICATE, "key.pem", "no PEM certificate"),
        (signer.KEY, "cert.pem", "not a PEM private key"),
        (signer.KEY, "other.pem", "is not the key of the first certificate"),
        (signer.CERTIFICATE, "binary.pem", "not a PEM file"),
    ],
)
def test_refuses_a_certificate_that_cannot_sign_before_any_work(
    made, press, monkeypatch, name, content, message
):
    (press / "other.pem").write_text(signer._pem(ec.generate_private_key(ec.SECP256R1())))
    (press / "binary.pem").write_bytes(b"\xff\xfe")
    if content is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, str(press / content))
    backbone = Copycat()
    with pytest.raises(ConfigError, match=message):
        made(backbone=backbone)
    assert backbone.passes == 0


def test_refuses_a_certificate_of_the_past_and_one_that_signs_itself(press, monkeypatch, made):
    key = ec.generate_private_key(ec.SECP256R1())
    (press / "key.pem").write_text(signer._pem(key))
    (press / "cert.pem").write_text(signer._pem(signer._certificate(key, "root", key)))
    with pytest.raises(ConfigError, match="signed by itself; C2PA wants one that an authority"):
        made()
    root = ec.generate_private_key(ec.SECP256R1())
    monkeypatch.setattr(signer, "YEARS", 0)
    expired = signer._certificate(key, "x", root)
    monkeypatch.setattr(signer.datetime, "datetime", Later)
    (press / "cert.pem").write_text(signer._pem(expired))
    with pytest.raises(ConfigError, match="not valid today, but until 20"):
        made()


class Later(signer.datetime.datetime):
    @classmethod
    def now(cls, zone=None):
        return super().now(zone) + signer.datetime.timedelta(days=2)


@pytest.mark.parametrize("curve", [ec.SECP256K1(), ec.BrainpoolP256R1()])
def test_refuses_keys_that_c2pa_does_not_know(curve):
    with pytest.raises(ConfigError, match="want a key of P-256, P-384"):
        signer.algorithm(ec.generate_private_key(curve), "key.pem")


def test_the_local_certificate_is_private_made_once_and_names_nobody(tmp_path, monkeypatch):
    monkeypatch.setenv(signer.HOME, str(tmp_path / "home" / "deep"))
    first = signer.local()
    assert signer.local() == first
    (path,) = (tmp_path / "home" / "deep").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert first.chain.count("BEGIN CERTIFICATE") == 2
    assert "PRIVATE" not in first.chain
    assert first.key not in repr(first)
    from cryptography.x509 import load_pem_x509_certificates

    names = {c.subject.rfc4514_string() for c in load_pem_x509_certificates(first.chain.encode())}
    assert names == {
        f"CN=DreamActor {role},O=DreamActor\\, local certificate" for role in ("signer", "root")
    }


def test_of_two_processes_one_makes_the_certificate(tmp_path):
    path = tmp_path / "local_signer.pem"
    signer._keep(path, "first")
    signer._keep(path, "second")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(path.name, "first")]


def test_home_is_the_platforms(monkeypatch, tmp_path):
    monkeypatch.delenv(signer.HOME)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert signer.home() == tmp_path / "dreamactor"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert signer.home().parts[-3:] == ("Library", "Application Support", "DreamActor")


# ---- machines that cannot sign -------------------------------------------------------------------


def test_without_the_library_there_is_no_manifest_and_that_is_said(made, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "c2pa", None)
    result = made()
    why = {"where": None, "why": "c2pa-python is not installed"}
    assert result.facts["marks"]["c2pa"] == why
    code, shown, _ = command(result.out)
    assert code == 0
    assert "manifest   not looked at: c2pa-python is not installed" in shown


def test_the_command_says_that_there_is_no_manifest(made, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "c2pa", None)
    monkeypatch.setattr("dreamactor.diffusion.pipeline.load_backbone", lambda *_: Copycat())
    inputs = tmp_path / "private_folder"
    words = ["--reference", inputs / "my_daughter.png", "--driving", inputs / "my_waltz.mp4",
             "--out", tmp_path / "out.mp4", "--prompt", ""]  # fmt: skip
    for more, said in (
        ([], "note: no C2PA manifest: c2pa-python is not installed\n"),
        (["--overwrite", "--no-manifest", "--no-watermark"], ""),
    ):
        monkeypatch.setattr(sys, "argv", ["dreamactor", "animate", *map(str, words + more)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert (end.value.code, capsys.readouterr().err) == (0, said)


def test_a_home_that_cannot_be_written_to_is_said(made, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(signer.HOME, str(tmp_path / "file" / "home"))
    why = made().facts["marks"]["c2pa"]
    assert why["where"] is None
    assert why["why"].endswith("local_signer.pem: cannot be written: Not a directory")


def test_a_damaged_local_certificate_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv(signer.HOME, str(tmp_path))
    (tmp_path / "local_signer.pem").write_text("?")
    with pytest.raises(MediaError, match="damaged; remove it, and another one will be made"):
        signer.local()
