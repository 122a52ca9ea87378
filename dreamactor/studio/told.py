"""What clients are told of a fault: files by names that they know, and no path of the server."""

from __future__ import annotations

import re
from pathlib import Path

from dreamactor.studio.settings import Setup

KNOWN = {
    "file.png": "the reference",
    "file.mp4": "the driving clip",
    "driving.mp4": "the driving clip",
    "part.mp4": "the driving clip",
}
"""Names of files of ours -> what they are to a client."""
OWN = re.compile(r"\b(?:uploads|jobs)/\w+/([\w.]*\w)")
ABSOLUTE = re.compile(r"(?<![\w./-])/(?!/)[^\s:;,'\"()]+")


def told(text: str, root: Path, setup: Setup) -> str:
    """A fault in one line.

    Args:
        text: What it says.
        root: The server's folder, absolute.
        setup: The server's, whose weights it may be about.
    """
    text = " ".join(text.split())
    for name in ("weights", "adapter", "pose_weights", "pose_adapter"):
        if path := getattr(setup, name):
            text = re.sub(rf"{re.escape(str(path))}(?![\w.-])", f"the server's {name}", text)
    text = text.replace(f"{root}/", "")  # whose name may have any letters, as those above
    text = OWN.sub(lambda found: KNOWN.get(found[1], found[1]), text)
    return ABSOLUTE.sub(lambda found: KNOWN.get(Path(found[0]).name, "a file of the server"), text)
