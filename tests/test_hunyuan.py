"""HunyuanVideo-1.5 behind the protocol: it computes what diffusers' own pipeline computes."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import HunyuanVideo15ImageToVideoPipeline, HunyuanVideo15Transformer3DModel
from filming import film
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_hunyuan import write_folder
from torch.testing import assert_close

from dreamactor import cli
from dreamactor.backbones.base import Cond
from dreamactor.backbones.catalogue import CATALOGUE, Options
from dreamactor.backbones.folder import digest_of, place, quiet
from dreamactor.backbones.hunyuan import Hunyuan, load_hunyuan, pack_text
from dreamactor.backbones.load import HUNYUAN, check_backbone, load_backbone, load_trainee
from dreamactor.backbones.lora import (
    MODULES,
    AdapterInfo,
    Targets,
    adapter_state,
    attach,
    save_adapter,
)
from dreamactor.conditioning.canvas import Canvas, build_canvas, fold_mask
from dreamactor.conditioning.framing import to_half
from dreamactor.diffusion.flow import schedule
from dreamactor.diffusion.sampler import guided, sample_euler
from dreamactor.errors import ConfigError, WeightsError
from dreamactor.image import write_png
from dreamactor.training.examples import Draws, lay_out
from dreamactor.video import probe

NAME = HUNYUAN[0]
ENTRY = CATALOGUE[NAME]
SIGN = 'a fox holds a sign that says "hello" and “you”'
FRAMES = 9
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("hunyuan"))


@pytest.fixture(scope="module")
def backbone(folder) -> Hunyuan:
    found = load_backbone(NAME, folder)
    assert isinstance(found, Hunyuan)
    return found


@pytest.fixture(scope="module")
def foreign(folder) -> HunyuanVideo15ImageToVideoPipeline:
    """diffusers' own, with its own attention and padding."""
    with quiet():
        pipe = HunyuanVideo15ImageToVideoPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((48, 32), Image.Resampling.BICUBIC))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def canvas_of(backbone: Hunyuan, seeds: list[int]) -> Canvas:
    reference = torch.stack([to_half(picture(seed)) for seed in seeds])
    driving = torch.stack([normal(3, FRAMES, 32, 48, seed=seed) / 3 for seed in seeds])
    return build_canvas(reference, driving.clamp(-1, 1), backbone.grid)


def first_frame(backbone: Hunyuan, text: torch.Tensor) -> Cond:
    """Half a canvas: the reference, and nothing beside it."""
    clip = torch.zeros(1, 3, FRAMES, 32, 48)
    clip[:, :, 0] = to_half(picture())
    mask = torch.zeros(1, 1, FRAMES, 2, 3)
    mask[:, :, 0] = 1
    latents = backbone.shown(clip, 1)
    return Cond(latents, fold_mask(mask, backbone.grid), text, backbone.see(clip[:, :, 0]))


# ---- the same as diffusers -----------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["a fox waves", SIGN])
@torch.inference_mode()
def test_a_first_frame_gives_what_diffusers_pipeline_gives(backbone, foreign, prompt):
    """same: latents and frames of image-to-video with guidance, to float32 rounding."""
    noise = normal(1, 4, 3, 2, 3)
    wanted = {"num_frames": FRAMES, "num_inference_steps": 4, "latents": noise}
    image = Image.fromarray(picture())
    expected = foreign(image, prompt, output_type="latent", **wanted).frames
    shown = foreign(image, prompt, output_type="pt", **wanted).frames  # (B, T, 3, H, W)

    cond = first_frame(backbone, backbone.encode_text([prompt]))
    silent = replace(cond, text=torch.zeros_like(cond.text))
    velocity = guided(
        lambda x, sigma: backbone.velocity(x, sigma, cond),
        lambda x, sigma: backbone.velocity(x, sigma, silent),
        backbone.native.guidance,
    )
    latents = sample_euler(velocity, noise, schedule(4, backbone.native.shift))
    assert expected.std() > 0.5
    assert_close(latents, expected, atol=2e-5, rtol=0)  # 3.8e-6
    frames = backbone.decode(latents)
    assert_close(frames.transpose(1, 2) / 2 + 0.5, shown, atol=2e-5, rtol=0)  # 4.6e-6
    assert frames.std() > 0.1

    plain = sample_euler(
        lambda x, sigma: backbone.velocity(x, sigma, silent), noise, schedule(4, 5.0)
    )
    assert (plain - expected).abs().max() > 0.01  # the prompt shows


