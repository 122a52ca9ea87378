"""The raters' page: what it refuses, and a whole study by keyboard and on a phone's width."""

import http.client
import json
import shutil
import threading
import time
from contextlib import contextmanager

import pytest
from study_folder import SYSTEMS, study_inputs

from dreamactor.bench.study.answers import open_book, read_answers
from dreamactor.bench.study.design import StudyConfig
from dreamactor.bench.study.make import make_study
from dreamactor.bench.study.plan import DIMENSIONS, load_plan
from dreamactor.local import listen

server = pytest.importorskip(
    "dreamactor.bench.study.server", reason="no web framework: pip install 'dreamactor[review]'"
)
uvicorn = pytest.importorskip("uvicorn")

RATED = {"imaging": 4, "motion": 3, "appearance": 5}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    config = StudyConfig(gsb="ours", raters=3, cases=2, systems="ours,rivalone")
    return make_study(*study_inputs(folder), folder / "out", config)


@pytest.fixture
def study(made, tmp_path):
    shutil.copytree(made.root, tmp_path / "study")
    return load_plan(tmp_path / "study")


@contextmanager
def served(plan):
    """The port of a server in a thread."""
    with open_book(plan) as book, listen("127.0.0.1", 0) as listening:
        config = uvicorn.Config(server.create_app(book), log_level="warning", ws="none")
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            running.should_exit = True
            thread.join(20)


