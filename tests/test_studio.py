"""The studio's page in a browser: from files to a result and back, by mouse and by keys."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
import standin

pytest.importorskip("fastapi", reason="no web framework: pip install 'dreamactor[studio]'")
from serving import Fake, served, write_inputs
from standin import Tint
from study_folder import study_inputs
from test_serve import head, raw

from dreamactor import cli
from dreamactor.bench.study.answers import read_answers
from dreamactor.bench.study.design import StudyConfig
from dreamactor.bench.study.make import make_study
from dreamactor.bench.study.plan import load_plan
from dreamactor.bench.study.server import links, open_study
from dreamactor.bootstrap.manifest import DataSet
from dreamactor.bootstrap.pairs import make_pairs
from dreamactor.bootstrap.sources import Folders
from dreamactor.studio.page import review_tab, studio, study_tab

DESK, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"), sound="aac")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set to review."""
    folder = tmp_path_factory.mktemp("review")
    sources, references = standin.write_inputs(folder, clips=1)
    return make_pairs(folder / "out", Folders(sources, references, 1), Tint()).data.root


@pytest.fixture
def open_page(tmp_path, monkeypatch, browser, inputs):
    """Opens the page of a server; gives a `Page`."""
    stack = []

    def open_(animator, size=DESK, tabs=None, **options):
        root = tmp_path / "served"
        root.mkdir()
        monkeypatch.chdir(root)
        tabs = tabs or [review_tab(None), study_tab()]
        stack.append(served(root, animator, extend=[studio(tabs)], **options))
        page = Page(browser, stack[-1].__enter__(), tmp_path, inputs)
        page.resize(*size)
        page.open()
        return page

    yield open_
    for context in stack:
        context.__exit__(None, None, None)


class Page:
    """What a person does on the page and sees of it."""

    def __init__(self, browser, client, folder, inputs):
        self.browser, self.client, self.inputs = browser, client, inputs
        self.shots = Path(os.environ.get("DREAMACTOR_SHOTS", folder / "shots"))
        self.shots.mkdir(exist_ok=True)

    def resize(self, width, height):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def open(self, path=""):
        self.browser.get("about:blank")
        self.browser.get_log("browser")
        self.browser.get(f"http://127.0.0.1:{self.client.port}/{path}")
        if not self.client.token:
            self.wait(lambda: self.text("server"))

    def at(self, name):
        return self.browser.find_element("id", name)

    def text(self, name):
        return self.at(name).text

    def run(self, script, *values):
        return self.browser.execute_script("return " + script, *values)

    def value(self, name):
        return self.at(name).get_property("value")

    def wait(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.05)
        return found

    def shoot(self, name):
        self.run("scrollTo(0, 0)")
        self.browser.save_screenshot(str(self.shots / f"{name}.png"))

    def shoot_frame(self, name):
        """All of the page, from inside a frame."""
        self.browser.save_screenshot(str(self.shots / f"{name}.png"))

    def choose(self, kind, path):
        self.at(f"file-{kind}").send_keys(str(path))
        self.wait(lambda: " x " in self.text(f"say-{kind}"))

    def fill(self):
        self.choose("reference", self.inputs[0])
        self.choose("driving", self.inputs[1])
        self.at("consent").click()

    def click(self, name):
        self.at(name).click()

    def finish(self):
        self.wait(lambda: self.text("job-state") in ("done", "failed", "cancelled"))
        return self.text("job-state")

    def faults(self):
        """What the console says is wrong, without refusals that were provoked."""
        said = [x["message"] for x in self.browser.get_log("browser") if x["level"] == "SEVERE"]
        return [x for x in said if not any(f"status of {c}" in x for c in (401, 404, 422, 429))]