def padded_pass(pipe, x, sigma, cond, prompts) -> torch.Tensor:
    """One pass as diffusers' pipeline does it: all tokens, masked in every block."""
    states, mask, glyphs, glyph_mask = pipe.encode_prompt(prompts, batch_size=len(prompts))
    assert states.shape[1] == 1000
    assert glyphs.shape[1] == 256
    return pipe.transformer(
        hidden_states=torch.cat([x, cond.latents, cond.mask[:, :1]], dim=1),
        timestep=torch.full((len(x),), sigma * 1000),
        encoder_hidden_states=states,
        encoder_attention_mask=mask,
        encoder_hidden_states_2=glyphs,
        encoder_attention_mask_2=glyph_mask,
        image_embeds=cond.image,
        return_dict=False,
    )[0]


@pytest.mark.parametrize(
    ("prompts", "padded"),
    [(["a fox"], False), ([SIGN], False), (["a fox", "an ox"], False), (["a fox", SIGN], True)],
)
@torch.inference_mode()
def test_packed_text_needs_no_mask(backbone, foreign, prompts, padded):
    """same: as with 1,256 tokens and a mask over all pairs; a mask only where lengths differ."""
    cond = backbone.encode(
        canvas_of(backbone, list(range(len(prompts)))), backbone.encode_text(prompts)
    )
    x = normal(*cond.latents.shape, seed=3)
    found = backbone.velocity(x, torch.tensor(0.7), cond)
    attention = backbone.transformer.transformer_blocks[0].attn.processor
    assert attention.padded is padded
    assert foreign.transformer.transformer_blocks[0].attn.processor is not attention
    assert_close(found, padded_pass(foreign, x, 0.7, cond, prompts), atol=5e-6, rtol=0)


@torch.inference_mode()
def test_the_canvas_is_laid_out_as_diffusers_lays_out_a_first_frame(backbone, foreign):
    """same: the reference's latents; exact: hidden frames are 0, the motion half is all shown."""
    canvas = canvas_of(backbone, [0])
    cond = backbone.encode(canvas, backbone.encode_text([""]))
    expected, flags = foreign.prepare_cond_latents_and_mask(
        torch.empty(1, 4, 3, 2, 3), Image.fromarray(picture()), 1, 32, 48, torch.float32, "cpu"
    )
    assert cond.latents.shape == (1, 4, 3, 2, 6)
    assert_close(cond.latents[..., :3], expected, atol=1e-6, rtol=1e-6)
    assert not cond.latents[:, :, 1:, :, :3].any()
    driver = foreign.vae.encode(canvas.pixels[..., 48:]).latent_dist.mode()
    assert_close(cond.latents[..., 3:], driver * foreign.vae.config.scaling_factor)
    for channel in cond.mask.unbind(1):
        assert torch.equal(channel[..., :3], flags[:, 0])
        assert channel[..., 3:].all()
    image = foreign.encode_image(Image.fromarray(picture()), 1, "cpu", torch.float32)
    assert_close(cond.image, image)


@torch.inference_mode()
def test_frames_that_exist_already_are_shown(backbone):
    """exact: their latents are those of the clip behind the reference, their mask is 1."""
    reference, made = to_half(picture())[None], normal(1, 3, 4, 32, 48).clamp(-1, 1)
    canvas = build_canvas(reference, torch.zeros(1, 3, FRAMES, 32, 48), backbone.grid, made)
    cond = backbone.encode(canvas, backbone.encode_text([""]))
    expected = backbone.shown(torch.cat([reference[:, :, None], made], dim=2))
    assert torch.equal(cond.latents[:, :, :2, :, :3], expected)
    assert not cond.latents[:, :, 2, :, :3].any()
    assert cond.mask[0, :, :, 0, 0].tolist() == [[1, 1, 0]] * 4


# ---- unchanged by batch and number format --------------------------------------------------------


