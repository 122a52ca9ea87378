"""Train the keypoints network on the world's exact joints: `dreamactor train keypoints`.

Frames of rendered clips, seen through `training.views`. Every joint's map of scores is pulled
towards a small bell at its place, hidden or not; whether it is in the picture at all is learnt
beside it. Time-boxed and resumable; one process a GPU under torchrun.

Legend: B pictures, J = 17 joints, h x w cells of the maps.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dreamactor.backbones.keypoints import (
    KeypointNet,
    KeypointsConfig,
    PoseBlock,
    channels_last,
    header_of,
    load_network,
    locate,
)
from dreamactor.backbones.weights import save_weights
from dreamactor.conditioning.skeleton import JOINTS, PoseTrack, draw
from dreamactor.image import write_png
from dreamactor.runs import RunFolder, generator
from dreamactor.training.frames import FramePool
from dreamactor.training.loop import Loop, LoopConfig, Worker, compile_blocks, identity, workers
from dreamactor.training.nano_vae import load_stills
from dreamactor.training.pool import check_pool
from dreamactor.training.views import views

BELL = 1.0
"""Cells: standard deviation of the wanted distribution of a joint's place."""
ON_SHEET = 24
"""Held frames on the sheets that are written while training."""


@dataclass(frozen=True, kw_only=True)
class KeypointTrainConfig(LoopConfig):
    """Settings of one run."""

    pool: Path
    """Of `dreamactor world pool`, whole clips or short ones."""
    stills: Path | None = None
    """A folder of .jpg pictures to stand behind and before subjects (see scripts/stills.py)."""
    start: Path | None = None
    """Weights to start from, instead of nothing."""
    minutes: float = 9.0
    batch: int = 128
    """Pictures a step, over all processes."""
    frames: int = 40_000
    """Frames kept on each GPU at once, 262 kB each."""
    least: int = 1000
    """Frames to start with."""
    of_clip: int = 4
    """Frames taken of each clip."""
    rate: float = 2e-3
    decay: float = 0.05
    """Weight decay, of matrices and kernels."""
    warmup: int = 200
    there_weight: float = 0.2
    """Of the loss of being in the picture."""
    consume: bool = False
    """Delete shards once taken in, all but the first, so that renderers go on."""


def place_loss(scores: Tensor, joints: Tensor) -> Tensor:
    """Divergence of the maps from bells at the joints' places.

    Args:
        scores: (B, J, h, w).
        joints: (B, J, 2) in parts of the side; NaN = not there, and left out.

    Returns:
        Scalar, the mean over all joints that are there; 0 where the maps are the bells.
    """
    height, width = scores.shape[2:]
    there = joints.isfinite().all(dim=-1)  # (B, J)
    at = joints.nan_to_num(0.5)
    rows = torch.arange(height, device=scores.device) + 0.5
    columns = torch.arange(width, device=scores.device) + 0.5
    dy = rows - at[..., 1:] * height  # (B, J, h)
    dx = columns - at[..., :1] * width  # (B, J, w)
    bell = -(dy[..., :, None].square() + dx[..., None, :].square()) / (2 * BELL**2)
    bell = bell.flatten(2).log_softmax(dim=-1)
    found = scores.float().flatten(2).log_softmax(dim=-1)
    apart = F.kl_div(found, bell, reduction="none", log_target=True).sum(dim=-1)
    return (apart * there).sum() / there.sum().clamp_min(1)


def hits(places: Tensor, joints: Tensor, part: float) -> Tensor:
    """Share of joints that are found within `part` of the longer side of their box (PCK).

    Args:
        places: (B, J, 2) where they were found.
        joints: (B, J, 2) where they are, NaN = not there.
        part: Such as 0.1.
    """
    there = joints.isfinite().all(dim=-1)
    low = joints.nan_to_num(torch.inf).amin(dim=1)
    high = joints.nan_to_num(-torch.inf).amax(dim=1)
    size = (high - low).amax(dim=-1, keepdim=True)  # (B, 1)
    right = (places - joints).norm(dim=-1) <= part * size
    return (right & there).sum() / there.sum().clamp_min(1)


