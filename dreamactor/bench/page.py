"""docs/results.md from the reports of finished runs; what was not measured is said so."""

from __future__ import annotations

from pathlib import Path

from dreamactor.errors import ConfigError, MediaError
from dreamactor.runs import write_text

HEAD = """# Results

Every number here was measured by the command above its table and is a mean over clips, with half
the width of its 95 % interval after the ±, or with the interval itself in brackets. Pairs are drawn
by the synthetic world from characters and motions that training never saw (the test split of the
cast pack), and the truth of every frame is known. Clips that share a character or a motion are not
independent, so true intervals are somewhat wider.

What was measured of the instruments themselves stands with them: [metrics](metrics.md),
[judge](judge.md), [study](study.md), [marks](marks.md), [gate](bootstrap.md), [speed](fast.md),
[serving](serve.md).

| column | meaning |
| --- | --- |
| PSNR, SSIM, L1 | likeness to the truth in the subject's box of each frame, 8 pixels around |
| ST-LPIPS | shift-tolerant perceptual distance there, AlexNet; not comparable with LPIPS v0.1 |
| sharpness | gradient energy over the truth's; read it only for systems that show the subject |
| columns with "frame" | the same on whole frames |
| motion error | optical flow of the result against the true flow, pixels a frame on the subject |
| dynamic degree | speed of the fastest twentieth of the picture, 1 = VBench's threshold |
| flicker | likeness of following frames, 1 = frozen; motion lowers it too |

| row | meaning |
| --- | --- |
| copy | the reference in every frame |
| driving | the driving clip itself |
| flow warp | the reference, moved by the dense optical flow of the driving clip |
| vae | the truth, encoded and decoded: what nano's autoencoder allows at best |
| nano, N steps | the embedded model with N sampling steps |
| truth | the truth itself: what a perfect clip measures |
"""
SECTIONS = (
    ("Motion transfer", "nano"),
    ("Autoencoder", "vae"),
    ("Pose estimators", "pose"),
    ("Drift over a minute", "long"),
)


def results_page(out: Path, runs: dict[str, Path | None]) -> Path:
    """Write the page.

    Args:
        out: The page, such as docs/results.md; replaced if it is there.
        runs: Folder of the run by the name of its command, of `SECTIONS`; None leaves the
            section with a note that nothing was measured.

    Returns:
        The page.

    Raises:
        ConfigError: A folder holds no report.
        MediaError: The page's folder does not exist.
    """
    parts = [HEAD]
    for title, verb in SECTIONS:
        folder = runs.get(verb)
        if folder is None:
            text = f"Not measured yet: `dreamactor bench {verb} --cast full.castpack --out FOLDER`."
        elif (folder / "report.md").is_file():
            text = (folder / "report.md").read_text(encoding="utf-8").strip()
        else:
            raise ConfigError(f"{folder}: no report.md; want the folder of `bench {verb}`")
        parts.append(f"## {title}\n\n{text}\n")
    if not out.parent.is_dir():
        raise MediaError(f"{out}: the folder {out.parent} does not exist; create it first")
    write_text(out, "\n".join(parts))
    return out