def test_exact_from_two_files_to_a_result_and_back_from_the_history(open_page, inputs):
    page = open_page(Fake(seconds=2.5))
    assert page.text("empty").startswith("Nothing here yet")
    assert not page.at("trim").is_displayed()
    page.shoot("empty")
    page.click("submit")
    assert page.text("form-say") == "Choose a reference picture first."
    assert page.run("document.activeElement.id") == "file-reference"
    page.choose("reference", inputs[0])
    page.choose("driving", inputs[1])
    assert page.text("say-driving") == "64 x 48, 2.00 s"
    page.at("start").send_keys("\ue014" * 6)  # arrow right: half a second of 12 frames a second
    page.at("end").send_keys("\ue012" * 3)
    assert page.text("part") == "0.50 to 1.75 s (1.25 s)"
    page.click("describe")
    page.wait(lambda: page.value("prompt"))
    assert page.value("prompt") == "a thing moves from 0.5"
    assert page.text("prompt-help") == "Written offline. Change it as you like."
    page.at("prompt").send_keys(" and on")
    choices = "[...document.querySelectorAll('#steps label')].map(x => x.textContent).join()"
    chosen = "document.querySelector('input[name=steps]:checked').closest('label').textContent"
    assert page.run(choices) == "2,4,8,16"
    page.at("preset").send_keys("q")
    assert page.text("preset-help") == "16 steps."
    assert (page.run(choices), page.run(chosen)) == ("2,4,8,16", "16")
    page.shoot("preset")
    page.run("arguments[0].click()", page.browser.find_element("css selector", "[value='8']"))
    page.at("seed").clear()
    page.at("seed").send_keys("42")
    page.click("submit")
    assert "right to animate" in page.text("form-say")
    assert page.client.get("/jobs") == []
    page.click("consent")
    page.shoot("ready")
    page.click("submit")
    page.wait(lambda: "of 5, about" in page.text("job-say"))
    page.wait(lambda: page.run("document.getElementById('pane-preview').naturalWidth"))
    page.shoot("running")
    assert page.finish() == "done"
    ready = "[...document.querySelectorAll('.panes video')].every(v => v.readyState >= 2)"
    page.wait(lambda: page.run(ready))
    page.wait(lambda: page.run("document.getElementById('pane-result').currentTime") > 0.2)
    lengths = page.run("[...document.querySelectorAll('.panes video')].map(v => v.duration)")
    assert lengths == pytest.approx([1.25, 1.25], abs=0.05)
    page.click("play")
    times = page.run("[...document.querySelectorAll('.panes video')].map(v => v.currentTime)")
    assert times[0] == pytest.approx(times[1], abs=0.06)
    page.shoot("done")

    (job,) = page.client.get("/jobs")
    wanted = {
        "seed": 42,
        "preset": "quality",
        "steps": 8,
        "start": 0.5,
        "end": 1.75,
        "consent": True,
    }
    assert {name: job["asked"][name] for name in wanted} == wanted
    assert job["asked"]["prompt"] == "a thing moves from 0.5 and on"
    for name, what in (("get-clip", "result"), ("get-record", "record")):
        link = page.at(name).get_attribute("href")
        assert link.endswith(f"/jobs/{job['id']}/{what}?download=true")

    page.click("tab-history")
    page.wait(lambda: "took" in page.text("history-list"))
    page.browser.find_element("css selector", "#history-list summary").click()
    assert "consent\ntrue" in page.text("history-list")
    page.shoot("history")
    page.open()  # another day
    page.click("tab-history")
    again = "//ul[@id='history-list']//button[text()='Use again']"
    page.wait(lambda: page.browser.find_elements("xpath", again))
    page.browser.find_element("xpath", again).click()
    page.wait(lambda: page.value("seed") == "42")
    assert page.text("part") == "0.50 to 1.75 s (1.25 s)"
    assert page.value("prompt") == "a thing moves from 0.5 and on"
    assert page.run("document.querySelector('input[name=steps]:checked').value") == "8"
    assert page.value("preset") == "quality"
    assert not page.at("consent").is_selected()  # said anew each time
    assert page.faults() == []


def test_exact_nothing_comes_from_elsewhere(open_page):
    page = open_page(Fake())
    page.fill()
    page.click("submit")
    assert page.finish() == "done"
    own = f"http://127.0.0.1:{page.client.port}/"
    asked = page.run("performance.getEntriesByType('resource').map(x => x.name)")
    assert len(asked) > 5
    assert all(address.startswith(own) for address in asked)
    status, headers, html = page.client.ask("GET", "/")
    assert status == 200
    assert "script-src 'self'" in headers["content-security-policy"]
    assert b"<style" not in html
    assert b" style=" not in html