def train_keypoints(config: KeypointTrainConfig, run: Path) -> Path:
    """Train until the time is up; the same call resumes.

    Returns:
        The weight file, keypoints.safetensors in the run folder.
    """
    with workers() as worker:
        _Run(config, run, worker).train()
    return run / "keypoints.safetensors"


class _Run:
    """One training run."""

    def __init__(self, config: KeypointTrainConfig, run: Path, worker: Worker) -> None:
        self.config, self.worker = config, worker
        check_pool(config.pool)
        self.folder = RunFolder.open(run, identity(asdict(config)), worker.leads)
        self.stills = load_stills(config.stills, worker.device) if config.stills else None
        torch.manual_seed(config.seed)
        network = load_network(config.start) if config.start else KeypointNet(KeypointsConfig())
        self.network = channels_last(network.to(worker.device))
        self.pool = FramePool(
            config.pool, config.frames, config.of_clip, config.seed, worker, config.consume
        )
        self.pool.wait(config.least)
        self.loop = Loop.of(
            config,
            self.folder,
            worker,
            self.network,
            [torch.optim.AdamW(self._groups(), lr=config.rate)],
            self._export,
        )
        if config.compile and worker.on_gpu:
            compile_blocks(self.network, PoseBlock)
        self.trainee = worker.together(self.network)

    def _groups(self) -> list[dict[str, object]]:
        """Weight decay for matrices and kernels only."""
        parameters = list(self.network.parameters())
        return [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": self.config.decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]

    def train(self) -> None:
        """All steps, then the last export."""
        self.loop.run(self._losses, lambda: self.pool.refresh(2))
        self.pool.feed.close()

    def _losses(self, step: int) -> dict[str, Tensor]:
        config = self.config
        draws = generator(config.seed, f"keypoints/{self.worker.rank}", step)
        frames = self.pool.batch(draws, config.batch // self.worker.count)
        x, joints = views(frames.pictures, frames.joints, draws, self.stills)
        with self.worker.autocast():
            scores, there = self.trainee(x)
        place = place_loss(scores, joints)
        seen = joints.isfinite().all(dim=-1).float()
        being = F.binary_cross_entropy_with_logits(there.float(), seen)
        right = hits(locate(scores.detach()), joints, 0.1)
        return {
            "total": place + config.there_weight * being,
            "place": place,
            "there": being,
            "pck": right,
        }

    @torch.no_grad()
    def _export(self, step: int) -> None:
        """Averaged weights, how they do on held frames, and a sheet of these."""
        network = KeypointNet(self.network.config).to(self.worker.device).eval()
        network.load_state_dict(self.loop.average.state)
        path = self.folder.path / "keypoints.safetensors"
        save_weights(path, network.state_dict(), header_of(network, step))
        frames, joints, _ = self.pool.held()
        found = [network(x.permute(0, 3, 1, 2)[:, :3] / 127.5 - 1) for x in frames.split(32)]
        places = torch.cat([locate(scores) for scores, _ in found])
        there = torch.cat([logits for _, logits in found]).sigmoid()
        self.folder.log(
            step=step,
            held_pck5=round(float(hits(places, joints, 0.05)), 4),
            held_pck10=round(float(hits(places, joints, 0.1)), 4),
        )
        few = slice(None, None, max(1, len(frames) // ON_SHEET))
        pictures = frames[few, ..., :3].cpu().numpy()
        height, width = pictures.shape[1:3]
        at = (places[few].cpu().numpy() * np.array([width, height])).astype(np.float32)
        sure = there[few].cpu().numpy().astype(np.float32)
        track = PoseTrack(JOINTS, at[:, None], sure[:, None], height, width, 1.0)
        drawn = draw(track, over=pictures, seen=0.5)
        rows = [np.concatenate(list(drawn[k : k + 6]), axis=1) for k in range(0, len(drawn) - 5, 6)]
        write_png(self.folder.path / "samples" / f"{step:06d}.png", np.concatenate(rows))
