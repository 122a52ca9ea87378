"""Ways to bring the driver in besides the canvas, to measure what the canvas is worth.

The paper says that its canvas, side by side, beats three others; overlaid is ours. A transformer of
Wan's kind takes any of them on; it is called with the canvas and answers with one as ever, so
nothing around it knows of this:

    canvas            the motion half beside the reference half, as in the paper
    overlaid          the same, but the motion half's tokens have the positions of the reference
                      half's. A base that has seen single clips alone does not look a clip's width
                      to the side, and feed-forward layers cannot teach it to; here the driver
                      stands where it is wanted. Knows every mode of attention
    temporal          the motion half's frames behind the reference half's, at later times; every
                      token sees every token
    channel           the reference half alone; the motion half's latents go through a second patch
                      embedding, zero at the start, and are added to the tokens of their own places
    cross-attention   the reference half alone; in each block its tokens read, beside the text, the
                      motion half's tokens, by keys and values of their own, as image prompts are
                      read (IP-Adapter: Ye et al. 2023, arXiv 2308.06721; Wan's own image-to-video
                      models). Values are zero at the start; queries and keys are turned to their
                      times, rows and columns as in self-attention

So the two latter start as the base is with the reference half alone. Their new layers are all named
INJECTED and learn in full. Where the motion half has no tokens, what comes out at its place is what
was given there.

Legend: B clips, C latent channels, F latent frames, h x 2w latent cells of the canvas, N tokens of
one half, D channels of a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from dreamactor.backbones.attention import attend
from dreamactor.backbones.catalogue import Injection
from dreamactor.backbones.incontext import mode_of
from dreamactor.backbones.sight import Rotary, turned
from dreamactor.conditioning.canvas import motion_half, reference_half

INJECTED = "injected"
INJECTS = ("nano",)
"""Backbones that know another way than the canvas."""
BESIDE: tuple[Injection, ...] = ("canvas", "overlaid")
"""Ways in which both halves are there side by side, in any mode of attention."""
HALF: tuple[Injection, ...] = ("channel", "cross-attention")
"""Ways in which the reference half alone goes through the blocks."""


def set_injection(transformer: Any, injection: Injection) -> None:
    """Have a transformer take its driver in another way; new layers come where that has some.

    To be set after `incontext.set_mode`, whose mode has to be full but for those of BESIDE, and
    before hooks and adapters.

    Args:
        transformer: diffusers', of Wan; changed in place. With canvas, any, and unchanged.
        injection: As its weights were, or are to be, trained.
    """
    if injection == "canvas":
        return
    assert isinstance(transformer, WanTransformer3DModel)
    assert injection_of(transformer) == "canvas"
    transformer.injection = injection
    if injection == "overlaid":
        transformer.rope = _Overlaid(transformer.rope)
        return
    assert mode_of(transformer) == "full"
    assert "forward" not in vars(transformer), "hooks hold on to the forward that was"
    transformer.__class__ = WAYS[injection]
    if injection == "channel":
        embedding = transformer.patch_embedding
        embedding.__class__ = _WithMotion
        embedding.injected = _embedding(transformer)
        nn.init.zeros_(embedding.injected.weight)
        nn.init.zeros_(embedding.injected.bias)
    elif injection == "cross-attention":
        transformer.injected = _embedding(transformer)
        for block in transformer.blocks:
            block.attn2.injected = _Reading(block.attn2)
            block.attn2.set_processor(_TextAndMotion())


def injection_of(transformer: Any) -> Injection:
    """The way that `set_injection` set; canvas without."""
    return cast(Injection, getattr(transformer, "injection", "canvas"))


def injected(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """What `set_injection` added, by the names it has in the transformer."""
    return {k: p for k, p in transformer.named_parameters() if INJECTED in k.split(".")}


def _embedding(transformer: WanTransformer3DModel) -> nn.Conv3d:
    """A patch embedding for the latents of the motion half."""
    old, channels = transformer.patch_embedding, transformer.config.out_channels
    new = nn.Conv3d(channels, old.out_channels, old.kernel_size, old.stride)
    return new.to(old.weight)


def _apart(canvas: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """The reference half of a network's input with all that belongs to it, and the driver.

    Args:
        canvas: (B, 2C + 4, F, h, 2w) noise | mask | canvas.
        channels: C.

    Returns:
        (B, 2C + 4, F, h, w) and (B, C, F, h, w).
    """
    return reference_half(canvas), motion_half(canvas[:, -channels:])


class _Overlaid(nn.Module):
    """Positions of a canvas whose halves both have those of the left one.

    Args:
        rope: diffusers', of a network's input.
    """

    def __init__(self, rope: nn.Module) -> None:
        super().__init__()
        self.rope = rope

    def forward(self, hidden_states: Tensor) -> Rotary:  # (B, C, F, h, 2w)
        """Cosines and sines, (1, F rows 2 columns, 1, D) each."""
        frames, height = hidden_states.shape[2:4]
        one: Any = self.rope
        _, rows, _ = one.patch_size
        found = one(reference_half(hidden_states))
        cos, sin = (
            torch.cat([table.unflatten(1, (frames, height // rows, -1))] * 2, dim=3).flatten(1, 3)
            for table in found
        )
        return cos, sin


class TemporalTransformer(WanTransformer3DModel):
    """diffusers' transformer that has the motion half behind the reference half."""

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """As of diffusers, on a canvas.

        Args:
            hidden_states: (B, 2C + 4, F, h, 2w) noise | mask | canvas.
            timestep: (B,).
            encoder_hidden_states: (B, L, text) of the prompt.
            encoder_hidden_states_image: Of the reference's picture, where the model has them.
            return_dict: Has to be False.

        Returns:
            (B, C, F, h, 2w), predicted.
        """
        assert not return_dict
        long = torch.cat(hidden_states.chunk(2, dim=4), dim=2)  # (B, 2C + 4, 2F, h, w)
        told = (timestep, encoder_hidden_states, encoder_hidden_states_image)
        found = super().forward(long, *told, return_dict=False)[0]
        return (torch.cat(found.chunk(2, dim=2), dim=4),)


