"""Teach nano where a driver belongs: `dreamactor train nano-placement`.

The network of placements (`backbones.nano_placement`) learns from the true joints of twins: with
its scale and shift the driver's joints should lie on the target's, in all frames of the clip. It
reads the spots that the autoencoder finds, which stays as it is; the weights that are written hold
both. Time-boxed and resumable; one process a GPU.

Legend: N twins kept, K = T + 2 frames of a clip (a reference, the frame before, T frames), J = 17
joints, h x w cells, B pairs of a step.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamactor.backbones.layers import Block
from dreamactor.backbones.nano import load_vae
from dreamactor.backbones.nano_placement import PlacementNet, as_placement, place
from dreamactor.backbones.nano_surface import SurfaceNet
from dreamactor.backbones.nano_vae import NanoVAE
from dreamactor.backbones.weights import save_weights
from dreamactor.conditioning.framing import to_picture
from dreamactor.conditioning.placement import Placement, place_frames, place_points
from dreamactor.image import write_png
from dreamactor.runs import RunFolder, generator
from dreamactor.training.loop import Loop, LoopConfig, Worker, compile_blocks, identity, workers
from dreamactor.training.optim import optimisers_for
from dreamactor.training.pool import SHARD, Shard, ShardFeed, check_pool, consume_shard, ring
from dreamactor.training.views import MIRRORED
from dreamactor.training.widen import surface_of, with_part

FURTHEST = 6
"""Cells by which pictures are moved at most, each by itself."""
ON_SHEET = 8
AT_ONCE = 72
"""Frames whose spots are found at once."""


@dataclass(frozen=True, kw_only=True)
class PlacementTrainConfig(LoopConfig):
    """Settings of one run."""

    vae: Path
    """The autoencoder; it must know surfaces. If it knows placements already, they are taught
    further."""
    minutes: float = 2.0
    batch: int = 512
    """Pairs a step, over all processes."""
    twins: int = 4000
    """Kept on each GPU, 300 kB each."""
    least: int = 200
    """Twins to start with."""
    optimiser: str = "muon"
    """muon or adamw."""
    poses: float = 1.0
    """Weight of the loss of joints that the first points should be."""
    rate: float = 1e-3
    consume: bool = False
    """Delete shards once taken in, all but the first, so that renderers go on."""


def apart(placement: Placement, driver: Tensor, target: Tensor) -> Tensor:
    """How far a placed driver's joints lie from the target's.

    Args:
        placement: Of B clips.
        driver: (B, T, J, 2) in parts of the side; NaN = not in the picture.
        target: Likewise.

    Returns:
        (B,) mean distance in parts of the side, over joints that are in both pictures; NaN where
        there are none.
    """
    both = (driver + target).isfinite().all(dim=-1)  # (B, T, J)
    away = place_points(driver.nan_to_num(), placement) - target.nan_to_num()
    distance = ((away.square().sum(dim=-1) + 1e-6).sqrt() * both).sum(dim=(1, 2))
    count = both.sum(dim=(1, 2))
    return torch.where(count > 0, distance / count.clamp_min(1), torch.nan)


def missed(points: Tensor, joints: Tensor) -> Tensor:
    """Mean distance of the first points from the joints that they should be, in sides.

    Args:
        points: (..., P, 2) in [-1, 1].
        joints: (..., J, 2) in parts of the side; NaN = not in the picture, and left out.
    """
    there = joints.isfinite().all(dim=-1)
    away = (points[..., : joints.shape[-2], :] + 1) / 2 - joints.nan_to_num()
    distance = (away.square().sum(dim=-1) + 1e-6).sqrt()
    return (distance * there).sum() / there.sum().clamp_min(1)


def best(driver: Tensor, target: Tensor) -> Placement:
    """The least squares placement of joints (B, T, J, 2) as `apart` takes them."""
    both = (driver + target).isfinite().all(dim=-1, keepdim=True)
    weight = both / both.sum(dim=(1, 2), keepdim=True).clamp_min(1)
    a, b = (2 * side.nan_to_num() - 1 for side in (driver, target))
    mean_a, mean_b = ((side * weight).sum(dim=(1, 2)) for side in (a, b))
    a, b = a - mean_a[:, None, None], b - mean_b[:, None, None]
    power = (a.square() * weight).sum(dim=(1, 2, 3)).clamp_min(1e-6)
    scale = ((a * b * weight).sum(dim=(1, 2, 3)) / power).clamp(0.1, 10)
    return Placement(scale, mean_b - scale[:, None] * mean_a)


@dataclass
class Told:
    """What is known of twins, on the device; the oldest give way, but not those of the first shard.

    The latter are held: they are measured, never trained on.
    """

    folder: Path
    capacity: int
    surface: SurfaceNet
    worker: Worker
    consume: bool
    count: int = 0

    def __post_init__(self) -> None:
        self.feed = ShardFeed(self.folder, self.worker.rank, self.worker.count)
        self.spots = torch.empty(0)
        """(N, 2, K, 4, h, w) half precision, as `SurfaceNet.told`."""
        self.joints = torch.empty(0)
        """(N, 2, K, J, 2)."""
        self.first: Shard | None = None

    def refresh(self, at_most: int, seconds: float = 0.0) -> None:
        """Take in new shards of this process's share."""
        for _ in range(at_most):
            shard = self.feed.take(seconds)
            if shard is None:
                return
            self._put(shard)
            if self.consume and self.first is not shard:
                consume_shard(self.folder, shard.index)

    def wait(self, least: int) -> None:
        """Block until there are so many twins beside those that are held."""
        wanted = SHARD + least
        self.feed.wait(lambda: self.count, wanted, "twins", lambda: self.refresh(1, seconds=1.0))

    @torch.no_grad()
    def _put(self, shard: Shard) -> None:
        device = self.worker.device
        x = torch.from_numpy(shard.pixels[..., :3]).to(device).flatten(0, 2)
        parts = []
        for few in x.split(AT_ONCE):
            with self.worker.autocast():
                frames = few.permute(0, 3, 1, 2).float() / 127.5 - 1
                parts.append(self.surface.told(frames).half())
        spots = torch.cat(parts).unflatten(0, shard.pixels.shape[:3])
        joints = torch.from_numpy(shard.joints).to(device)
        if self.first is None:
            self.first = shard
            self.spots, self.joints = (
                x.new_empty((self.capacity, *x.shape[1:])) for x in (spots, joints)
            )
        slots = ring(self.count, SHARD, self.capacity, SHARD).to(device)
        self.spots[slots], self.joints[slots] = spots, joints
        self.count += SHARD


