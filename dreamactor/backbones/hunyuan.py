"""HunyuanVideo-1.5 image-to-video, from a folder in diffusers' format: translated, not changed.

What its multimodal transformer reads, and where that comes from:

    channels    32 noise | 32 canvas | 1 mask; a hidden latent frame of the canvas is 0
    mask        one flag for each cell of a latent frame, so the runs of the folded mask must agree
    latents     mean of the posterior times the autoencoder's scaling factor
    timestep    sigma * 1000, in the number format of the network
    text        states of Qwen2.5-VL, which is told to describe a video, and of ByT5 for what stands
                in quotes; both lie in one tensor, side by side along the last axis
    image       states of SigLIP, which sees the reference
    silence     no text is the empty prompt to its encoders, not a row of zeros

diffusers pads text to 1,256 tokens and masks what is empty in every block, which costs more than
half of the time. Here the transformer gets the tokens that there are; where they are equally many
in all clips of a batch, which one clip always is, no mask is left (`PackedAttention`).

Legend: B clips, C = 32, T = 4k + 1 frames, F = k + 1, h x 2w latent cells of the canvas, L tokens,
D = 3584 + 1472 numbers of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Transformer3DModel,
)
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2_5_VLTextModel, SiglipVisionModel, T5EncoderModel

from dreamactor.backbones.base import Cond, Native, Trainee, sized
from dreamactor.backbones.catalogue import CATALOGUE, Options
from dreamactor.backbones.folder import (
    digest_of,
    dtype_of,
    fingerprints,
    open_pipeline,
    place,
    read_config,
    store,
)
from dreamactor.backbones.load import HUNYUAN, Variant
from dreamactor.conditioning.canvas import (
    Canvas,
    LatentGrid,
    fold_mask,
    motion_half,
    reference_half,
)
from dreamactor.conditioning.framing import to_picture
from dreamactor.errors import WeightsError

MODELS = {
    "transformer": HunyuanVideo15Transformer3DModel,
    "text_encoder": Qwen2_5_VLTextModel,
    "vae": AutoencoderKLHunyuanVideo15,
    "image_encoder": SiglipVisionModel,
    "text_encoder_2": T5EncoderModel,
}
TIMESTEPS = 1000  # the transformer reads sigma * 1000
ASPECT = 9, 16  # of the native size, which diffusers finds from the transformer's target_size


class PackedAttention(HunyuanVideoAttnProcessor2_0):
    """Joint attention of video and text without a mask, or with one of keys only.

    It is the first HunyuanVideo's, which computes the same and takes its mask as it comes. The
    1.5's own builds an N x N mask in every block: 4.36 s instead of 1.69 s a pass at 480 x 832
    x 81 on an H100. Tokens that are padding attend here, and nothing attends to them.

    `padded` holds for one pass: where layers are recomputed for gradients, that pass's backward
    has to come before the next pass.
    """

    padded = True
    """Whether some tokens are padding; set before each pass of the transformer."""

    def __call__(
        self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor,
        attention_mask: Tensor, image_rotary_emb: Any = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As diffusers calls it; the mask is (B, L), True where a token is one."""
        keys = None
        if self.padded:
            video = hidden_states.shape[1]
            keys = F.pad(attention_mask.bool(), (video, 0), value=True)[:, None, None]
        out: tuple[Tensor, Tensor] = super().__call__(
            attn, hidden_states, encoder_hidden_states, keys, image_rotary_emb
        )
        return out


def drop_padding_mask(transformer: HunyuanVideo15Transformer3DModel) -> None:
    """Let a transformer attend without a mask wherever its text has no padding."""
    attention = PackedAttention()

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        masks = kwargs["encoder_attention_mask"], kwargs["encoder_attention_mask_2"]
        whole = all(bool(mask.all()) for mask in masks)  # of no token at all, too
        attention.padded = not (whole and bool(kwargs["image_embeds"].any()))

    for block in transformer.transformer_blocks:
        block.attn.set_processor(attention)
    transformer.register_forward_pre_hook(look, with_kwargs=True)


