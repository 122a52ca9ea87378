"""Wan in small: random networks in diffusers format, with a tokenizer of letters."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

LETTERS = "▁abcdefghijklmnopqrstuvwxyz,.'-"
CLIP_WIDTH, TEXT_WIDTH, HEADS, HEAD = 16, 16, 2, 12
BOUNDARY = 0.9
SIZE = "32x48"
HEIGHT, WIDTH, FRAMES = 48, 32, 9


def transformer(seed: int, clip: bool, layers: int = 2) -> WanTransformer3DModel:
    torch.manual_seed(seed)
    return WanTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD,
        in_channels=36,
        out_channels=16,
        text_dim=TEXT_WIDTH,
        freq_dim=32,
        ffn_dim=32,
        num_layers=layers,
        image_dim=CLIP_WIDTH if clip else None,
        added_kv_proj_dim=HEADS * HEAD if clip else None,
    ).eval()


def pipeline(clip: bool = True, experts: int = 1, shift: float = 3.0) -> WanImageToVideoPipeline:
    """Networks of Wan 2.1 (clip, one expert) or Wan 2.2 (no clip, two)."""
    torch.manual_seed(0)
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(letter, -float(k + 1)) for k, letter in enumerate(LETTERS)]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0)
    text = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(vocabulary),
            d_model=TEXT_WIDTH,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
        )
    )
    vae = AutoencoderKLWan(base_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1)
    parts = {}
    if clip:
        parts["image_encoder"] = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=CLIP_WIDTH,
                intermediate_size=32,
                num_hidden_layers=3,
                num_attention_heads=2,
                image_size=32,
                patch_size=8,
            )
        )
        parts["image_processor"] = CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )
    pipe = WanImageToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=text.eval(),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        transformer=transformer(1, clip),
        transformer_2=transformer(2, clip) if experts == 2 else None,
        boundary_ratio=BOUNDARY if experts == 2 else None,
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write(folder: Path, clip: bool = True, experts: int = 1) -> Path:
    """A folder with the names of classes that stand in the published ones."""
    pipeline(clip, experts).save_pretrained(folder)
    index = folder / "model_index.json"
    parts = json.loads(index.read_text())
    parts["tokenizer"] = ["transformers", "T5TokenizerFast"]
    parts["scheduler"] = ["diffusers", "UniPCMultistepScheduler"]
    if clip:
        parts["image_processor"] = ["transformers", "CLIPImageProcessor"]
        _change(
            folder / "image_processor/preprocessor_config.json",
            image_processor_type="CLIPImageProcessor",
        )
    if experts == 1:
        for name in ("transformer_2", "boundary_ratio", "expand_timesteps"):
            del parts[name]
    index.write_text(json.dumps(parts))
    scheduler = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}
    _change(folder / "scheduler/scheduler_config.json", **scheduler, flow_shift=3.0)
    return folder


def _change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
