"""How far one set of clips is from another: a Fréchet distance that needs no download.

FVD compares the features of a video network, I3D, whose weights are not to be had from a package
index. Here a clip is what AlexNet sees in its frames and how fast that changes. Named for what it
is: the Fréchet distance of AlexNet motion features, FAD-V. It is not FVD and its values must
not be compared with FVD's.

It is a number of two sets and no mean over clips. With n clips it is too large by about
(trace of the covariance) (1/n + 1/m), so compare sets of equal size only, with the distance of two
halves of the truth beside them; `jackknife` says how much one clip decides.

Legend: N clips; n frames of each that a network saw; D channels; K dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from dreamactor.bench.metrics.clips import Floats
from dreamactor.errors import ShapeError
from dreamactor.runs import numpy_generator

DIMENSIONS = 16
"""K: few, so that a covariance is known from some dozen clips."""


def clip_vector(pooled: Floats) -> Floats:  # (2 D,)
    """One clip: the mean over frames, and the mean absolute change between them.

    Args:
        pooled: (n, D) from `features_of`, n at least 2.
    """
    if pooled.ndim != 2 or len(pooled) < 2:
        raise ShapeError(f"pooled features are {pooled.shape}: want (n, D) of 2 frames or more")
    return np.concatenate([pooled.mean(0), np.abs(np.diff(pooled, axis=0)).mean(0)])


def project(vectors: Floats, dimensions: int = DIMENSIONS) -> Floats:  # (N, K)
    """Clips on half of K fixed random directions of what they show, half of how that changes.

    The directions are drawn once and for all, so that distances of different runs agree. Changes
    are smaller than what changes; each half is measured in units of its own (`UNITS`).

    Args:
        vectors: (N, 2 D) from `clip_vector`.
        dimensions: K, even.
    """
    half = vectors.shape[1] // 2
    directions = _directions(half, dimensions // 2)
    shown, changed = vectors[:, :half] @ directions, vectors[:, half:] @ directions
    return np.concatenate([shown / UNITS[0], changed / UNITS[1]], axis=1)


UNITS = (0.02, 0.0015)
"""About the spread over the truth's clips of a direction of what is shown, and of its change."""


def frechet(a: Floats, b: Floats) -> float:
    """|m - m'|^2 + trace(C + C' - 2 (C C')^1/2) of two sets; 0 = alike; lower is better.

    Args:
        a: (N, K) a row a clip.
        b: (M, K).

    Returns:
        0 or more; NaN where a set has fewer than two clips.

    Source:
        Dowson and Landau 1982; as in FID and FVD.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ShapeError(f"sets are {a.shape} and {b.shape}: want (N, K) and (M, K)")
    if min(len(a), len(b)) < 2:
        return float("nan")
    ca, cb = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, axes = np.linalg.eigh(ca)
    root = axes * np.sqrt(values.clip(0)) @ axes.T  # C^1/2, so that what is rooted is symmetric
    both = np.sqrt(np.linalg.eigvalsh(root @ cb @ root).clip(0)).sum()
    away = float(np.square(a.mean(0) - b.mean(0)).sum())
    return max(0.0, away + float(np.trace(ca) + np.trace(cb) - 2 * both))


def jackknife(
    a: Floats, b: Floats, distance: Callable[[Floats, Floats], float] = frechet
) -> tuple[float, float]:
    """A distance of two sets that pair up clip by clip, and its standard error.

    Every pair is left out once; the distance comes back less the bias that this shows.

    Args:
        a: (N, K), N at least 3.
        b: (N, K) the same cases in the same order.
        distance: Of two sets.

    Returns:
        Distance less its bias, may be below 0, and its standard error.

    Source:
        Quenouille 1956, Tukey 1958.
    """
    if a.shape != b.shape or len(a) < 3:
        raise ShapeError(f"sets are {a.shape} and {b.shape}: want the same 3 clips or more in both")
    count = len(a)
    kept = ~np.eye(count, dtype=bool)
    parts = np.array([distance(a[k], b[k]) for k in kept])
    mean = parts.mean()
    error = np.sqrt((count - 1) / count * np.square(parts - mean).sum())
    return float(count * distance(a, b) - (count - 1) * mean), float(error)


@cache
def _directions(channels: int, count: int) -> Floats:  # (D, count)
    drawn = numpy_generator(0, "distance/directions", channels).normal(size=(channels, count))
    return np.asarray(np.linalg.qr(drawn)[0])
