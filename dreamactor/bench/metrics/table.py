"""Every metric by name: which way is better, what it needs, which known damage it must show.

`docs/metrics.md` and the reports list them from here; `dreamactor bench metrics` holds them to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Better = Literal["up", "down", "one", "truth"]
"""Which way is better; "one" = near 1, "truth" = near the truth's own value."""
Need = Literal["truth", "flow", "joints", "driver", "reference", "network", "a set"]


@dataclass(frozen=True)
class Metric:
    """What there is to know of one before using it."""

    name: str
    """Of the function, and in results."""
    title: str
    """In tables, with its unit."""
    module: str
    """In `dreamactor.bench.metrics`."""
    better: Better
    needs: tuple[Need, ...]
    """Besides the clip; no "truth", "flow", "joints" or "a set" = can be had of any result."""
    shows: tuple[str, ...]
    """Damages (`dreamactor.bench.damages`) that must make it worse, and more so the stronger they
    are. It may be blind to all others, or be fooled by them: `docs/metrics.md` says which."""
    digits: int = 3

    @property
    def free(self) -> bool:
        """Whether it does without the truth."""
        return not {"truth", "flow", "joints", "a set"} & set(self.needs)


PICTURE = ("blur", "noise", "flicker", "frozen", "swapped", "time shift", "colour drift")

METRICS = (
    Metric("psnr", "PSNR dB", "fidelity", "up", ("truth",), PICTURE, 2),
    Metric("ssim", "SSIM", "fidelity", "up", ("truth",), PICTURE),
    Metric("l1", "L1", "fidelity", "down", ("truth",), PICTURE, 4),
    Metric("lpips", "ST-LPIPS", "fidelity", "down", ("truth", "network"), PICTURE),
    Metric("sharpness_ratio", "sharpness", "fidelity", "one", ("truth",), ("blur", "noise"), 2),
    Metric(
        "flow_epe",
        "motion error px",
        "flow",
        "down",
        ("flow",),
        ("frozen", "time shift"),
        2,
    ),
    Metric("akd", "AKD px", "joints", "down", ("joints",), ("frozen", "time shift"), 2),
    Metric("mkr", "MKR", "joints", "down", ("joints",), ()),
    Metric("pck", "PCK@0.1", "joints", "up", ("joints",), ("frozen", "time shift")),
    Metric(
        "fad_v",
        "FAD-V",
        "distance",
        "down",
        ("a set", "network"),
        ("blur", "noise", "flicker", "frozen", "swapped", "colour drift"),
        2,
    ),
    Metric("naturalness", "naturalness", "imaging", "down", (), ("blur", "noise"), 2),
    Metric("motion_smoothness", "smoothness", "smoothness", "up", (), ("noise", "flicker"), 4),
    Metric("temporal_flicker", "flicker", "smoothness", "truth", (), ("noise", "flicker"), 4),
    Metric("warp_error", "warp error", "consistency", "down", (), ("noise", "flicker"), 4),
    Metric(
        "feature_consistency",
        "consistency",
        "consistency",
        "up",
        ("network",),
        ("flicker", "swapped", "colour drift"),
        4,
    ),
    Metric(
        "subject_consistency",
        "subject consistency",
        "consistency",
        "up",
        ("network",),
        ("flicker", "swapped"),
        4,
    ),
    Metric(
        "appearance",
        "appearance",
        "appearance",
        "up",
        ("reference", "network"),
        ("blur", "swapped", "colour drift"),
        4,
    ),
    Metric(
        "colour_likeness",
        "colours",
        "appearance",
        "up",
        ("reference",),
        ("noise", "flicker", "swapped", "colour drift"),
    ),
    Metric("dynamic_degree", "dynamic degree", "activity", "truth", (), ("frozen",), 2),
    Metric("following", "following", "following", "up", ("driver",), ("frozen", "time shift")),
    Metric("lag", "lag, frames", "following", "down", ("driver",), ("time shift",), 2),
    Metric("colour_drift", "colour drift dE", "drift", "down", (), ("colour drift",), 2),
    Metric(
        "identity_drift",
        "identity drift",
        "drift",
        "down",
        ("reference", "network"),
        ("swapped", "colour drift"),
        4,
    ),
    Metric("sharpness_drift", "sharpness drift", "drift", "down", (), (), 2),
)
"""In the order of tables: with truth, of sets, without truth."""