def ask(port, method, path, body=None, **headers):
    """Status, headers and content."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    sent = {**(JSON if body is not None else {}), **headers}
    link.request(method, path, body if body is None else json.dumps(body), sent)
    reply = link.getresponse()
    content = reply.read()
    link.close()
    return reply.status, dict(reply.getheaders()), content


def test_exact_resume_by_http(study):
    rater = study.raters[0]
    base = f"/api/{rater.code}"
    given = {"answer": RATED, "seconds": 3.5, "plays": 2}
    with served(study) as port:
        code, _, content = ask(port, "GET", base)
        state = json.loads(content)
        assert (code, state["agreed"], state["place"], state["rater"]) == (200, False, 0, 1)
        assert [item["id"] for item in state["items"]] == [item.id for item in rater.items]
        assert not [word for word in (*SYSTEMS, "check", "system") if word in content.decode()]
        first = rater.items[0].id
        assert ask(port, "PUT", f"{base}/answers/{first}", given)[0] == 400  # not agreed yet
        assert ask(port, "PUT", f"{base}/consent", {})[0] == 200
        assert ask(port, "PUT", f"{base}/answers/{first}", given)[0] == 200
    with served(study) as port:
        spaced = f"{rater.code[:5].upper()}-{rater.code[5:]}"  # as people write it
        state = json.loads(ask(port, "GET", f"/api/{spaced}")[2])
        assert (state["agreed"], state["place"]) == (True, 1)
        assert state["items"][0]["answer"] == RATED
        assert json.loads(ask(port, "GET", f"/api/{study.raters[1].code}")[2])["place"] == 0


def test_exact_media_whole_and_in_parts(study):
    item = study.raters[0].items[0]
    with served(study) as port:
        for name, kind in ((item.shown[0], "video/mp4"), (item.reference, "image/png")):
            content = (study.root / "media" / name).read_bytes()
            code, headers, found = ask(port, "GET", f"/media/{name}")
            assert (code, headers["content-type"], found) == (200, kind, content)
            assert headers["x-content-type-options"] == "nosniff"
            code, headers, found = ask(port, "GET", f"/media/{name}", Range="bytes=10-19")
            assert (code, found) == (206, content[10:20])
            assert headers["content-range"] == f"bytes 10-19/{len(content)}"


def test_refuses_by_http(study):
    rater = study.raters[0]
    base, item = f"/api/{rater.code}", rater.items[0].id
    path, given = f"{base}/answers/{item}", {"answer": RATED, "seconds": 1, "plays": 1}
    pair = rater.items[-1].id
    with served(study) as port:
        ask(port, "PUT", f"{base}/consent", {})
        for method, where, body, headers, status in [
            ("GET", "/api/nobody", None, {}, 404),
            ("GET", "/api/../plan.json", None, {}, 404),
            ("GET", "/media/plan.json", None, {}, 404),
            ("GET", "/media/..%2fplan.json", None, {}, 404),
            ("GET", "/plan.json", None, {}, 404),
            ("GET", "/page.html", None, {}, 404),
            ("GET", "/docs", None, {}, 404),
            ("PUT", f"{base}/answers/{study.raters[1].items[0].id}", given, {}, 404),
            ("PUT", f"{base}/answers/{pair}", given, {}, 400),
            ("PUT", path, {**given, "answer": {"motion": 3}}, {}, 400),
            ("PUT", path, {**given, "answer": {**RATED, "motion": 0}}, {}, 400),
            ("PUT", path, {**given, "answer": {**RATED, "motion": 2.5}}, {}, 422),
            ("PUT", path, {**given, "seconds": -1}, {}, 422),
            ("PUT", path, {**given, "more": 1}, {}, 422),
            ("PUT", path, given, {"Origin": "http://evil.example"}, 403),
            ("PUT", path, given, {"Origin": "null"}, 403),
            ("PUT", path, given, {"Content-Type": "text/plain"}, 415),
            ("PUT", path, {**given, "answer": {"x" * 5000: 1}}, {}, 413),
            ("POST", path, given, {}, 405),
            ("GET", base, None, {"Host": "evil.example"}, 400),
        ]:
            assert ask(port, method, where, body, **headers)[0] == status, (method, where)
        assert ask(port, "PUT", path, given, Origin=f"http://127.0.0.1:{port}")[0] == 200
        code, headers, _ = ask(port, "GET", f"/r/{rater.code}")
        assert (code, headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "default-src 'none'; script-src 'self'" in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
    assert list(read_answers(study).of(rater)) == [item]


class Rater:
    """Somebody at a browser of a certain size."""

    def __init__(self, browser, width, height):
        from selenium.webdriver.common.keys import Keys

        self.browser, self.keys = browser, Keys
        told = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", told)

    def run(self, script):
        return self.browser.execute_script(f"return {script}")

    def press(self, *keys):
        self.browser.switch_to.active_element.send_keys(*keys)

    def click(self, selector):
        self.browser.find_element("css selector", selector).click()

    def text(self, name):
        return self.browser.find_element("id", name).text

    def sees(self, section, count=None):
        def there():
            return self.run("section") == section and count in (None, self.text("count"))

        end = time.monotonic() + 30
        while not there():
            assert time.monotonic() < end, (section, count, self.run("section"), self.text("count"))
            time.sleep(0.02)

    def waits(self, script):
        end = time.monotonic() + 30
        while not self.run(script):
            assert time.monotonic() < end, script
            time.sleep(0.02)


def test_exact_a_study_by_keyboard(study, browser, tmp_path):
    person, rater = Rater(browser, 1280, 800), study.raters[0]
    ratings = [item for item in rater.items if item.kind == "rate"]
    many, pairs = len(ratings), len(rater.items) - len(ratings)
    with served(study) as port:
        browser.get(f"http://127.0.0.1:{port}/")
        person.sees("enter")
        person.click("#code")
        person.press("wrong", person.keys.ENTER)
        person.waits("document.getElementById('trouble').textContent.startsWith('This code')")
        person.click("#code")
        person.press(person.keys.CONTROL + "a")
        person.press(rater.code.upper(), person.keys.ENTER)
        person.sees("consent")
        assert f"{many} clips to rate and {pairs} pairs" in person.text("load")
        assert "Taking part is voluntary" in person.text("consent-text")
        person.click("#agree")
        person.sees("how-rate")
        person.click("#how-rate .go")
        person.sees("item", f"1 of {many}")
        person.waits("player.ready() && document.getElementById('reference').naturalWidth === 48")
        assert person.text("part") == "Part 1 of 2"

        # one scale after the other, then Enter; too early it says what is missing
        person.press("4")
        person.press("2")
        person.press(person.keys.ENTER)
        assert person.text("note") == "Still to rate: appearance."
        assert read_answers(study).of(rater) == {}
        person.press("5")
        person.press(person.keys.ENTER)
        person.sees("item", f"2 of {many}")
        said = {"imaging": 4, "motion": 2, "appearance": 5}
        assert read_answers(study).of(rater)[ratings[0].id].said == said
        # back, and another mind: arrows move between scales and within them
        person.press(person.keys.BACKSPACE)
        person.sees("item", f"1 of {many}")
        assert person.run("document.activeElement.id") == "task"  # no answer is suggested
        person.press(person.keys.ARROW_DOWN)
        person.press(person.keys.ARROW_DOWN)
        person.press(person.keys.ARROW_RIGHT)
        person.press(person.keys.ENTER)
        person.sees("item", f"2 of {many}")
        answer = read_answers(study).of(rater)[ratings[0].id]
        assert answer.said == {**said, "motion": 3}
        assert 0 < answer.seconds < 60

        # both clips run together, again and again, until they are stopped
        person.waits("player.plays >= 1")
        times = "player.clips.map(clip => clip.currentTime)"
        first, second = person.run(times)
        assert abs(first - second) < 0.2
        person.press("p")
        assert person.text("play") == "Play"
        person.waits("player.clips.every(clip => clip.paused)")

        browser.get(f"http://127.0.0.1:{port}/r/{rater.code}")  # another day
        person.sees("item", f"2 of {many}")
        assert person.text("note") == "You go on where you stopped."
        for place in range(1, many):
            person.sees("item", f"{place + 1} of {many}")
            for key in ("3", "3", "3", person.keys.ENTER):
                person.press(key)
        person.sees("how-pair")
        browser.get(f"http://127.0.0.1:{port}/r/{rater.code}")
        person.sees("how-pair")
        person.press(person.keys.TAB, person.keys.ENTER)
        choices = ["a", "s", "b"] * pairs
        for place in range(pairs):
            person.sees("item", f"{place + 1} of {pairs}")
            assert person.run("document.getElementById('second-box').hidden") is False
            person.press(choices[place])
            person.press(person.keys.ENTER)
        person.sees("end")
        browser.save_screenshot(str(tmp_path / "end.png"))
        severe = [x for x in browser.get_log("browser") if x["level"] == "SEVERE"]
        assert [x for x in severe if "404" not in x["message"]] == []  # of the wrong code
    found = read_answers(study).of(rater)
    assert len(found) == len(rater.items)
    told = [found[item.id].said["choice"] for item in rater.items if item.kind == "pair"]
    assert told == [{"s": "same"}.get(key, key) for key in choices[:pairs]]


def test_exact_a_phone_by_touch(study, browser):
    person, rater = Rater(browser, 390, 844), study.raters[1]
    with served(study) as port:
        browser.get(f"http://127.0.0.1:{port}/r/{rater.code}")
        person.sees("consent")
        person.click("#agree")
        person.sees("how-rate")
        person.click("#how-rate .go")
        person.sees("item")
        person.waits("player.ready()")
        assert person.run("document.documentElement.scrollWidth") == 390
        # the result and all scales without scrolling, and nothing too small for a finger
        assert person.run("document.documentElement.scrollHeight") <= 844
        sizes = "[...document.querySelectorAll('.numbers label, #item button')].map(x => {"
        sizes += "const r = x.getBoundingClientRect(); return Math.min(r.width, r.height) })"
        assert min(person.run(sizes)) >= 44
        for name in DIMENSIONS:
            person.click(f"input[name={name}][value='2']")
        person.click("#next")
        person.sees("item")
        person.waits("place === 1")
        assert set(read_answers(study).of(rater)[rater.items[0].id].said.values()) == {2}


def test_exact_names_and_roles_for_screen_readers(study, browser):
    person, rater = Rater(browser, 1280, 800), study.raters[2]
    calm = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    with served(study) as port:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", calm)
        try:
            browser.get(f"http://127.0.0.1:{port}/r/{rater.code}")
            person.sees("consent")
            assert person.run("document.activeElement.tagName") == "H1"
            person.click("#agree")
            person.sees("how-rate")
            person.click("#how-rate .go")
            person.sees("item")
            person.waits("player.ready()")
            # nothing moves by itself
            assert person.text("play") == "Play"
            assert person.run("player.clips.every(clip => clip.paused)")
            person.press("p")
            person.waits("player.clips.every(clip => !clip.paused || clip.ended)")
            nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
            seen = [
                (node["role"]["value"], node.get("name", {}).get("value", ""))
                for node in nodes if not node["ignored"]
            ]  # fmt: skip
            for role, name in [
                ("group", "Imaging quality"),
                ("group", "Motion"),
                ("group", "Appearance"),
                ("radio", "1, unwatchable"),
                ("radio", "5, just like the driving clip"),
                ("image", "The picture: who is to move"),
                ("Video", "The driving clip"),
                ("Video", "The result"),
                ("heading", "Rate the result"),
                ("button", "Next"),
                ("navigation", "Pages"),
            ]:
                assert (role, name) in seen, (role, name)
            assert len([x for x in seen if x[0] == "radio"]) == 15
            assert not [x for x in seen if x[0] in ("button", "radio", "progressbar") and not x[1]]
        finally:
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