def pack_text(states: Tensor, mask: Tensor, glyphs: Tensor, glyph_mask: Tensor) -> list[Tensor]:
    """The tokens of both text encoders that are no padding, in one tensor for each prompt.

    Args:
        states: (B, L, d) of Qwen2.5-VL.
        mask: (B, L), not 0 where there is a token.
        glyphs: (B, L', e) of ByT5.
        glyph_mask: (B, L').

    Returns:
        (n, d + e) each: first those of Qwen2.5-VL, with zeros behind, then those of ByT5, with
        zeros before.
    """
    width, glyph_width = states.shape[-1], glyphs.shape[-1]
    packed = []
    for own, seen, glyph, glyph_seen in zip(states, mask, glyphs, glyph_mask, strict=True):
        said = F.pad(own[seen.bool()], (0, glyph_width))
        drawn = F.pad(glyph[glyph_seen.bool()], (width, 0))
        packed.append(torch.cat([said, drawn]))
    return packed


def unpack_text(text: Tensor, width: int, silence: Tensor) -> dict[str, Tensor]:
    """Undo `pack_text`, as the transformer's keywords.

    Args:
        text: (B, L, D), rows of zeros behind where others are longer; all zero is no text.
        width: Numbers of a token of Qwen2.5-VL.
        silence: (n, D) what stands for no text.
    """
    own = [row[row.any(dim=-1)] for row in text]
    own = [row if len(row) else silence.to(text) for row in own]
    words = [row[row[:, :width].any(dim=-1), :width] for row in own]
    glyphs = [row[row[:, width:].any(dim=-1), width:] for row in own]
    return {
        "encoder_hidden_states": pad_sequence(words, batch_first=True),
        "encoder_attention_mask": _mask(words),
        "encoder_hidden_states_2": pad_sequence(glyphs, batch_first=True),
        "encoder_attention_mask_2": _mask(glyphs),
    }


def _mask(rows: list[Tensor]) -> Tensor:
    """(B, L) bool: which places of padded rows hold one."""
    counts = torch.tensor([len(row) for row in rows])
    return (torch.arange(int(counts.max())) < counts[:, None]).to(rows[0].device)


def velocity_of(
    transformer: nn.Module, x: Tensor, sigma: Tensor, cond: Cond, silence: Tensor, width: int
) -> Tensor:
    """Noise - latents, which is what the transformer predicts.

    Args:
        transformer: Of HunyuanVideo-1.5, or a wrapper around it.
        x: (B, C, F, h, 2w); its number format is the network's, or autocast's to change.
        sigma: (B,).
        cond: The canvas, with `image`.
        silence: As in `unpack_text`.
        width: Likewise.
    """
    assert cond.image is not None, "HunyuanVideo-1.5 reads image states too"
    mask = cond.mask.amin(dim=1, keepdim=True)  # (B, 1, F, h, 2w)
    out: Tensor = transformer(
        hidden_states=torch.cat([x, cond.latents.to(x), mask.to(x)], dim=1),
        timestep=(sigma * TIMESTEPS).to(x),
        image_embeds=cond.image.to(x),
        return_dict=False,
        **unpack_text(cond.text.to(x), width, silence),
    )[0]
    return out


def predict(
    transformer: nn.Module, x: Tensor, sigma: Tensor, cond: Cond, silence: Tensor, width: int
) -> Tensor:
    """Latents, as a trainer asks for them; arguments as of `velocity_of`."""
    velocity = velocity_of(transformer, x, sigma, cond, silence, width)
    return x - sigma.view(-1, 1, 1, 1, 1).to(x) * velocity