@torch.inference_mode()
def test_a_batch_of_two_is_two_batches_of_one(backbone):
    """unchanged by: batch, where one prompt is longer than the other, or none."""
    for prompts in (["a fox", SIGN], ["", "a dog sits"]):
        canvas, x = canvas_of(backbone, [0, 1]), normal(2, 4, 3, 2, 6)
        cond = backbone.encode(canvas, backbone.encode_text(prompts))
        both = backbone.velocity(x, torch.tensor([0.9, 0.4]), cond)
        frames = backbone.decode(both[..., :3])
        for k, sigma in enumerate((0.9, 0.4)):
            one = Canvas(canvas.pixels[k : k + 1], canvas.mask[k : k + 1])
            own = backbone.encode(one, backbone.encode_text([prompts[k]]))
            assert_close(own.latents[0], cond.latents[k], atol=1e-5, rtol=1e-5)
            alone = backbone.velocity(x[k : k + 1], torch.tensor(sigma), own)
            assert_close(alone[0], both[k], atol=5e-6, rtol=0)
            assert_close(backbone.decode(alone[..., :3])[0], frames[k], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_half_precision_stays_near(backbone, folder):
    """golden: relative error of bfloat16 against float32, of one pass and of all encoders.

    Beside each bound stands the most that was found over three canvases.
    """
    half = load_backbone(NAME, folder, options=Options("bfloat16"))
    assert half.transformer.dtype == half.vae.dtype == torch.bfloat16
    canvas, x = canvas_of(backbone, [0]), normal(1, 4, 3, 2, 6)
    cond = backbone.encode(canvas, backbone.encode_text([SIGN]))
    rough = half.encode(canvas, half.encode_text([SIGN]))

    def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
        return float((found.float() - expected).norm() / expected.norm())

    velocity = half.velocity(x.bfloat16(), torch.tensor(0.7), rough)
    assert velocity.dtype == torch.bfloat16
    assert apart(velocity, backbone.velocity(x, torch.tensor(0.7), cond)) < 0.03  # .0153
    assert apart(rough.latents, cond.latents) < 0.04  # .0245
    assert apart(rough.text, cond.text) < 0.02  # .0095
    assert apart(rough.image, cond.image) < 0.02  # .0089
    assert apart(half.decode(cond.latents), backbone.decode(cond.latents)) < 0.03  # .018


def test_text_of_both_encoders_is_kept_apart():
    """exact: rows of one encoder have zeros where the other's numbers are; padding goes."""
    states, glyphs = torch.ones(1, 3, 2), 2 * torch.ones(1, 2, 1)
    packed = pack_text(states, torch.tensor([[1, 1, 0]]), glyphs, torch.tensor([[0.0, 1.0]]))
    assert packed[0].tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 2]]


