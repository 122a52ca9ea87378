"""What perfect knowledge would be worth: the ceilings of docs/training.md, on held-out pairs.

    python scripts/ceilings.py FULL_CASTPACK [PAIRS]

Every row but the first is drawn from the reference alone, over its background without the subject
(filled in from around it): the subject of a map of spots (`Renderer.surface`), painted in one
colour, its mean, or with the reference's pixel whose spot is nearest. The map is the truth's, the
driver's as it stands, or the driver's brought to the target's place and size by the one scale and
shift of the clip that fits the joints best. PSNR on the subject's box, as in `bench nano`.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial import cKDTree

from dreamactor.bench.metrics import psnr, subject_box
from dreamactor.world.body import body_size
from dreamactor.world.cast import load_cast
from dreamactor.world.pairs import Pair, PairSampler, _views
from dreamactor.world.staging import Side

MARGIN, NOTHING = 8, 99.0


def spots(sampler: PairSampler, pair: Pair, side: Side, pose: np.ndarray) -> np.ndarray:
    """(T + 1, H, W, 3) of one side, in parts of the body's size."""
    scene = sampler._scene(pair.spec, side, pose, _views(pair.spec, side))
    found = sampler.renderer.surface(scene) / body_size(sampler.cast.skeletons[side.look.skeleton])
    return found[:, :, ::-1] if pair.spec.flip else found


def similarity(moved: np.ndarray, wanted: np.ndarray) -> tuple[float, np.ndarray]:
    """Scale and shift that take points (n, 2) to others best."""
    a, b = moved - moved.mean(0), wanted - wanted.mean(0)
    scale = float((a * b).sum() / (a * a).sum())
    return scale, wanted.mean(0) - scale * moved.mean(0)


def joints(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Those that both have, (n, 2) pixels of the driver and of the target on all driven frames."""
    sides = (pair.driving_joints, pair.target_joints)
    names = [name for name in sides[0].names if name in sides[1].names]
    driver, target = (s.pixels[1:, [s.names.index(n) for n in names]].reshape(-1, 2) for s in sides)
    return driver, target


def ceilings(sampler: PairSampler, pair: Pair) -> dict[str, float]:
    """All numbers of one pair."""
    poses = sampler._poses(pair.spec)
    driver, target = (
        spots(sampler, pair, side, pose)
        for side, pose in zip((pair.spec.driver, pair.spec.target), poses, strict=True)
    )
    before, after = joints(pair)
    scale, shift = similarity(before, after)
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]], np.float32)
    size = driver.shape[1:3][::-1]
    aligned = np.stack(
        [cv2.warpAffine(np.nan_to_num(frame, nan=NOTHING).astype(np.float32), matrix, size,
                        flags=cv2.INTER_NEAREST, borderValue=(NOTHING,) * 3)
         for frame in driver[1:]]
    )  # fmt: skip
    aligned = np.where(aligned > NOTHING / 2, np.nan, aligned)
    seen, truth = np.isfinite(target[0]).all(-1), pair.target[..., :3]
    tree, colours = cKDTree(target[0][seen]), pair.reference[..., :3][seen]
    around = cv2.dilate((pair.reference[..., 3] > 0).astype(np.uint8), np.ones((7, 7)))
    rgb = np.ascontiguousarray(pair.reference[..., :3])
    empty = cv2.inpaint(rgb, around, 5, cv2.INPAINT_TELEA)
    mask = pair.target[..., 3] > 0
    boxes = subject_box(mask, MARGIN)
    out = {"the reference, copied": psnr(np.broadcast_to(rgb, truth.shape), truth, boxes)}
    maps = {"the truth's": target[1:], "the driver's, aligned": aligned, "the driver's": driver[1:]}
    for name, surface in maps.items():
        shown = np.isfinite(surface).all(-1)
        flat = np.broadcast_to(empty, truth.shape).copy()
        painted = flat.copy()
        flat[shown] = colours.mean(0).round()
        painted[shown] = colours[tree.query(surface[shown])[1]]
        out[f"{name} outlines, one colour"] = psnr(flat, truth, boxes)
        out[f"{name} spots, the reference's pixels"] = psnr(painted, truth, boxes)
        out[f"{name} outlines: share in common"] = (shown & mask).sum() / (shown | mask).sum()
    out["pixels between driver and target"] = rms(before - after)
    out["pixels, aligned"] = rms(scale * before + shift - after)
    return out


def rms(away: np.ndarray) -> float:
    """Of distances (n, 2)."""
    return float(np.sqrt((away**2).sum(-1).mean()))


def main(pack: str, count: int = 30) -> None:
    """Print means by domain."""
    sampler = PairSampler(load_cast(Path(pack)), "test", 256)
    found: dict[str, list[dict[str, float]]] = {}
    for index in range(count):
        pair = sampler.pair(0, index)
        found.setdefault(pair.spec.domain, []).append(ceilings(sampler, pair))
    for domain, rows in sorted(found.items()):
        print(f"{domain}: {len(rows)} pairs")
        for name in rows[0]:
            values = np.array([row[name] for row in rows])
            half = 1.96 * values.std() / len(values) ** 0.5
            print(f"  {name:50}{values.mean():7.2f} ± {half:.2f}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
