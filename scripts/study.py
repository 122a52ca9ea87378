"""The tables and the picture of docs/study.md.

    python scripts/study.py simulation              simulated studies whose truth is known
    python scripts/study.py picture DEMO OUT.png    the page, with the clips of `dreamactor demo`

The simulation takes some minutes on one core; the picture needs Chromium and selenium. No person
has rated anything here.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from dreamactor.bench.agreement import krippendorff_alpha
from dreamactor.bench.manifest import Media, Suite, SuiteCase, save_suite
from dreamactor.bench.stats import markdown_table
from dreamactor.bench.study.answers import open_book
from dreamactor.bench.study.design import Deck, Shown, StudyConfig, draw_raters, planted
from dreamactor.bench.study.make import make_study
from dreamactor.bench.study.plan import Plan
from dreamactor.bench.study.simulate import People, answer_study, coverage
from dreamactor.bench.study.tally import check_raters, tally
from dreamactor.local import listen
from dreamactor.provenance import sha256

RUNS = 1000
SIZES = ((12, 100), (12, 30), (6, 30), (4, 20))
PEOPLE = {
    "as stated": People(),
    "raters twice as far apart": People(lenient=0.7),
    "all raters equally lenient": People(lenient=0.0),
}
SYSTEMS, MEANS = ("a", "b", "c"), (3.9, 3.5, 3.1)
STUDIES = 20
EXAMPLES = Path(__file__).parents[1] / "dreamactor" / "data" / "examples"
CASES = {"triumph": "human2human", "duel": "human2human", "gallop": "animal2animal"}
WIDTH, HEIGHT = 1280, 800


def coverages() -> str:
    """Share of the intervals that hold the truth."""
    rows = []
    for name, people in PEOPLE.items():
        for raters, cases in SIZES if name == "as stated" else SIZES[:1]:
            found = coverage(people, raters, cases, RUNS, seed=raters * cases, resamples=1000)
            held = (found.cases, found.both, found.lead, found.cases_of_all)
            rows.append([name, str(raters), str(cases), *(f"{share:.3f}" for share in held)])
    header = ["people", "raters", "cases", "over cases", "over both", "lead over both",
              "over cases, taken for all people"]  # fmt: skip
    return markdown_table(header, rows)


def plan_of(cases: int, raters: int, seed: int) -> Plan:
    """A plan without files."""
    config = StudyConfig(gsb="a", cases=cases, raters=raters, seed=seed)
    scenarios = {str(k): str(k % 5) for k in range(cases)}
    shown = {name: Shown(scenario, "", "") for name, scenario in scenarios.items()}
    motion = {name: float(k) for k, name in enumerate(scenarios)}
    deck = Deck(config, "00" * 16, SYSTEMS, shown, *planted(config, SYSTEMS, motion))
    about = {"name": "simulated", "version": "1"}
    return Plan(Path(), about, {}, "00" * 16, SYSTEMS, "a", scenarios, draw_raters(deck))


def checks() -> str:
    """Who is left out, and what agreement there is among the others."""
    rows = []
    for cases in (10, 30, 100):
        out, alphas = Counter(), []
        for seed in range(STUDIES):
            plan = plan_of(cases, 24, seed)
            said = answer_study(plan, MEANS, People(), set(range(1, 13)), seed)
            for row in check_raters(plan, said):
                out["careless" if row.rater <= 12 else "careful"] += row.why is not None
            scores = tally(plan, said, range(13, 25)).scores[..., 0]  # (R, C, S)
            careless = tally(plan, said, range(1, 13)).scores[..., 0]
            found = (krippendorff_alpha(x.reshape(12, -1), "ordinal") for x in (scores, careless))
            alphas.append(list(found))
        shares = [out[kind] / (12 * STUDIES) for kind in ("careless", "careful")]
        means = np.mean(alphas, 0)
        rows.append([str(cases), *(f"{x:.3f}" for x in (*shares, *means))])
    header = ["cases", "careless left out", "careful left out", "alpha of the careful",
              "alpha of the careless"]  # fmt: skip
    return markdown_table(header, rows)


def example_study(demo: Path, folder: Path) -> Plan:
    """A study of one system, on the examples that ship, with what the demo made of them."""
    (folder / "suite" / "media").mkdir(parents=True)
    (folder / "clips" / "nano").mkdir(parents=True)
    media, cases = {}, []
    for name, scenario in CASES.items():
        for kind, suffix in (("reference", ".png"), ("driving", ".mp4")):
            file = folder / "suite" / "media" / f"{name}{suffix}"
            shutil.copy(EXAMPLES / name / f"{kind}{suffix}", file)
            subject = "animal" if name == "gallop" else "human"
            media[f"{name}-{kind}"] = Media(
                f"{name}-{kind}", kind, f"media/{file.name}", sha256(file), "CC-BY-SA-3.0", subject
            )
        case = SuiteCase(f"{scenario}/{name}", scenario, f"{name}-reference", f"{name}-driving")
        shutil.copy(demo / f"{name}.mp4", folder / "clips" / "nano" / f"{case.result_name}.mp4")
        cases.append(case)
    save_suite(Suite(folder / "suite", "examples", "1", "CC-BY-SA-3.0", media, cases))
    config = StudyConfig(raters=1)
    return make_study(folder / "suite", folder / "clips", folder / "study", config)


def picture(demo: Path, out: Path) -> None:
    """A screenshot of a rating, nothing rated yet, in 256 colours."""
    import uvicorn
    from selenium import webdriver

    from dreamactor.bench.study.server import create_app

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for word in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(word)
    with tempfile.TemporaryDirectory() as folder:
        plan = example_study(demo, Path(folder))
        with open_book(plan) as book, listen("127.0.0.1", 0) as listening:
            server = uvicorn.Server(uvicorn.Config(create_app(book), log_level="warning"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()
            service = webdriver.ChromeService(shutil.which("chromedriver"))
            browser = webdriver.Chrome(options, service)
            try:
                size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                port = listening.getsockname()[1]
                browser.get(f"http://127.0.0.1:{port}/r/{plan.raters[0].code}")
                for name, button in (("consent", "agree"), ("how-rate", None)):
                    _until(browser, f"section === '{name}'")
                    selector = f"#{button}" if button else f"#{name} .go"
                    browser.find_element("css selector", selector).click()
                _until(browser, "player.clips.length && player.clips[0].currentTime > .5")
                browser.save_screenshot(str(out))
            finally:
                browser.quit()
                server.should_exit = True
                thread.join(10)
    shot = Image.open(out).convert("RGB")
    shot.convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(out, optimize=True)


def _until(browser, condition: str) -> None:
    end = time.monotonic() + 30
    while not browser.execute_script(f"return {condition}"):
        if time.monotonic() > end:
            sys.exit(f"waited in vain for {condition}")
        time.sleep(0.02)


def simulation() -> None:
    """Print both tables."""
    print(f"{RUNS} studies a row; people: {People()}\n")
    print(coverages(), flush=True)
    print(f"{STUDIES} studies a row, 12 careful and 12 careless raters each, 3 systems\n")
    print(checks())


if __name__ == "__main__":
    if sys.argv[1:2] == ["picture"] and len(sys.argv) == 4:
        picture(Path(sys.argv[2]), Path(sys.argv[3]))
    elif sys.argv[1:] == ["simulation"]:
        simulation()
    else:
        sys.exit(__doc__)