class _Run:
    """One training run."""

    def __init__(self, config: PlacementTrainConfig, run: Path, worker: Worker) -> None:
        self.config, self.worker = config, worker
        check_pool(config.pool)
        self.folder = RunFolder.open(run, identity(asdict(config)), worker.leads)
        torch.manual_seed(config.seed)
        self.vae = load_vae(config.vae).to(worker.device).requires_grad_(False)
        surface = surface_of(self.vae)
        network = self.vae.placement or PlacementNet()
        self.network = network.to(worker.device).requires_grad_(True)
        self.pool = Told(config.pool, config.twins, surface, worker, config.consume)
        self.pool.wait(config.least)
        self.loop = Loop.of(
            config,
            self.folder,
            worker,
            self.network,
            optimisers_for(self.network, "blocks.", config.optimiser, config.rate, 0.01),
            self._export,
        )
        if config.compile and worker.on_gpu:
            compile_blocks(self.network, Block)
        self.trainee = worker.together(self.network)

    def train(self) -> None:
        """All steps, then the last export."""
        self.loop.run(self._losses, lambda: self.pool.refresh(2))
        self.pool.feed.close()

    def _losses(self, step: int) -> dict[str, Tensor]:
        config = self.config
        draws = generator(config.seed, f"placement/{self.worker.rank}", step)
        count = config.batch // self.worker.count
        filled = min(self.pool.count, config.twins)
        which = torch.randint(SHARD, filled, (count,), generator=draws)
        side = torch.randint(2, (count,), generator=draws)
        frame = torch.randint(1, self.pool.spots.shape[2], (count,), generator=draws)
        joints, spots = self.pool.joints, self.pool.spots
        reference, driver = spots[which, side, 0].float(), spots[which, 1 - side, frame].float()
        target_joints, driver_joints = joints[which, side], joints[which, 1 - side, 1:]
        reference, target_joints = moved(reference, target_joints, draws)
        driver, driver_joints = moved(driver, driver_joints, draws)
        flip = torch.rand(count, generator=draws) < 0.5
        reference, target_joints = mirrored(reference, target_joints, flip)
        driver, driver_joints = mirrored(driver, driver_joints, flip)
        own, target_joints = target_joints[:, :1], target_joints[:, 1:]
        with self.worker.autocast():
            found, points = self.trainee(reference, driver)
        away = apart(as_placement(found.float()), driver_joints, target_joints).nanmean()
        at = torch.arange(count, device=driver.device), (frame - 1).to(driver.device)
        seen = torch.stack([own[:, 0], driver_joints[at]])
        poses = missed(points.float(), seen)
        return {"total": away + config.poses * poses, "apart": away, "poses": poses}

    @torch.no_grad()
    def _export(self, step: int) -> None:
        """The autoencoder with averaged placements, how they do on held twins, and a sheet."""
        vae = with_placement(self.vae, self.network)
        assert vae.placement is not None
        vae.placement.load_state_dict(self.loop.average.state)
        header = {"model": "nano-vae", "config": vae.config.to_dict(), "steps": step}
        save_weights(self.folder.path / "vae.safetensors", vae.state_dict(), header)
        spots, joints = self.pool.spots[:SHARD].float(), self.pool.joints[:SHARD]
        placement = place(vae.placement, spots[:, 0, 0], spots[:, 1, 1:])
        driver, target = joints[:, 1, 1:], joints[:, 0, 1:]
        still = Placement(torch.ones_like(placement.scale), torch.zeros_like(placement.shift))
        ways = {"still": still, "placed": placement, "best": best(driver, target)}
        numbers = {
            f"held_{name}": round(256 * float(apart(way, driver, target).nanmean()), 2)
            for name, way in ways.items()
        }
        self.folder.log(step=step, **numbers)
        assert self.pool.first is not None
        pixels = torch.from_numpy(self.pool.first.pixels[:ON_SHEET, ..., :3]).to(spots.device)
        clips = pixels.permute(0, 1, 5, 2, 3, 4).float() / 127.5 - 1  # (n, 2, 3, K, H, W)
        middle = clips.shape[3] // 2
        shown = clips[:, 1, :, middle : middle + 1]
        moved = place_frames(shown, placement.of(slice(ON_SHEET)))
        rows = (clips[:, 0, :, 0], shown[:, :, 0], moved[:, :, 0], clips[:, 0, :, middle])
        sheet = torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2)
        write_png(self.folder.path / "samples" / f"{step:06d}.png", to_picture(sheet))