# ---- end to end ----------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [(), ("--adapter",)])
def test_animate_by_name(folder, tmp_path, monkeypatch, capsys, extra):
    """exact: frames, rate and size of the output, and what its record says."""
    write_png(tmp_path / "fox.png", np.kron(picture(), np.ones((2, 2, 1), np.uint8)))
    film(tmp_path / "dance.mp4", 10, fps=24)
    weights = {"transformer/x": digest_of(load_hunyuan(NAME, folder).weights)}
    if extra:
        transformer = load_hunyuan(NAME, folder).transformer
        info = AdapterInfo("rgb", NAME, digest_of(weights), rank=2)
        for parameter in attach(transformer, info):
            torch.nn.init.normal_(parameter, std=0.2)
        save_adapter(tmp_path / "adapter.safetensors", adapter_state(transformer), info)
        extra = ("--adapter", tmp_path / "adapter.safetensors")
    words = ["--reference", tmp_path / "fox.png", "--driving", tmp_path / "dance.mp4"]
    words += ["--out", tmp_path / "out.mp4", "--backbone", NAME, "--weights", folder]
    words += ["--steps", 2, "--prompt", "a fox dances", "--threads", 1, *extra]
    monkeypatch.setattr(sys, "argv", [str(word) for word in ("dreamactor", "animate", *words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    note = "" if extra else f"note: {NAME} without an --adapter does not know the canvas; want "
    assert capsys.readouterr().err == (note and f"{note}one of its own\n")
    clip, record = probe(tmp_path / "out.mp4"), json.loads((tmp_path / "out.json").read_text())
    assert (clip.frames, clip.size) == (10, (32, 48))
    assert record["backbone"]["name"] == NAME
    assert {name.partition("/")[0] for name in record["backbone"]["weights"]} == set(ENTRY.parts)
    assert (record["backbone"]["adapter"] is None) == (not extra)
    assert record["settings"]["guidance"] == 6.0


# ---- adapters and training -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        ("ff", {"ff.net.0.proj", "ff.net.2"}),
        ("attention", {"attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"}),
    ],
)
def test_a_fresh_adapter_changes_nothing(folder, targets: Targets, layers: set[str]):
    """exact: it stands on the video branch alone, and only it learns."""
    backbone = load_hunyuan(NAME, folder)
    with torch.no_grad():
        cond = backbone.encode(canvas_of(backbone, [0]), backbone.encode_text(["a fox"]))
        x = normal(1, 4, 3, 2, 6)
        expected = backbone.velocity(x, torch.tensor(0.5), cond)
        info = AdapterInfo("rgb", NAME, "f" * 64, rank=4, targets=targets)
        trained = attach(backbone.transformer, info)
        assert torch.equal(backbone.velocity(x, torch.tensor(0.5), cond), expected)
    names = {name.partition(".lora_")[0] for name in adapter_state(backbone.transformer)}
    assert names == {f"transformer_blocks.{k}.{layer}" for k in range(2) for layer in layers}
    assert len(trained) == 2 * len(names)


def test_an_adapter_stands_on_the_video_branch_of_the_published_shape():
    """exact: which layers the paper's rule takes."""
    with torch.device("meta"):
        transformer = HunyuanVideo15Transformer3DModel()
    taken = [name for name, _ in transformer.named_modules() if re.fullmatch(MODULES["ff"], name)]
    layers = ("ff.net.0.proj", "ff.net.2")
    assert taken == [f"transformer_blocks.{k}.{layer}" for k in range(54) for layer in layers]


def test_a_trainer_gets_the_transformer(folder, backbone):
    """same: latents that its velocity implies; no text is the empty prompt; only adapters learn."""
    trainee = load_trainee(NAME, folder)
    assert trainee.weights == digest_of(backbone.weights)
    assert trainee.grid == backbone.grid
    with torch.no_grad():
        cond = backbone.encode(canvas_of(backbone, [0, 1]), backbone.encode_text(["a fox", SIGN]))
        cond = replace(cond, text=cond.text * torch.tensor([1.0, 0.0]).view(2, 1, 1))
        x, sigma = normal(2, 4, 3, 2, 6), torch.tensor([0.9, 0.4])
        velocity = backbone.velocity(x, sigma, cond)
    params = attach(trainee.transformer, AdapterInfo("rgb", NAME, trainee.weights, rank=4))
    trainee.transformer.enable_gradient_checkpointing()
    trainee.transformer.train()
    found = trainee.predict(trainee.transformer, x, sigma, cond)
    assert_close(found, x - sigma.view(2, 1, 1, 1, 1) * velocity, atol=1e-5, rtol=1e-5)
    found.square().mean().backward()
    assert [p for p in trainee.transformer.parameters() if p.grad is not None] == params


def test_training_lays_the_canvas_out_as_inference_does(backbone):
    """same: condition of an example with image states, so that a trainer can ask for latents."""
    canvas = canvas_of(backbone, [0])
    with torch.no_grad():
        cond = backbone.encode(canvas, backbone.encode_text(["a fox"]))
    batch = {"target": normal(1, 4, 3, 2, 3), "motion": cond.latents[..., 3:], "text": cond.text}
    batch["target"][:, :, 0] = cond.latents[:, :, 0, :, :3]
    no, level = torch.zeros(1, dtype=torch.bool), torch.tensor([0.5])
    drawn = Draws(normal(1, 4, 3, 2, 6), level, no, torch.zeros(1), normal(1, 4, 2, 3), no)
    made = lay_out({**batch, "image": cond.image}, drawn, "clean").cond
    for name in ("latents", "mask", "text", "image"):
        assert torch.equal(getattr(made, name), getattr(cond, name)), name


# ---- refusals ------------------------------------------------------------------------------------


def test_a_folder_that_is_not_whole_is_refused(folder, tmp_path):
    """refuses: names what is missing, how large it is, and how to get it."""
    with pytest.raises(WeightsError, match=f"model_index.json, .*hf download {ENTRY.hub}"):
        load_backbone(NAME, tmp_path)
    copy = tmp_path / "copy"
    copy.mkdir()
    for part in folder.iterdir():
        (copy / part.name).symlink_to(part)
    for part in ("text_encoder", "tokenizer_2", "vae"):
        (copy / part).unlink()
    with pytest.raises(
        WeightsError,
        match=r"missing: text_encoder \(14\.1 GB in bfloat16, 28\.3 in float32\), vae \(2\.5 GB in "
        r"bfloat16, 5\.0 in float32\), tokenizer_2 \(small\); fetch them with `hf",
    ):
        load_backbone(NAME, copy)
    (copy / "vae").mkdir()
    (copy / "vae" / "config.json").write_text("{}")
    shards = {"metadata": {"total_size": 3e9}, "weight_map": {"a": "1.safetensors", "b": "2.x"}}
    index = copy / "vae" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps(shards))
    (copy / "vae" / "2.x").touch()
    with pytest.raises(WeightsError, match=r"missing: .*vae/1\.safetensors \(about 1\.5 GB\)"):
        load_backbone(NAME, copy)
    index.write_text("{}")
    with pytest.raises(WeightsError, match=r"not an index of weights.*is it damaged"):
        load_backbone(NAME, copy)