def test_exact_everything_fits_a_phone(open_page):
    page = open_page(Fake(seconds=1.0), PHONE)
    wide = "document.documentElement.scrollWidth"
    page.shoot("phone_empty")
    page.fill()
    page.run("document.querySelector('#form details').open = true")
    assert page.run(wide) == PHONE[0]
    page.click("submit")
    page.wait(lambda: page.text("job-say"))
    assert page.run(wide) == PHONE[0]
    assert page.finish() == "done"
    page.wait(lambda: page.run("document.getElementById('pane-result').readyState >= 2"))
    page.browser.save_screenshot(str(page.shots / "phone_done.png"))
    small = """[...document.querySelectorAll('button, .button, select, textarea, input[type=text]')]
        .filter(x => x.offsetParent && !x.closest('.skip, label'))
        .map(x => [x.id || x.textContent, x.offsetHeight]).filter(x => x[1] < 36)"""
    for name in ("history", "review", "study", "animate"):
        page.click(f"tab-{name}")
        assert page.run(wide) == PHONE[0], name
        assert page.run(small) == [], name
        page.shoot(f"phone_{name}")


def test_exact_a_job_by_keyboard_alone(open_page):
    page = open_page(Fake())
    page.choose("reference", page.inputs[0])
    page.choose("driving", page.inputs[1])
    actions = pytest.importorskip("selenium.webdriver").ActionChains

    def press(key):
        actions(page.browser).send_keys(key).perform()

    focused = "document.activeElement"
    ring = f"""[{focused}, {focused}.nextElementSibling, {focused}.closest('label')].some(
        x => x && getComputedStyle(x).outlineStyle !== 'none')"""
    page.run(f"{focused}.blur()")
    seen, tab = [], "\ue004"
    for _ in range(60):
        press(tab)
        name = page.run(f"{focused}.id || {focused}.name || {focused}.tagName")
        if name == "start":  # the ring is around its thumb, of which scripts are told nothing
            page.shoot("focus")
        assert page.run(ring) or name in ("start", "end"), f"no focus can be seen on {name}"
        if name == "consent":
            press(" ")
        seen.append(name)
        if name == "submit":
            break
    assert {"file-reference", "file-driving", "start", "end", "prompt", "describe", "variant"} <= {
        *seen
    }
    assert {"preset", "steps", "seed", "dice", "SUMMARY", "consent"} <= {*seen}
    press("\ue007")  # Enter
    assert page.finish() == "done"
    page.at("tab-animate").send_keys("\ue014")
    assert page.run("document.activeElement.id") == "tab-history"
    assert page.at("history").is_displayed()
    press("\ue010")  # End
    assert page.text("study").startswith("Study is not open here.")
    press("\ue014")  # and around
    assert page.at("animate").is_displayed()


def test_exact_faults_are_said_where_they_belong(open_page, tmp_path):
    page = open_page(Fake(seconds=20, steps=200), queue=2)
    (tmp_path / "text.png").write_text("no picture")
    page.at("file-reference").send_keys(str(tmp_path / "text.png"))
    page.wait(lambda: "Not a picture" in page.text("say-reference"))
    assert "bad" in page.at("say-reference").get_attribute("class")
    page.shoot("refused")
    page.fill()
    page.at("prompt").send_keys("refuse")
    page.click("submit")
    assert page.finish() == "failed"
    assert page.text("job-error") == "The driving clip: nobody in it."
    page.shoot("failed")
    page.at("prompt").clear()
    for waiting in (0, 1):
        page.click("submit")
        page.wait(lambda n=waiting: len(page.client.get("/jobs")) == 2 + n)
    page.wait(lambda: page.text("job-say") == "1 before it")
    page.click("submit")
    page.wait(lambda: "the limit is 2" in page.text("form-say"))
    page.wait(lambda: "Job 2" in page.text("queue"))
    page.shoot("queue")
    page.click("cancel")
    assert page.finish() == "cancelled"
    page.browser.find_element("css selector", "#queue-list button").click()
    page.wait(lambda: page.text("job-title") == "Job 2")
    page.click("cancel")
    assert page.finish() == "cancelled"
    assert page.faults() == []


