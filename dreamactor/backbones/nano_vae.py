"""The causal video autoencoder of nano: 8x smaller in space, 4x in time, 48 channels.

Beside those of the picture 16 more say where on the body each cell lies (`backbones.nano_surface`).

Legend: B clips, T = 4k + 1 frames, F = k + 1 latent frames, H, W pixels, h = H / 8, w = W / 8,
C channels of the picture, D of all.

Frame 0 becomes latent frame 0; every further run of 4 frames becomes one more latent frame
that sees nothing later than itself. So the latents of a clip's beginning do not depend on
how the clip goes on: `encode(clip)[:, :, :f] == encode(clip[:, :, : 4 * f - 3])`.

diffusers' own causal autoencoders take five times as long on a CPU at this size, and see a
quarter as many batches in the same minutes (docs/training.md). This one keeps every layer a 2-D
convolution over frames laid on the batch axis, channels last; time is mixed by a causal three-tap
1x1 convolution after each spatial one.

Encoder and decoder each learn a correction to a linear map of 4 x 8 x 8 blocks, which training
starts at the principal components of the data: a linear autoencoder is there from step 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamactor.backbones.layers import STRIDE_S, STRIDE_T, ChannelNorm, Stage, in_runs, out_of_runs
from dreamactor.backbones.nano_guide import Fetch, Places, by_frame, find_places
from dreamactor.backbones.nano_placement import PlacementNet, place
from dreamactor.backbones.nano_surface import SURFACE_CHANNELS, SurfaceNet
from dreamactor.conditioning.placement import Placement
from dreamactor.errors import ShapeError


@dataclass(frozen=True)
class NanoVAEConfig:
    """Widths and depths; the strides are fixed."""

    latent_channels: int = 48
    """C, of the picture."""
    encoder_widths: tuple[int, int, int] = (96, 192, 256)
    """Channels at 1/4 and 1/8 resolution per frame, then at 1/8 per latent frame."""
    encoder_depths: tuple[int, int, int] = (1, 2, 1)
    decoder_widths: tuple[int, int, int, int] = (256, 192, 96, 48)
    """Channels per latent frame at 1/8, then per frame at 1/8, 1/4 and 1/2 resolution."""
    decoder_depths: tuple[int, int, int, int] = (2, 2, 2, 1)
    surface_widths: tuple[int, ...] = ()
    """Of the network of surfaces (`SurfaceNet`); empty = there is none, and no channels of it."""
    guided: bool = False
    """Frames are decoded with what frame 0 shows at the same spots (`backbones.nano_guide`)."""
    placed: bool = False
    """It knows where a driver belongs (`backbones.nano_placement`)."""

    @property
    def channels(self) -> int:
        """D, of the latents."""
        return self.latent_channels + (SURFACE_CHANNELS if self.surface_widths else 0)

    def to_dict(self) -> dict[str, object]:
        """Plain values for a JSON header."""
        return asdict(self)


BLOCK = 3 * STRIDE_T * STRIDE_S**2
"""Numbers in one 4 x 8 x 8 block of colour pixels."""
QUIET = -6.0  # log variance of the posterior at the start: nearly no noise


def blocks(clip: Tensor) -> Tensor:  # (B, 3, T, H, W) -> (B * F, BLOCK, h, w)
    """Cut a clip into 4 x 8 x 8 blocks; frame 0 is repeated to fill a run of its own."""
    x = in_runs(clip.transpose(1, 2)).transpose(2, 3)  # (B, F, 3, 4, H, W)
    return F.pixel_unshuffle(x.flatten(0, 1).flatten(1, 2), STRIDE_S)


def unblocks(x: Tensor, latent_frames: int) -> Tensor:  # (B * F, BLOCK, h, w) -> (B, 3, T, H, W)
    """Undo `blocks`; of the first run only the last frame is kept."""
    frames = F.pixel_shuffle(x, STRIDE_S).unflatten(1, (3, STRIDE_T))
    clip = frames.unflatten(0, (-1, latent_frames)).permute(0, 2, 1, 3, 4, 5).flatten(2, 3)
    return clip[:, :, STRIDE_T - 1 :]


def _start_at_zero(out: nn.Conv2d, latent_channels: int) -> None:
    """Let the correction of the mean start at zero and the posterior nearly without noise."""
    nn.init.zeros_(out.weight)
    bias = out.bias
    assert bias is not None
    nn.init.zeros_(bias)
    with torch.no_grad():
        bias[latent_channels:] = QUIET


class Encoder(nn.Module):
    """Frames to the mean and log variance of their latents."""

    def __init__(self, config: NanoVAEConfig) -> None:
        super().__init__()
        quarter, eighth, latent = config.encoder_widths
        depth1, depth2, depth3 = config.encoder_depths
        self.stem = nn.Conv2d(3 * 16, quarter, 3, padding=1)
        self.quarter = Stage(quarter, depth1)
        self.down = nn.Conv2d(quarter * 4, eighth, 1)
        self.eighth = Stage(eighth, depth2)
        self.group = nn.Conv2d(STRIDE_T * eighth, latent, 1)
        self.latent = Stage(latent, depth3)
        self.norm = ChannelNorm(latent)
        self.out = nn.Conv2d(latent, 2 * config.latent_channels, 3, padding=1)
        self.linear = nn.Conv2d(BLOCK, config.latent_channels, 1)
        _start_at_zero(self.out, config.latent_channels)

    def forward(self, clip: Tensor) -> Tensor:  # (B, 3, T, H, W) -> (B, 2C, F, h, w)
        """Moments of the latents."""
        frames = clip.shape[2]
        linear = self.linear(blocks(clip))  # (B * F, C, h, w)
        x = clip.transpose(1, 2).flatten(0, 1)  # (B * T, 3, H, W)
        x = F.pixel_unshuffle(x, 4).contiguous(memory_format=torch.channels_last)
        x = self.quarter(self.stem(x), frames)
        x = self.eighth(self.down(F.pixel_unshuffle(x, 2)), frames)
        x = in_runs(x.unflatten(0, (-1, frames))).flatten(0, 1).flatten(1, 2)  # (B * F, 4C, h, w)
        latent_frames = (frames - 1) // STRIDE_T + 1
        x = self.group(x.contiguous(memory_format=torch.channels_last))
        mean, logvar = self.out(self.norm(self.latent(x, latent_frames))).chunk(2, dim=1)
        x = torch.cat([mean + linear, logvar], dim=1)
        return x.unflatten(0, (-1, latent_frames)).transpose(1, 2)


class Decoder(nn.Module):
    """Latents to frames."""

    def __init__(self, config: NanoVAEConfig) -> None:
        super().__init__()
        latent, eighth, quarter, half = config.decoder_widths
        depth1, depth2, depth3, depth4 = config.decoder_depths
        self.stem = nn.Conv2d(config.latent_channels, latent, 3, padding=1)
        self.latent = Stage(latent, depth1)
        self.ungroup = nn.Conv2d(latent, STRIDE_T * eighth, 1)
        self.eighth = Stage(eighth, depth2)
        self.up1 = nn.Conv2d(eighth, 4 * quarter, 1)
        self.quarter = Stage(quarter, depth3)
        self.up2 = nn.Conv2d(quarter, 4 * half, 1)
        self.halved = Stage(half, depth4, mix=False)
        self.norm = ChannelNorm(half)
        self.out = nn.Conv2d(half, 12, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        self.linear = nn.Conv2d(config.latent_channels, BLOCK, 1)
        stages = (eighth, quarter, half) if config.guided else ()
        self.fetches = nn.ModuleList(Fetch(channels) for channels in stages)

    def forward(self, latents: Tensor, places: Places | None = None) -> Tensor:
        """Frames of latents of the picture.

        Args:
            latents: (B, C, F, h, w).
            places: Where frame 0 shows the same; only of a guided decoder, None fetches nothing.

        Returns:
            (B, 3, T, H, W) in about [-1, 1], not clamped.
        """
        latent_frames = latents.shape[2]
        frames = (latent_frames - 1) * STRIDE_T + 1
        x = latents.transpose(1, 2).flatten(0, 1)  # (B * F, C, h, w)
        linear = unblocks(self.linear(x), latent_frames)  # (B, 3, T, H, W)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        x = self.ungroup(self.latent(x, latent_frames))
        x = out_of_runs(x.unflatten(1, (STRIDE_T, -1)).unflatten(0, (-1, latent_frames)))
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)  # (B * T, C, h, w)
        x = self.eighth(self._fetched(0, x, places), frames)
        x = F.pixel_shuffle(self.up1(x), 2).contiguous(memory_format=torch.channels_last)
        x = self.quarter(self._fetched(1, x, places), frames)
        x = F.pixel_shuffle(self.up2(x), 2).contiguous(memory_format=torch.channels_last)
        x = self.halved(self._fetched(2, x, places), frames)
        x = F.pixel_shuffle(self.out(self.norm(x)), 2)
        return linear + x.unflatten(0, (-1, frames)).transpose(1, 2)

    def _fetched(self, stage: int, x: Tensor, places: Places | None) -> Tensor:
        if places is None:
            return x
        fetched: Tensor = self.fetches[stage](x, places)
        return fetched


class NanoVAE(nn.Module):
    """Causal video autoencoder with normalised latents.

    `latent_mean` and `latent_std` are measured once at the end of training (per channel, over
    held-in clips). The divisor is smaller than the deviation for channels that show much and
    larger for those of fine detail (`training.nano_vae.latent_statistics`), with a mean variance
    of 1: noise then hides details before outlines, as it does in pixels.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: NanoVAEConfig | None = None) -> None:
        super().__init__()
        self.config = config or NanoVAEConfig()
        needy = self.config.guided or self.config.placed
        assert self.config.surface_widths or not needy, "guided by no surfaces"
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        widths, channels = self.config.surface_widths, self.config.channels
        self.surface = SurfaceNet(widths) if widths else None
        self.placement = PlacementNet() if self.config.placed else None
        self.register_buffer("latent_mean", torch.zeros(channels))
        self.register_buffer("latent_std", torch.ones(channels))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def start_linear(self, clips: Tensor) -> None:
        """Set the linear maps to the principal components of some clips.

        Args:
            clips: (B, 3, T, H, W) in [-1, 1].

        A component is scaled by the square root of its deviation, half way between equal
        latents and equal errors.
        """
        rows = blocks(clips).permute(0, 2, 3, 1).flatten(0, 2).double()  # (n, BLOCK)
        mean = rows.mean(dim=0)
        centred = rows - mean
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(rows))
        keep = self.config.latent_channels
        basis = vectors[:, -keep:].flip(1)  # (BLOCK, C)
        scale = values[-keep:].flip(0).clamp_min(1e-8).sqrt().sqrt()
        down = (basis / scale).T
        up = basis * scale
        for conv, weight, bias in (
            (self.encoder.linear, down, -(down @ mean)),
            (self.decoder.linear, up, mean),
        ):
            conv.weight.copy_(weight.float().view_as(conv.weight))
            assert conv.bias is not None
            conv.bias.copy_(bias.float())

    def encode(self, clip: Tensor) -> Tensor:
        """Latents of a clip: the mean of the posterior, normalised per channel.

        Args:
            clip: (B, 3, T, H, W) in [-1, 1]; T = 4k + 1, H and W multiples of 8.

        Returns:
            (B, D, F, h, w), about zero mean; variance 1 on average over channels of the picture.

        Raises:
            ShapeError: T is not 4k + 1, or a side is not a multiple of 8.
        """
        batch, channels, frames, height, width = clip.shape
        if channels != 3 or frames % STRIDE_T != 1 or height % STRIDE_S or width % STRIDE_S:
            raise ShapeError(
                f"clip of shape {tuple(clip.shape)}: want (B, 3, 4k + 1, 8m, 8n), nearest is "
                f"({batch}, 3, {max(0, (frames - 1) // 4) * 4 + 1}, {height // 8 * 8}, "
                f"{width // 8 * 8})"
            )
        mean = self.encoder(clip).chunk(2, dim=1)[0]
        if self.surface is not None:
            mean = torch.cat([mean, self.surface.latents(clip)], dim=1)
        return (mean - self._per_channel(self.latent_mean)) / self._per_channel(self.latent_std)

    def decode(self, latents: Tensor) -> Tensor:
        """Frames of normalised latents.

        Args:
            latents: (B, D, F, h, w) as `encode` gives them; what they say of surfaces is not shown.

        Returns:
            (B, 3, T, H, W) with T = 4 (F - 1) + 1, clamped to [-1, 1].
        """
        return self.frames(latents).clamp(-1, 1)

    def frames(self, latents: Tensor) -> Tensor:
        """`decode` without the clamp, through which no gradient would pass."""
        x = latents * self._per_channel(self.latent_std) + self._per_channel(self.latent_mean)
        count = self.config.latent_channels
        places = find_places(*by_frame(x[:, count:])) if self.config.guided else None
        decoded: Tensor = self.decoder(x[:, :count], places)
        return decoded

    def place(self, reference: Tensor, driving: Tensor) -> Placement:
        """Where drivers belong; only of an autoencoder that is `placed`.

        Args:
            reference: (B, 3, H, W) in [-1, 1].
            driving: (B, 3, T, H, W) in [-1, 1], of any T.
        """
        assert self.surface is not None
        assert self.placement is not None
        frames = driving.transpose(1, 2)
        driver = self.surface.told(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        return place(self.placement, self.surface.told(reference).float(), driver.float())

    @staticmethod
    def _per_channel(values: Tensor) -> Tensor:
        return values.view(1, -1, 1, 1, 1)