def test_a_folder_of_another_model_is_refused(folder, tmp_path):
    """refuses: another pipeline, a text-to-video or a step-distilled transformer."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for part in folder.iterdir():
        (copy / part.name).symlink_to(part)
    index, text = copy / "model_index.json", (folder / "model_index.json").read_text()
    index.unlink()
    index.write_text(text.replace("HunyuanVideo15ImageToVideo", "WanImageToVideo"))
    with pytest.raises(
        WeightsError, match="a folder of WanImageToVideoPipeline; that is not hunyuan"
    ):
        load_backbone(NAME, copy)
    index.write_text("[1")
    with pytest.raises(WeightsError, match="not a table of JSON"):
        load_backbone(NAME, copy)
    index.write_text(text)
    (copy / "scheduler").unlink()
    (copy / "scheduler").mkdir()
    (copy / "scheduler" / "scheduler_config.json").write_text("not JSON")
    with pytest.raises(WeightsError, match="its pipeline cannot be read"):
        load_backbone(NAME, copy)


@pytest.mark.parametrize("part", list(ENTRY.parts))
def test_damaged_weights_are_refused(folder, tmp_path, part):
    """refuses: a file that is cut, and one that lacks a tensor, which would be random else."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (path,) = (copy / part).glob("*.safetensors")
    tensors = load_file(path)
    gone = sorted(tensors)[3]
    save_file({k: v for k, v in tensors.items() if k != gone}, path, {"format": "pt"})
    with pytest.raises(WeightsError, match=rf"{part}: no numbers for 1 .*{gone}"):
        load_backbone(NAME, copy)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=f"its {part} cannot be read"):
        load_backbone(NAME, copy)


def test_other_sizes_than_its_own(folder):
    """exact: those that options name; refuses: layers beside the adapter, sizes between tokens."""
    backbone = load_backbone(NAME, folder, options=Options(size="64x32", frames=13))
    native = backbone.native
    assert (native.height, native.width, native.frames) == (32, 64, 13)
    for options, message in (
        (Options(lora=("x.safetensors",)), "lora=x.safetensors: only for Wan's backbones"),
        (Options(size="40x32"), "size=40x32: want multiples of 16"),
        (Options(offload="model"), "offload=model: wants --device cuda"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_backbone(NAME, folder, options=options)
    with pytest.raises(ConfigError, match=f"nearest is {NAME}"):
        check_backbone("hunyuanvideo-1.5-480p")


@torch.inference_mode()
def test_compiling_changes_nothing(backbone, folder, monkeypatch):
    """same: through graphs that are run as they are."""
    monkeypatch.setattr("dreamactor.backbones.compiled.BACKEND", "aot_eager")
    torch.compiler.reset()
    quick = load_backbone(NAME, folder, options=Options(compile=True))
    x, cond = normal(1, 4, 3, 2, 6), backbone.encode(canvas_of(backbone, [0]), torch.empty(0))
    cond = replace(cond, text=backbone.encode_text([SIGN]))
    both = [way.velocity(x, torch.tensor(0.7), cond) for way in (backbone, quick)]
    assert_close(*both, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("offload", ["model", "group"])
@torch.inference_mode()
def test_offload_changes_nothing(backbone, folder, offload):
    """unchanged by: where networks wait; here on the CPU, from the CPU."""
    pytest.importorskip("accelerate")
    waiting = load_hunyuan(NAME, folder)
    place(waiting.pipe, "cpu", offload)
    x, results = normal(1, 4, 3, 2, 6), []
    for way in (backbone, waiting):
        text = way.encode_text([SIGN])
        cond = way.encode(canvas_of(way, [0]), text)
        latents = way.velocity(x, torch.tensor(0.7), cond)
        results.append((text, cond.image, latents, way.decode(latents[..., :3])))
    for plain, offloaded in zip(*results, strict=True):
        assert_close(plain, offloaded, atol=1e-5, rtol=1e-5)
