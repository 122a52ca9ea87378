"""What the transformer can do so far: numbers and pictures written while it trains.

Legend: B pairs or clips, C latent channels, F latent frames (5, or 2), h x w cells of one half, n
halves side by side (2; 1 for clips).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dreamactor.backbones.layers import STRIDE_S, STRIDE_T
from dreamactor.backbones.nano import velocity_of
from dreamactor.backbones.nano_vae import NanoVAE
from dreamactor.conditioning.canvas import motion_half, reference_half
from dreamactor.diffusion.flow import MotionHalf, generated, schedule
from dreamactor.diffusion.sampler import beside, sample_euler
from dreamactor.training.examples import Draws, example

STEPS, SHIFT = 4, 5.0  # of the sampler, the same for all runs but those that distil
SIGMAS = (1.0, 0.7)  # noise levels of single predictions
DECODED = 8  # clips decoded at once


@dataclass(frozen=True)
class Preview:
    """Looks at a network while it trains; the caller puts it in eager mode.

    Args:
        network: (network input, sigma (B,), text) -> latents (B, C, F, h, n w), float32.
        vae: Autoencoder of the latents.
        motion: How the motion half is treated.
        steps: Of the sampler; None = STEPS.
        shift: Of its schedule; None = SHIFT.
    """

    network: Callable[[Tensor, Tensor, Tensor], Tensor]
    vae: NanoVAE
    motion: MotionHalf
    steps: int | None = None
    shift: float | None = None

    @torch.no_grad()
    def numbers(
        self, batch: dict[str, Tensor], drawn: Draws, shows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """How well the targets are met.

        Args:
            batch: As for `example`.
            drawn: Its randomness; the noise levels are replaced.
            shows: (C,) what a unit of each channel shows; None = all alike.

        Returns:
            missed_S and swapped_S: share of what shows of the subject (of its latents' energy,
            weighted by `shows`) that one prediction at noise level S misses, with the right driver
            and with another's. At S = 1 nothing but reference and driver tells what the target
            looks like, so the gap between the two is what the network has learnt of motion. Of
            clips by themselves, missed_S is with every clip's text and silent_S without.
            missed_surface: missed_1 of the channels that say where on the body cells lie, if there
            are any. dB_1 and dB: PSNR on the subject of the decoded prediction at 1 and of a
            sample, against the decoded target.
        """
        if self.motion == "none":
            every = torch.ones_like(drawn.silent)
            drawn = replace(drawn, silent=~every)
            other, less = "silent", (batch, replace(drawn, silent=every))
        else:
            other, less = "swapped", ({**batch, "motion": batch["motion"].roll(1, dims=0)}, drawn)
        found = {}
        for sigma in SIGMAS:
            for name, (seen, given) in {"missed": (batch, drawn), other: less}.items():
                predicted = self.predict(seen, given, sigma)
                found[f"{name}_{sigma:g}"] = missed(predicted, batch, shows)
                if sigma == 1 and name == "missed":
                    found["dB_1"] = self.psnr(predicted, batch)
                    if (unseen := unseen_channels(self.vae)) is not None:
                        found["missed_surface"] = missed(predicted, batch, unseen)
        found["dB"] = self.psnr(self.sample(batch, drawn), batch)
        return found

    @torch.no_grad()
    def sheet(self, batch: dict[str, Tensor], drawn: Draws) -> Tensor:
        """(3, H, W) in [-1, 1]: for each pair driver, target and sample, at its middle frame.

        A clip by itself has its first frame in the driver's place.
        """
        parts = (batch.get("motion", batch["target"]), batch["target"], self.sample(batch, drawn))
        clips = [self.vae.decode(part) for part in parts]  # (B, 3, T, H, W)
        middle = clips[0].shape[2] // 2
        given = 0 if self.motion == "none" else middle
        rows = [
            torch.cat(list(clip[:, :, frame]), dim=-1)
            for clip, frame in zip(clips, (given, middle, middle), strict=True)
        ]
        return torch.cat(rows, dim=-2)

    def predict(self, batch: dict[str, Tensor], drawn: Draws, sigma: float) -> Tensor:
        """Targets (B, C, F, h, w) as foreseen in one pass from noise level `sigma`."""
        drawn = replace(drawn, sigma=torch.full_like(drawn.sigma, sigma))
        x, _, _, text, _ = example(batch, drawn, self.motion)
        return generated(self.network(x, drawn.sigma, text), self.motion)

    def sample(self, batch: dict[str, Tensor], drawn: Draws, since: float = 1.0) -> Tensor:
        """Targets (B, C, F, h, w), sampled from noise.

        Args:
            batch: As for `example`.
            drawn: Its randomness; the noise levels are not used.
            since: Noise level to begin at, from the true latents with so much noise.
        """
        x, latents, noise, text, _ = example(batch, drawn, self.motion)
        condition = x[:, latents.shape[1] :]

        def velocity(wide: Tensor, sigma: Tensor) -> Tensor:
            level = sigma.expand(len(wide)).to(wide.device)
            predicted = self.network(torch.cat([wide, condition], dim=1), level, text)
            return velocity_of(predicted, wide, level)

        sigmas = schedule(self.steps or STEPS, self.shift or SHIFT)
        sigmas = torch.cat([sigmas.new_tensor([since]), sigmas[sigmas < since]])
        start = torch.lerp(latents, noise, since) if since < 1 else noise
        if self.motion == "none":
            return sample_euler(velocity, start, sigmas)
        return sample_euler(beside(velocity, motion_half(latents)), reference_half(start), sigmas)

    def psnr(self, found: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """DB on the subject, of the mean error over all pairs; against the decoded targets."""
        error = weight = torch.zeros((), device=found.device)
        for start in range(0, len(found), DECODED):
            part = slice(start, start + DECODED)
            a, b = self.vae.decode(found[part]), self.vae.decode(batch["target"][part])
            mask = on_pixels(batch["subject"][part])
            error = error + ((a - b).square().mean(dim=1, keepdim=True) * mask).sum()
            weight = weight + mask.sum()
        return 10 * torch.log10(4 * weight / error)


def missed(predicted: Tensor, batch: dict[str, Tensor], shows: Tensor | None = None) -> Tensor:
    """Share of what shows of the subject that a prediction misses: 0 is perfect.

    Args:
        predicted: (B, C, F, h, w) targets.
        batch: target, and subject (B, 1, F, h, w) in [0, 1].
        shows: (C,) weights of channels; None = all alike.
    """
    target, weight = batch["target"][:, :, 1:], batch["subject"][:, :, 1:]
    if shows is not None:
        weight = weight * shows.view(-1, 1, 1, 1)
    error = (predicted[:, :, 1:] - target).square() * weight
    return error.sum() / (target.square() * weight).sum()


def unseen_channels(vae: NanoVAE) -> Tensor | None:
    """(D,) 1 for the latent channels of surfaces and 0 for the picture's; None = no surfaces."""
    config = vae.config
    if config.channels == config.latent_channels:
        return None
    places = torch.arange(config.channels, device=vae.latent_mean.device)
    return (places >= config.latent_channels).float()


def on_pixels(subject: Tensor) -> Tensor:  # (B, 1, F, h, w) -> (B, 1, T, H, W)
    """Weights of pixels from weights of latent cells; 0 on frame 0, which is shown."""
    frames = subject.repeat_interleave(STRIDE_T, dim=2)[:, :, STRIDE_T - 1 :].clone()
    frames[:, :, 0] = 0
    return frames.repeat_interleave(STRIDE_S, dim=3).repeat_interleave(STRIDE_S, dim=4)