class Hunyuan:
    """HunyuanVideo-1.5 image-to-video.

    Args:
        pipe: diffusers' own, all of whose models and encoders are used; placed later.
        name: In the catalogue.
        weights: File name -> sha256, for the record.
    """

    def __init__(
        self,
        pipe: HunyuanVideo15ImageToVideoPipeline,
        name: str = HUNYUAN[0],
        weights: dict[str, str] | None = None,
    ) -> None:
        self.pipe, self.name, self.weights = pipe, name, weights or {}
        self.variant: Variant = "rgb"
        self.lead = 0
        self.adapter: dict[str, Any] | None = None
        self.compiled = False
        self.vae = pipe.vae.eval().requires_grad_(False)
        self.dtype: torch.dtype = pipe.text_encoder.dtype
        self.transformer = pipe.transformer
        if self.transformer is not None:  # it is not read where examples are made
            self.transformer.eval().requires_grad_(False)
            drop_padding_mask(self.transformer)
        self.vae.enable_tiling()  # as diffusers' example does; only beyond 256 pixels
        self.vae.enable_slicing()  # its attention takes one clip at a time: diffusers 0.42.1
        self.grid = grid_of(pipe)
        self.native = native_of(name, pipe)
        self._silence: Tensor | None = None

    @property
    def silence(self) -> Tensor:
        """(n, D) tokens of the empty prompt."""
        if self._silence is None:
            self._silence = self._say([""])[0]
        return self._silence

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Token states (B, L, D) of both text encoders; all zero for an empty prompt."""
        silence = self.silence  # now, while the text encoder is at hand
        said = iter(self._say([prompt for prompt in prompts if prompt.strip()]))
        nothing = torch.zeros_like(silence[:1])
        rows = [next(said) if prompt.strip() else nothing for prompt in prompts]
        return pad_sequence(rows, batch_first=True)

    def _say(self, prompts: list[str]) -> list[Tensor]:
        if not prompts:
            return []
        said = self.pipe.encode_prompt(prompts, dtype=self.dtype, batch_size=len(prompts))
        return pack_text(*said)

    def encode(self, canvas: Canvas, text: Tensor) -> Cond:
        """Encode each half by itself; only the shown beginning of the reference half is encoded."""
        reference, motion = reference_half(canvas.pixels), motion_half(canvas.pixels)
        latents = torch.cat([self.shown(reference, canvas.shown), self.shown(motion)], dim=-1)
        mask = fold_mask(canvas.mask, self.grid)
        return Cond(latents, mask, text, self.see(reference[:, :, 0]))

    def shown(self, clip: Tensor, count: int | None = None) -> Tensor:
        """Latents (B, C, F, h, w) of a clip (B, 3, T, H, W) of which `count` frames are shown."""
        moments = self.vae.encode(clip[:, :, :count].to(self.vae.dtype)).latent_dist
        found = (moments.mode() * self.vae.config.scaling_factor).to(self.dtype)
        hidden = self.grid.frames(clip.shape[2]) - found.shape[2]
        return F.pad(found, (0, 0, 0, 0, 0, hidden))

    def see(self, pictures: Tensor) -> Tensor:
        """States (B, N, E) of the image encoder for pictures (B, 3, H, W)."""
        images = [Image.fromarray(to_picture(picture)) for picture in pictures]
        device = self.pipe._execution_device
        states: Tensor = self.pipe.encode_image(images, 1, device, self.dtype)
        return states

    def place(self, reference: Tensor, driving: Tensor) -> None:
        """Drivers stay as they are."""

    def velocity(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """One forward pass; (B, C, F, h, 2w)."""
        width = self.transformer.config.text_embed_dim
        level = sigma.expand(len(x)).to(x.device)
        return velocity_of(self.transformer, x, level, cond, self.silence, width)

    def decode(self, latents: Tensor) -> Tensor:
        """Frames (B, 3, T, H, W) in [-1, 1]."""
        scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        frames: Tensor = self.vae.decode(scaled, return_dict=False)[0]
        return frames.float().clamp(-1, 1)


def grid_of(pipe: HunyuanVideo15ImageToVideoPipeline) -> LatentGrid:
    """Strides and channels of the autoencoder."""
    return LatentGrid(
        pipe.vae_scale_factor_temporal, pipe.vae_scale_factor_spatial, pipe.num_channels_latents
    )


def native_of(name: str, pipe: HunyuanVideo15ImageToVideoPipeline) -> Native:
    """Sizes and defaults, as the folder states them; the catalogue has what it does not."""
    height, width = pipe.video_processor.calculate_default_height_width(*ASPECT, pipe.target_size)
    stated = {
        "height": height,
        "width": width,
        "shift": float(pipe.scheduler.config.shift),
        "guidance": float(pipe.guider.guidance_scale),
    }
    return Native(**CATALOGUE[name].native | stated)


def load_hunyuan(
    name: str,
    source: Path | None,
    device: str = "cpu",
    adapter: Path | None = None,
    options: Options | None = None,
) -> Hunyuan:
    """HunyuanVideo-1.5 with its weights, perhaps with an adapter merged in.

    Args:
        name: In the catalogue.
        source: As in `find_folder`.
        device: Where it runs.
        adapter: As in `load_backbone`.
        options: Precision, offload, and other sizes than its own.

    Raises:
        ConfigError: An option that cannot be.
        WeightsError: Files are missing, damaged, or of another model.
    """
    options = options or Options()
    dtype = dtype_of(options.dtype, device)
    folder, pipe = _open(name, source, dtype)
    backbone = Hunyuan(pipe, name, fingerprints(folder, CATALOGUE[name].parts))
    backbone.native = sized(backbone.native, options)
    if adapter is not None:
        from dreamactor.backbones.lora import adapt

        adapt(backbone, adapter)
    store([backbone.transformer], options.storage, dtype)
    place(pipe, device, options.offload)
    return backbone


def load_encoder(name: str, source: Path | None, device: str, options: Options) -> Hunyuan:
    """The model without its transformer; arguments and faults as of `load_hunyuan`."""
    folder, pipe = _open(name, source, dtype_of(options.dtype, device), ("transformer",))
    parts = [part for part in CATALOGUE[name].parts if part != "transformer"]
    encoder = Hunyuan(pipe, name, fingerprints(folder, parts))
    encoder.native = sized(encoder.native, options)
    place(pipe, device, options.offload)
    return encoder


def load_trainee(name: str, source: Path) -> Trainee:
    """The transformer, to be trained; the text encoder says what stands for no text, and goes.

    Frozen layers are bfloat16 where there is a GPU; adapters are float32.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder, pipe = _open(name, source, dtype_of("auto", device))
    backbone, digests = Hunyuan(pipe, name), fingerprints(folder, ["transformer", "vae"])
    with torch.no_grad():
        silence = backbone.silence
    weights, vae = digest_of(digests), digest_of(digests, "vae")
    return trainee_of(name, backbone.transformer, silence, backbone.grid, weights, vae)