def test_exact_a_file_can_be_dropped(open_page):
    page = open_page(Fake())
    content = list(page.inputs[0].read_bytes())
    page.run(
        """(bytes => {
          const all = new DataTransfer();
          all.items.add(new File([new Uint8Array(bytes)], '../../who.png', { type: 'image/png' }));
          document.querySelector('.drop[data-kind=reference]').dispatchEvent(
            new DragEvent('drop', { dataTransfer: all, bubbles: true, cancelable: true }));
        })(arguments[0])""",
        content,
    )
    page.wait(lambda: page.text("say-reference") == "40 x 60")


def test_exact_the_token_is_asked_for_once(open_page):
    token = "correct-horse-battery"
    page = open_page(Fake(), token=token)
    page.wait(lambda: page.at("login").is_displayed())
    page.at("token").send_keys("wrong\n")
    page.wait(lambda: "not the server's token" in page.text("login-say"))
    page.shoot("token")
    page.at("token").clear()
    page.at("token").send_keys(token + "\n")
    page.wait(lambda: page.text("server"))
    page.fill()
    page.click("submit")
    assert page.finish() == "done"
    page.wait(lambda: page.run("document.getElementById('pane-result').readyState >= 2"))
    page.client.token = None
    page.open()  # the cookie is there still
    page.browser.delete_all_cookies()


