"""The review page: two questions, by keyboard, kept at once, by several people."""

import http.client
import json
import shutil
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import standin
from PIL import Image
from standin import Tint

from dreamactor.bench.scores import Scores
from dreamactor.bootstrap import review
from dreamactor.bootstrap.manifest import DataSet
from dreamactor.bootstrap.pairs import make_pairs
from dreamactor.bootstrap.review import agreement, agreement_lines, decide, queue
from dreamactor.bootstrap.sources import Folders
from dreamactor.bootstrap.triplets import Decision
from dreamactor.errors import ConfigError, MediaError
from dreamactor.local import listen
from dreamactor.video import probe, write_clip

page = pytest.importorskip(
    "dreamactor.bootstrap.page", reason="no web framework: pip install 'dreamactor[review]'"
)
uvicorn = pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("review")
    sources, references = standin.write_inputs(folder)
    return make_pairs(folder / "out", Folders(sources, references, 2), Tint()).data.root


@pytest.fixture
def data(made, tmp_path):
    """Six items, of which the gate lets four pass."""
    shutil.copytree(made, tmp_path / "data")
    found = DataSet(tmp_path / "data")
    for k, item in enumerate(found.items()):
        scores = Scores(5, 5, 5, 5 if k < 4 else 2).plain()
        found.say(item, "gate", "measured", {"scores": scores, "threshold": 4.5})
    return found


@contextmanager
def served(data, judge="measured"):
    """The port of a server in a thread."""
    with listen("127.0.0.1", 0) as listening:
        config = uvicorn.Config(page.create_app(data, judge), log_level="warning", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)


def ask(port, method, path, body=None, host=None, raw=False):
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {"Content-Type": "application/json"} if body is not None else {}
    if host:
        headers["Host"] = host
    link.request(method, path, json.dumps(body) if body is not None else None, headers)
    reply = link.getresponse()
    content = reply.read()
    link.close()
    return reply.status, content if raw else json.loads(content)


def test_exact_answers_are_kept_and_taken_back(data):
    with served(data) as port:
        code, first = ask(port, "GET", "/api/reviews/anna")
        assert (code, first["place"], first["left"], len(first["items"])) == (200, 0, 4, 4)
        one, two = (entry["item"] for entry in first["items"][:2])
        yes = {"motion": True, "identity": True, "seconds": 3.25}
        assert ask(port, "PUT", f"/api/reviews/anna/{one}", yes)[1]["accepts"] is True
        assert data.decisions(one) == (Decision("anna", True, True),)
        assert data.said(one, "review")["anna"]["seconds"] == 3.2
        ask(port, "PUT", f"/api/reviews/anna/{one}", {**yes, "identity": False})
        assert data.decisions(one) == (Decision("anna", True, False),)
        ask(port, "PUT", f"/api/reviews/anna/{two}", yes)
        ask(port, "DELETE", f"/api/reviews/anna/{two}")
        assert data.decisions(two) == ()
        again = ask(port, "GET", "/api/reviews/anna")[1]
        assert (again["place"], again["left"]) == (1, 3)  # where she stopped
        assert again["items"][0]["answer"] == {"motion": True, "identity": False}
        assert ask(port, "GET", "/api/reviews/ben")[1]["left"] == 4  # ben sees nothing of it


def test_exact_media_are_the_files_of_the_item(data):
    item = data.items()[0]
    synthesis = data.synthesis(item)
    wanted = {
        "source": synthesis.forward.source.path,
        "identity": synthesis.forward.identity.path,
        "result": synthesis.clip.path,
    }
    with served(data) as port:
        for what, path in wanted.items():
            code, content = ask(port, "GET", f"/media/{item}/{what}", raw=True)
            assert (code, content) == (200, path.read_bytes())