def train_nano_placement(config: PlacementTrainConfig, run: Path) -> Path:
    """Train until the time is up; the same call resumes.

    Returns:
        The weight file, vae.safetensors in the run folder: the autoencoder with its placements.
    """
    with workers() as worker:
        _Run(config, run, worker).train()
    return run / "vae.safetensors"


def with_placement(vae: NanoVAE, network: PlacementNet) -> NanoVAE:
    """A copy of an autoencoder with a network of placements."""
    theirs = {f"placement.{k}": v for k, v in network.state_dict().items()}
    return with_part(vae, theirs, placed=True)


def moved(spots: Tensor, joints: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures moved by whole cells, up to FURTHEST each way; joints along.

    Args:
        spots: (B, 4, h, w).
        joints: (B, T, J, 2) in parts of the side.
        draws: How far.
    """
    count, _, height, width = spots.shape
    by = torch.randint(-FURTHEST, FURTHEST + 1, (count, 2), generator=draws).to(spots.device)
    wide = F.pad(spots, (FURTHEST,) * 4)
    rows = torch.arange(height, device=spots.device) + FURTHEST - by[:, 1:]  # (B, h)
    columns = torch.arange(width, device=spots.device) + FURTHEST - by[:, :1]
    index = torch.arange(count, device=spots.device)[:, None, None]
    out = wide[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    part = by / by.new_tensor([width, height])
    return out, joints + part[:, None, None]


def mirrored(spots: Tensor, joints: Tensor, flip: Tensor) -> tuple[Tensor, Tensor]:
    """Some pictures mirrored, with the bodies in them: what was a left hand is a right one."""
    chosen = flip.to(spots.device).view(-1, 1, 1, 1)
    sign = spots.new_tensor([-1, 1, 1, 1]).view(1, 4, 1, 1)
    named = joints[..., MIRRORED, :]
    turned = torch.stack([1 - named[..., 0], named[..., 1]], dim=-1)
    return torch.where(chosen, spots.flip(-1) * sign, spots), torch.where(chosen, turned, joints)