def trainee_of(
    name: str,
    transformer: HunyuanVideo15Transformer3DModel,
    silence: Tensor,
    grid: LatentGrid,
    weights: str,
    vae: str = "",
) -> Trainee:
    """A transformer as a trainer asks it.

    Args:
        name: In the catalogue.
        transformer: After `drop_padding_mask`.
        silence: As in `unpack_text`.
        grid: Of the autoencoder.
        weights: As in `Trainee`.
        vae: Likewise.
    """
    said = partial(predict, silence=silence, width=transformer.config.text_embed_dim)
    header = {"model": name, "config": dict(transformer.config)}
    return Trainee(name, transformer, said, grid, weights, header, vae=vae)


def _open(
    name: str, source: Path | None, dtype: torch.dtype, without: tuple[str, ...] = ()
) -> tuple[Path, HunyuanVideo15ImageToVideoPipeline]:
    """A folder that is whole, and its pipeline, which is of this model."""
    entry = CATALOGUE[name]
    folder, pipe = open_pipeline(
        entry, source, HunyuanVideo15ImageToVideoPipeline, MODELS, dtype, without
    )
    config, channels = read_config(folder, "transformer"), pipe.vae.config.latent_channels
    # without a transformer the pipeline has a default
    pipe.target_size = config.get("target_size", pipe.target_size)
    if config.in_channels != 2 * channels + 1:
        raise WeightsError(
            f"{folder}: a transformer of {config.in_channels} channels, want {2 * channels + 1}: "
            "noise, canvas and mask"
        )
    if config.get("use_meanflow"):
        raise WeightsError(
            f"{folder}: a step-distilled transformer, which wants the next timestep too; want "
            f"{entry.hub}"
        )
    return folder, pipe
