"""A folder of HunyuanVideo-1.5 in diffusers' format, tiny and random: every part of the real one.

All weights are drawn wide enough that each of them shows in the result; the transformer predicts
something other than nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Transformer3DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    ByT5Tokenizer,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen2Tokenizer,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)

from dreamactor.backbones.folder import quiet

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_pipeline() -> HunyuanVideo15ImageToVideoPipeline:
    """Halves of 32 x 48 pixels, 2 x 3 latent cells; the second text encoder's tokens are bytes."""
    torch.manual_seed(0)
    letters = sorted(ByteLevel.alphabet())
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters]
    tokenizer = Qwen2Tokenizer(
        vocab={word: k for k, word in enumerate(words)}, merges=[], chat_template=TEMPLATE
    )
    tokenizer.add_special_tokens({"additional_special_tokens": words[1:3]})
    text = Qwen2_5_VLTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]},
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    glyphs = T5Config(
        vocab_size=384, d_model=12, d_kv=4, d_ff=16, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=28, patch_size=14,
    )  # fmt: skip
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1,
        spatial_compression_ratio=16, temporal_compression_ratio=4,
    )  # fmt: skip
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        num_refiner_layers=1, text_embed_dim=16, text_embed_2_dim=12, image_embed_dim=16,
        rope_axes_dim=(4, 6, 6), target_size=48,
    )  # fmt: skip
    pipe = HunyuanVideo15ImageToVideoPipeline(
        text_encoder=Qwen2_5_VLTextModel(text),
        tokenizer=tokenizer,
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder_2=T5EncoderModel(glyphs),
        tokenizer_2=ByT5Tokenizer(),
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
        image_encoder=SiglipVisionModel(vision),
        feature_extractor=SiglipImageProcessor(size={"height": 28, "width": 28}),
    )
    draws = torch.Generator().manual_seed(1)
    for name in ("transformer", "text_encoder", "text_encoder_2", "image_encoder"):
        for parameter in getattr(pipe, name).parameters():
            if parameter.dim() > 1:
                wide = torch.randn(parameter.shape, generator=draws)
                parameter.data = wide / parameter[0].numel() ** 0.5
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write_folder(folder: Path) -> Path:
    """Save it there."""
    with quiet():
        tiny_pipeline().save_pretrained(folder)
    return folder