class ChannelTransformer(WanTransformer3DModel):
    """diffusers' transformer of one half, to whose tokens those of the other are added."""

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """As of `TemporalTransformer`; what comes out at the motion half was given there."""
        assert not return_dict
        own, motion = _apart(hidden_states, self.config.out_channels)
        wide = torch.cat([own, motion], dim=1)  # (B, 3C + 4, F, h, w), for `_WithMotion`
        told = (timestep, encoder_hidden_states, encoder_hidden_states_image)
        found = super().forward(wide, *told, return_dict=False)[0]
        return (torch.cat([found, motion.type_as(found)], dim=4),)


class _WithMotion(nn.Conv3d):
    """The patch embedding, of inputs that have the driver's latents behind their own channels."""

    injected: nn.Conv3d

    def forward(self, x: Tensor) -> Tensor:  # (B, 3C + 4, F, h, w)
        """(B, D, F, rows, columns)."""
        own, motion = x.tensor_split([self.in_channels], dim=1)
        found: Tensor = super().forward(own) + self.injected(motion)
        return found


@dataclass(frozen=True)
class _Told:
    """What a block's cross-attention reads, in the place of the text alone."""

    text: Tensor
    """(B, L, D)."""
    motion: Tensor
    """(B, N, D)."""
    rotary: Rotary
    """Positions of the motion's tokens, which are also those of the tokens that read."""


class CrossAttentionTransformer(WanTransformer3DModel):
    """diffusers' transformer of one half, whose tokens read those of the other."""

    injected: nn.Conv3d

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """As of `ChannelTransformer`; of nano's kind, which knows no states of a picture."""
        assert not return_dict
        assert encoder_hidden_states_image is None
        own, motion = _apart(hidden_states, self.config.out_channels)
        rotary = self.rope(own)
        grid = self.patch_embedding(own)
        tokens = grid.flatten(2).transpose(1, 2).contiguous()
        last, time, text, _ = self.condition_embedder(timestep, encoder_hidden_states)
        told = _Told(text, self.injected(motion).flatten(2).transpose(1, 2), rotary)
        given = (told, time.unflatten(1, (6, -1)), rotary)
        again = torch.is_grad_enabled() and self.gradient_checkpointing
        for block in self.blocks:
            if again:
                tokens = self._gradient_checkpointing_func(block, tokens, *given)
            else:
                tokens = block(tokens, *given)
        shift, scale = (self.scale_shift_table + last.unsqueeze(1)).chunk(2, dim=1)
        tokens = (self.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens)
        patches = self.proj_out(tokens).unflatten(2, (2, 2, -1)).unflatten(1, grid.shape[2:])
        found = patches.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
        return (torch.cat([found, motion.type_as(found)], dim=4),)


class _Reading(nn.Module):
    """Keys and values of the driver for one block's cross-attention.

    Args:
        attn: That attention.
    """

    def __init__(self, attn: Any) -> None:
        super().__init__()
        like = attn.to_k
        self.to_k = nn.Linear(like.in_features, like.out_features).to(like.weight)
        self.to_v = nn.Linear(like.in_features, like.out_features).to(like.weight)
        self.norm_k = nn.RMSNorm(like.out_features, eps=attn.norm_k.eps).to(like.weight)
        nn.init.zeros_(self.to_v.weight)
        nn.init.zeros_(self.to_v.bias)


class _TextAndMotion:
    """Cross-attention of a WanTransformerBlock that reads the text, and the driver beside it."""

    _attention_backend: str | None = None  # diffusers sets both
    _parallel_config = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: _Told,
        attention_mask: None = None,
        rotary_emb: None = None,
    ) -> Tensor:
        told, heads, backend = encoder_hidden_states, attn.heads, self._attention_backend
        query = attn.norm_q(attn.to_q(hidden_states))
        key, value = (
            part.unflatten(2, (heads, -1))
            for part in (attn.norm_k(attn.to_k(told.text)), attn.to_v(told.text))
        )
        # under autocast values alone come in its dtype, as attention will be
        plain = query.unflatten(2, (heads, -1)).type_as(value)
        out = attend(plain, key.type_as(value), value, backend)
        new = attn.injected
        value = new.to_v(told.motion).unflatten(2, (heads, -1))
        key = turned(new.norm_k(new.to_k(told.motion)), heads, told.rotary).type_as(value)
        out = out + attend(turned(query, heads, told.rotary).type_as(value), key, value, backend)
        result: Tensor = attn.to_out[1](attn.to_out[0](out.flatten(2, 3).type_as(hidden_states)))
        return result


WAYS: dict[Injection, type[WanTransformer3DModel]] = {
    "temporal": TemporalTransformer,
    "channel": ChannelTransformer,
    "cross-attention": CrossAttentionTransformer,
}
"""Classes that a transformer takes on."""