def test_exact_what_browsers_cannot_show_is_copied(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    frames = [np.full((32, 32, 3), 40 * k, np.uint8) for k in range(5)]
    write_clip(tmp_path / "a" / "clip.gif", frames, 10)
    Image.fromarray(frames[2]).save(tmp_path / "b" / "who.tiff")
    found = make_pairs(tmp_path / "out", Folders(tmp_path / "a", tmp_path / "b"), Tint()).data
    (item,) = found.items()
    with served(found, None) as port:
        code, clip = ask(port, "GET", f"/media/{item}/source", raw=True)
        (tmp_path / "shown.mp4").write_bytes(clip)
        assert (code, probe(tmp_path / "shown.mp4").codec) == (200, "h264")
        assert probe(tmp_path / "shown.mp4").frames == 5
        code, picture = ask(port, "GET", f"/media/{item}/identity", raw=True)
        assert (code, picture[:4]) == (200, b"\x89PNG")


def test_refuses_by_http(data):
    item, yes = data.items()[0], {"motion": True, "identity": True}
    with served(data) as port:
        for method, path, body, code, why in [
            ("GET", "/api/reviews/Anna!", None, 400, "want a-z, 0-9"),
            ("PUT", "/api/reviews/..%2fx/" + item, yes, 404, ""),
            ("PUT", "/api/reviews/anna/" + "0" * 20, yes, 404, "no item"),
            ("PUT", "/api/reviews/anna/nonsense", yes, 400, "want 20 hex digits"),
            ("PUT", f"/api/reviews/anna/{item}", {"motion": True}, 422, "identity"),
            ("PUT", f"/api/reviews/anna/{item}", {**yes, "motion": "yes"}, 422, "motion"),
            ("PUT", f"/api/reviews/anna/{item}", {**yes, "seconds": -1}, 422, "seconds"),
            ("PUT", f"/api/reviews/anna/{item}", {**yes, "more": 1}, 422, "more"),
            ("GET", f"/media/{item}/item.json", None, 422, ""),
            ("GET", "/media/..%2f..%2fetc/source", None, 404, ""),
        ]:
            found, said = ask(port, method, path, body)
            assert (found, why in json.dumps(said)) == (code, True), (path, said)
        code, _ = ask(port, "GET", "/api/agreement", host="evil.example", raw=True)
        assert code == 400  # another site's name that points here
    assert data.decisions(item) == ()


def test_exact_only_what_passed_unless_all_is_wanted(data):
    passed = set(data.items()[:4])
    assert set(queue(data, "anna", "measured")) == passed
    assert set(queue(data, "anna", None)) == set(data.items())
    assert queue(data, "anna", None) != queue(data, "ben", None)
    assert queue(data, "anna", None) == queue(data, "anna", None)
    with pytest.raises(ConfigError, match="has not judged anything"):
        queue(data, "anna", "nobody")
    with pytest.raises(MediaError, match="no item"):
        decide(data, "0" * 20, Decision("anna", True, True), 1)


def test_exact_agreement_of_two_people(data):
    items = data.items()
    for k, item in enumerate(items):
        decide(data, item, Decision("anna", motion=k < 4, identity=True), 1)
        if k:
            decide(data, item, Decision("ben", motion=k < 3, identity=True), 1)
    (found,) = agreement(data)
    # 5 items: anna yes yes yes no no, ben yes yes no no no; equal .8, by chance .6*.4 + .4*.6
    assert (found.a, found.b, found.items, found.equal) == ("anna", "ben", 5, 0.8)
    assert found.motion == pytest.approx((0.8 - 0.48) / (1 - 0.48))
    assert found.accepts == found.motion
    assert found.identity is None  # everybody always said yes
    assert agreement_lines(data) == [
        "anna and ben: 5 items, 80% alike, Cohen's kappa 0.62 (motion 0.62, identity not defined)"
    ]


def test_exact_triplets_come_of_what_was_accepted(data):
    one, two, three = data.items()[:3]
    refused = data.items()[5]
    for item, good in ((one, True), (two, True), (three, False), (refused, True)):
        decide(data, item, Decision("anna", good, True), 1)
    decide(data, two, Decision("ben", True, False), 1)
    (triplet,) = data.triplets("measured")
    assert triplet.driving == data.synthesis(one).clip
    assert triplet.target == data.synthesis(one).forward.source
    path, count = data.write_triplets("measured")
    assert count == 1
    line = json.loads(path.read_text())
    assert line["driving"] == f"items/{one}/clip.mp4"
    assert line["target"] == line["reference"]["clip"] == f"inputs/{triplet.target.path.name}"
    assert list(data.triplets("measured", reviewers=2)) == []
    manifest = [json.loads(x) for x in data.write_manifest().read_text().splitlines()]
    (said,) = [x["review"] for x in manifest if x["item"] == two]
    assert {name: said[name]["identity"] for name in said} == {"anna": True, "ben": False}


def test_exact_nobody_accepts_what_passed_and_a_person_overrules(data):
    passed = [item for item in data.items() if data.verdict(item, "measured").passed]
    decide(data, passed[0], Decision("anna", False, True), 1)
    assert review.accept_unseen(data, "measured") == len(passed) - 1
    assert review.accept_unseen(data, "measured") == 0
    assert review.unreviewed(data, "measured", 1) == passed[1:]
    assert len(list(data.triplets("measured"))) == len(passed) - 1
    decide(data, passed[1], Decision("anna", True, False), 1)
    assert review.unreviewed(data, "measured", 1) == passed[2:]
    assert len(list(data.triplets("measured"))) == len(passed) - 2


def test_refuses_an_address_that_is_taken(data):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} cannot be listened on"):
            review.serve(data, "measured", "127.0.0.1", port, print)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_exact_a_review_by_keyboard_in_a_browser(data, browser, tmp_path):
    def press(key):
        browser.find_element("tag name", "body").send_keys(key)

    def text(name):
        return browser.find_element("id", name).text

    def run(script):
        return browser.execute_script(script)

    order = queue(data, "anna", "measured")
    with served(data) as port:
        browser.get(f"http://127.0.0.1:{port}/")
        name = browser.find_element("id", "name")
        name.send_keys("anna")
        name.submit()
        wait_for(lambda: text("count") == "item 1, 0 of 4 reviewed")
        ready = "return [...document.querySelectorAll('video')].every(v => v.readyState >= 2)"
        wait_for(lambda: run(ready))
        wait_for(lambda: run("return document.getElementById('identity').naturalWidth") == 64)
        press(" ")
        wait_for(lambda: run("return document.getElementById('source').paused"))
        where = "return [...document.querySelectorAll('video')].map(v => v.currentTime)"
        run("document.querySelectorAll('video').forEach(v => { v.currentTime = 0.1 })")
        press(".")  # one frame of 12 a second on, in both clips
        wait_for(lambda: run(where) == pytest.approx([0.1 + 1 / 12] * 2, abs=1e-3))
        press(",")
        wait_for(lambda: run(where) == pytest.approx([0.1] * 2, abs=1e-3))
        browser.save_screenshot(str(tmp_path / "review.png"))

        press("a")
        wait_for(lambda: text("count") == "item 2, 1 of 4 reviewed")
        press("m")
        wait_for(lambda: text("count") == "item 3, 2 of 4 reviewed")
        assert data.decisions(order[0]) == (Decision("anna", True, True),)
        assert data.decisions(order[1]) == (Decision("anna", False, True),)
        press("u")
        wait_for(lambda: text("count") == "item 2, 1 of 4 reviewed")
        assert data.decisions(order[1]) == ()

        browser.get("about:blank")
        browser.get(f"http://127.0.0.1:{port}/#anna")  # another day
        wait_for(lambda: text("count") == "item 2, 1 of 4 reviewed")
        assert text("note") == "You go on where you stopped."
        for key, left in (("i", 2), ("b", 3)):
            press(key)
            wait_for(lambda left=left: f"{left} of 4" in text("count"))
        browser.find_element("css selector", "button[data-key=a]").click()
        wait_for(lambda: browser.find_element("id", "end").is_displayed())
        assert [data.decisions(item)[0].accepts for item in order] == [True, False, False, True]
        browser.save_screenshot(str(tmp_path / "end.png"))
        severe = [x for x in browser.get_log("browser") if x["level"] == "SEVERE"]
        assert [x for x in severe if "favicon" not in x["message"]] == []
