"""The report of a run: numbers of its tables, and a page that stands alone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from suites import tiny_suite

from dreamactor.bench.contestants import Baseline
from dreamactor.bench.suite_page import WEB
from dreamactor.bench.suite_records import collect
from dreamactor.bench.suite_report import write_report
from dreamactor.bench.suite_run import RunConfig, run_suite


@pytest.fixture
def run(tmp_path):
    suite = tiny_suite(tmp_path / "suite")
    for name in ("warp", "copy", "driving"):
        run_suite(suite.root, tmp_path / "run", name, Baseline(name), RunConfig(lpips=0, joints=0))
    return suite, tmp_path / "run"


def given(page):
    text = re.search(r'<script type="application/json" id="given">(.*?)</script>', page, re.S)
    return json.loads(text.group(1))


def test_exact_tables_hold_the_records(run):
    suite, out = run
    write_report(suite, out)
    (psnr,) = [
        r.values["psnr"] for r in collect(out) if (r.system, r.case) == ("copy", "human2human/0")
    ]
    text = (out / "report.md").read_text()
    assert f"| copy | 2 | {psnr:.2f} |" in text
    assert "## Clip by clip against warp" in text
    means = json.loads((out / "report.json").read_text())["means"]
    (row,) = [
        m
        for m in means
        if (m["system"], m["metric"], m["scenario"]) == ("copy", "psnr", "human2human")
    ]
    assert (row["mean"], row["clips"]) == (psnr, 1)
    assert {m["scenario"] for m in means} == {None, "human2human", "human2animal"}


def test_exact_tables_by_axis_hold_the_records(run):
    """Of two cases with one driving clip the references alone differ, in their subject."""
    suite, out = run
    write_report(suite, out)
    (first,) = [r for r in collect(out) if (r.system, r.case) == ("copy", "human2human/0")]
    section = (out / "report.md").read_text().partition("## By axis")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert rows[0] == "| reference subject | system | clips | PSNR dB ↑ | following ↑ |"
    starts = [tuple(row.split(" | ")[:3]) for row in rows[2:]]
    systems = ("warp", "copy", "driving")
    assert starts == [(f"| {kind}", name, "1") for kind in ("animal", "human") for name in systems]
    assert f"| human | copy | 1 | {first.values['psnr']:.2f} |" in section
    by_axis = json.loads((out / "report.json").read_text())["axes"]
    assert {(m["axis"], m["value"]) for m in by_axis} == {
        ("reference subject", "animal"), ("reference subject", "human"),
    }  # fmt: skip
    (row,) = [
        m
        for m in by_axis
        if (m["system"], m["value"], m["metric"]) == ("copy", "human", "following")
    ]
    assert (row["mean"], row["clips"]) == (first.values["following"], 1)


def test_exact_the_page_needs_no_other_file(run):
    suite, out = run
    page = write_report(suite, out).read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert not re.search(r"@[A-Z]+@", page)
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    held = given(page)
    assert held["systems"] == ["warp", "copy", "driving"]
    assert [case["name"] for case in held["cases"]] == ["human2human/0", "human2animal/0"]
    first, second = held["cases"]
    assert first["labels"] == [
        "reference", "driving", "truth", "by warp", "by copy", "by driving",
    ]  # fmt: skip
    assert second["labels"][2] == "by warp"  # no truth is known
    assert first["strip"].startswith("data:video/mp4;base64,")


def test_unchanged_strips_are_not_made_again(run):
    suite, out = run
    write_report(suite, out)
    stamps = {p.name: p.stat().st_mtime_ns for p in (out / "strips").iterdir()}
    write_report(suite, out)
    assert {p.name: p.stat().st_mtime_ns for p in (out / "strips").iterdir()} == stamps


def test_two_commands_write_the_report_at_once(run):
    suite, out = run
    with ThreadPoolExecutor(4) as pool:
        pages = [
            done.result() for done in [pool.submit(write_report, suite, out) for _ in range(4)]
        ]
    assert {page.read_bytes() for page in pages} == {(out / "report.html").read_bytes()}


def test_exact_what_is_missing_is_told(run):
    suite, out = run
    (out / "measures" / "copy" / "human2animal_0.json").unlink()
    write_report(suite, out)
    assert "- copy: 1 cases without a clip" in (out / "report.md").read_text()


def test_exact_a_clip_that_is_gone_is_told_on_the_page(run):
    suite, out = run
    (out / "clips" / "copy" / "human2human_0.mp4").unlink()
    first, second = given(write_report(suite, out).read_text())["cases"]
    assert first["labels"] == ["reference", "driving", "truth", "by warp", "by driving"]
    assert first["notes"] == {"copy": ["its clip is gone: clips/copy/human2human_0.mp4"]}
    assert "psnr" in first["values"]["copy"]
    assert "by copy" in second["labels"]
    assert not second["notes"]


PAGE = """
const made = () => ({
  children: [], textContent: "", value: "",
  append(...more) { this.children.push(...more); },
  replaceChildren(...more) { this.children = more; },
  querySelectorAll: () => [], setAttribute() {}, addEventListener() {},
});
const held = {};
const document = {
  getElementById: (id) => (held[id] ??= made()),
  createElement: made,
  createElementNS: (_, name) => ({ ...made(), name }),
};
document.getElementById("given").textContent = require("fs").readFileSync(0, "utf8");
"""
"""As much of a browser as the page's program needs."""


@pytest.fixture
def idle(run):
    """What the page is given before and after a system without clips joins."""
    suite, out = run
    before = given(write_report(suite, out).read_text())
    head = json.loads((out / "run.json").read_text())
    head["systems"]["idle"] = {}
    (out / "run.json").write_text(json.dumps(head))
    return before, given(write_report(suite, out).read_text())


def test_unchanged_order_of_cases_by_a_system_without_clips(idle):
    before, after = idle
    assert after["systems"] == [*before["systems"], "idle"]
    assert [case["name"] for case in after["cases"]] == [case["name"] for case in before["cases"]]


def test_exact_the_page_plots_who_has_clips(idle):
    """The radar has four rings and three systems, and cases are in the order of the third."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here")
    told = "byId('radar').children.filter((e) => e.name === 'polygon').length"
    program = f"{PAGE}{(WEB / 'suite.js').read_text()}console.log(byId('system').value, {told});"
    found = subprocess.run(
        [node, "-e", program], input=json.dumps(idle[1]), capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["driving", "7"]


def test_exact_the_page_filters_in_a_browser(run, browser):
    """Real clicks: fewer cases after a filter, the table follows, no error in the console."""
    suite, out = run
    page = write_report(suite, out)
    browser.get(page.as_uri())
    assert len(browser.find_elements("css selector", "article")) == 2
    rows = browser.find_elements("css selector", "#table tbody tr")
    assert [row.text.split()[0] for row in rows] == ["warp", "copy", "driving"]
    select = browser.find_element("css selector", "#filters select[name=scenario]")
    select.find_element("css selector", "option[value=human2animal]").click()
    assert len(browser.find_elements("css selector", "article")) == 1
    assert "1 cases" in browser.find_element("id", "count").text
    assert [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