def test_exact_the_review_is_a_tab(open_page, data):
    page = open_page(Fake(), tabs=[review_tab(DataSet(data), None), study_tab()])
    page.click("tab-review")
    page.browser.switch_to.frame(page.browser.find_element("css selector", "#review iframe"))
    page.wait(lambda: page.browser.find_elements("id", "name"))
    page.at("name").send_keys("anna\n")
    page.wait(lambda: page.text("count") == "item 1, 0 of 1 reviewed")
    page.wait(lambda: page.run("document.getElementById('identity').naturalWidth") == 64)
    page.browser.find_element("css selector", "button[data-key=a]").click()
    page.wait(lambda: page.at("end").is_displayed())
    page.browser.switch_to.default_content()
    page.shoot("review")
    (item,) = DataSet(data).items()
    assert [d.accepts for d in DataSet(data).decisions(item)] == [True]
    assert page.client.ask("GET", "/review")[0] in (200, 307)
    said = raw(page.client.port, head("GET", "/review/media/..%2f..%2fx/source", page.client.port))
    assert said[0].startswith(b"HTTP/1.1 4")
    assert json.dumps(page.client.get("/tabs")).count("null") == 1


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study to take part in."""
    folder = tmp_path_factory.mktemp("study")
    config = StudyConfig(gsb="ours", raters=2, cases=2, systems="ours,rivalone")
    return make_study(*study_inputs(folder), folder / "out", config)


def test_exact_the_study_is_a_tab(open_page, study):
    """A code, two clips rated by clicks and by keys; what another tab shows is not looked at."""
    with open_study(study.root) as book:
        page = open_page(Fake(), tabs=[review_tab(None), study_tab(book)])
        rater = study.raters[0]
        rated = [item.id for item in rater.items if item.kind == "rate"]
        page.click("tab-study")
        enter(page)
        page.shoot_frame("study_code")
        page.at("code").send_keys(rater.code + "\n")
        page.wait(lambda: page.run("section") == "consent")
        page.click("agree")
        page.wait(lambda: page.run("section") == "how-rate")
        page.browser.find_element("css selector", "#how-rate .go").click()
        page.wait(lambda: page.run("section === 'item' && player.ready()"))
        page.wait(lambda: page.run("document.getElementById('reference').naturalWidth") == 48)
        for name, points in (("imaging", 4), ("motion", 2), ("appearance", 5)):
            chosen = f"input[name={name}][value='{points}']"
            page.browser.find_element("css selector", chosen).click()
        page.shoot_frame("study")
        page.click("next")
        page.wait(lambda: page.run("place") == 1)
        assert read_answers(load_plan(study.root)).of(rater)[rated[0]].said == {
            "imaging": 4,
            "motion": 2,
            "appearance": 5,
        }
        assert page.run("watch.since !== null")
        page.browser.switch_to.default_content()
        page.click("tab-history")
        enter(page)
        assert page.run("watch.since === null")
        seconds = page.run("watch.seconds()")
        time.sleep(0.3)
        assert page.run("watch.seconds()") == seconds
        page.browser.switch_to.default_content()

        # back, and into the frame, without a mouse
        page.at("tab-history").send_keys("\ue010")  # End
        actions = pytest.importorskip("selenium.webdriver").ActionChains
        inside = f"document.activeElement === {FRAME}"
        for _ in range(6):
            actions(page.browser).send_keys("\ue004").perform()
            if page.run(inside):
                break
        assert page.run(inside)
        enter(page)
        assert page.run("watch.since !== null")
        page.run("document.getElementById('task').focus()")
        for key in ("3", "4", "3", "\ue007"):
            actions(page.browser).send_keys(key).perform()
        page.wait(lambda: page.run("place") == 2)
        page.browser.switch_to.default_content()
        answers = read_answers(load_plan(study.root)).of(rater)
        assert answers[rated[1]].said == {"imaging": 3, "motion": 4, "appearance": 3}
        assert page.faults() == []

        (link,) = links(book, f"http://127.0.0.1:{page.client.port}/study")[:1]
        page.browser.get(link.split()[0])  # the same page by itself, another day
        page.wait(lambda: page.run("section === 'item' && place === 2 && player.ready()"))
        assert page.faults() == []
        status, headers, _ = page.client.ask("GET", f"/study/r/{rater.code}")
        assert status == 200
        assert "frame-ancestors 'self'" in headers["content-security-policy"]
        for path in ("/study/plan.json", "/study/media/plan.json", "/study/media/..%2fplan.json"):
            assert page.client.ask("GET", path)[0] == 404, path
        where = f"/study/api/{rater.code}/answers/{rated[0]}"
        given = {"answer": {"imaging": 1, "motion": 1, "appearance": 1}, "seconds": 1, "plays": 1}
        foreign = {"Origin": "http://evil.example"}
        assert page.client.ask("PUT", where, given, headers=foreign)[0] == 403
        assert page.client.ask("GET", "/study/", headers={"Host": "evil.example"})[0] == 400


def test_exact_the_study_fits_a_phone(open_page, study):
    with open_study(study.root) as book:
        page = open_page(Fake(), PHONE, tabs=[study_tab(book)])
        wide = "document.documentElement.scrollWidth"
        page.click("tab-study")
        assert page.run(wide) == PHONE[0]
        enter(page)
        page.at("code").send_keys(study.raters[1].code + "\n")
        page.wait(lambda: page.run("section") == "consent")
        page.click("agree")
        page.wait(lambda: page.run("section") == "how-rate")
        page.browser.find_element("css selector", "#how-rate .go").click()
        page.wait(lambda: page.run("section === 'item' && player.ready()"))
        assert page.run(wide) == page.run("innerWidth")
        sizes = "[...document.querySelectorAll('.numbers label, #item button')].map(x => {"
        sizes += "const r = x.getBoundingClientRect(); return Math.min(r.width, r.height) })"
        assert min(page.run(sizes)) >= 44
        for name in ("imaging", "motion", "appearance"):
            page.browser.find_element("css selector", f"input[name={name}][value='2']").click()
        page.shoot_frame("phone_study_tab")
        page.click("next")
        page.wait(lambda: page.run("place") == 1)
        page.browser.switch_to.default_content()


def test_exact_a_study_wants_the_token_too(open_page, study):
    token = "correct-horse-battery"
    with open_study(study.root) as book:
        page = open_page(Fake(), token=token, tabs=[study_tab(book)])
        page.client.token = None
        for path in ("/study/", f"/study/r/{study.raters[0].code}", "/study/page.js"):
            assert page.client.ask("GET", path)[0] == 401, path


def test_refuses_what_is_no_study(tmp_path, monkeypatch, capsys, study):
    def run(*words):
        argv = ["dreamactor", "studio", "--folder", str(tmp_path / "jobs"), "--no-browser", *words]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, capsys.readouterr().err

    code, said = run("--study", str(tmp_path))
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith(f"error: {tmp_path}: no study: want a folder with plan.json")
    with open_study(study.root):
        code, said = run("--study", str(study.root))
    assert (code, said.count("\n")) == (2, 1)
    assert "is being served already" in said
    assert not (tmp_path / "jobs").exists()


FRAME = "document.querySelector('#study iframe')"


def enter(page):
    """Into the study's frame."""
    page.browser.switch_to.frame(page.browser.find_element("css selector", "#study iframe"))
    page.wait(lambda: page.browser.find_elements("id", "code"))
