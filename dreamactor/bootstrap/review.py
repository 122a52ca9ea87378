"""`dreamactor bootstrap review`: a person's two questions about every item that passed the gate.

Motion: does V_o do what V_src does? Identity: does V_o show who I_o shows? Reviewers work each by
themselves: in an order of their own, without the gate's scores and each other's answers. What
they say lies with the items, so a review can be left and gone on with at any time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import combinations
from typing import Any

from dreamactor.bench.agreement import cohen_kappa
from dreamactor.bootstrap.manifest import DataSet, check_name
from dreamactor.bootstrap.triplets import Decision
from dreamactor.errors import ConfigError

UNSEEN = "nobody"
"""Who has "accepted" what no person looked at."""


@dataclass(frozen=True)
class Agreement:
    """Two people on the items that both have answered."""

    a: str
    b: str
    items: int
    equal: float
    """Share of items that both accept or both refuse."""
    motion: float | None
    """Cohen's kappa of this answer; None where it is not defined (all answers are the same)."""
    identity: float | None
    accepts: float | None
    """Of both answers together."""


def queue(data: DataSet, reviewer: str, judge: str | None) -> list[str]:
    """The items for one person, in an order that is theirs.

    Args:
        data: The data set.
        reviewer: Their name.
        judge: Only what this judge let pass; None = everything.

    Raises:
        ConfigError: The name cannot be, or there is nothing to review.
    """
    check_name(reviewer)
    items = data.items()
    if judge is not None:
        verdicts = {item: data.verdict(item, judge) for item in items}
        if not any(verdicts.values()):
            raise ConfigError(
                f"{data.root}: judge {judge!r} has not judged anything; run `bootstrap filter` "
                "first, or review everything with --all"
            )
        items = [item for item, verdict in verdicts.items() if verdict and verdict.passed]
    if not items:
        raise ConfigError(f"{data.root}: nothing to review; to see what failed, use --all")
    return sorted(items, key=lambda k: hashlib.sha256(f"{reviewer}/{k}".encode()).digest())


def decide(data: DataSet, item: str, decision: Decision, seconds: float) -> None:
    """Keep an answer; another one of the same person replaces it.

    Raises:
        ConfigError: Seconds that cannot be.
        MediaError: No such item.
    """
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"seconds={seconds}: want 0 or more")
    said = {"motion": decision.motion, "identity": decision.identity, "seconds": round(seconds, 1)}
    clip = data.facts(item)["clip"]["sha256"]
    data.say(item, "review", decision.reviewer, {**said, "clip": clip})


def accept_unseen(data: DataSet, judge: str) -> int:
    """Accept, as `UNSEEN`, what a judge let pass and no person has looked at; how many items.

    For chains that run unattended. A person's refusal, later too, still counts.
    """
    count = 0
    for item in data.items():
        verdict = data.verdict(item, judge)
        if verdict and verdict.passed and not data.decisions(item):
            decide(data, item, Decision(UNSEEN, True, True), 0)
            count += 1
    return count


def unreviewed(data: DataSet, judge: str, reviewers: int) -> list[str]:
    """Items that a judge let pass and that fewer people than that have looked at."""
    found = []
    for item in data.items():
        verdict = data.verdict(item, judge)
        people = [d for d in data.decisions(item) if d.reviewer != UNSEEN]
        if verdict and verdict.passed and len(people) < reviewers:
            found.append(item)
    return found


def state(data: DataSet, reviewer: str, judge: str | None) -> dict[str, Any]:
    """The queue of one person with their own answers, and where to go on."""
    entries = []
    for item in queue(data, reviewer, judge):
        said = data.said(item, "review").get(reviewer)
        answer = {k: said[k] for k in ("motion", "identity")} if said else None
        fps = float(Fraction(data.facts(item)["clip"]["fps"]))
        entries.append({"item": item, "answer": answer, "fps": fps})
    open_ = [k for k, entry in enumerate(entries) if entry["answer"] is None]
    place = open_[0] if open_ else len(entries)
    return {"reviewer": reviewer, "items": entries, "place": place, "left": len(open_)}


def agreement(data: DataSet) -> list[Agreement]:
    """Every two people who share items."""
    answers: dict[str, dict[str, Decision]] = {}
    for item in data.items():
        for decision in data.decisions(item):
            answers.setdefault(decision.reviewer, {})[item] = decision
    found = []
    for a, b in combinations(sorted(answers), 2):
        shared = sorted(answers[a].keys() & answers[b].keys())
        if not shared:
            continue
        pairs = [(answers[a][item], answers[b][item]) for item in shared]
        kappas = [
            cohen_kappa([getattr(x, name) for x, _ in pairs], [getattr(y, name) for _, y in pairs])
            for name in ("motion", "identity", "accepts")
        ]
        equal = sum(x.accepts == y.accepts for x, y in pairs) / len(pairs)
        known = [None if math.isnan(k) else k for k in kappas]
        found.append(Agreement(a, b, len(pairs), equal, *known))
    return found


def agreement_lines(data: DataSet) -> list[str]:
    """For people."""

    def words(kappa: float | None) -> str:
        return "not defined" if kappa is None else f"{kappa:.2f}"

    return [
        f"{x.a} and {x.b}: {x.items} items, {x.equal:.0%} alike, Cohen's kappa "
        f"{words(x.accepts)} (motion {words(x.motion)}, identity {words(x.identity)})"
        for x in agreement(data)
    ]


def plain(found: list[Agreement]) -> list[dict[str, Any]]:
    """JSON values."""
    return [asdict(x) for x in found]


def serve(
    data: DataSet, judge: str | None, host: str, port: int, say: Callable[[str], object]
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        data: What is reviewed.
        judge: Only what this judge let pass; None = everything.
        host: Address to listen on.
        port: 0 = any that is free.
        say: Gets the page's address.

    Raises:
        ConfigError: The web framework is not installed, the address cannot be had, or there is
            nothing to review.
    """
    try:
        from dreamactor.bootstrap import page
    except ImportError as error:
        raise ConfigError(
            f"the review page needs {error.name}: pip install 'dreamactor[review]'"
        ) from error
    queue(data, "anna", judge)  # so that it is said here and not on the page
    page.serve(data, judge, host, port, say)
