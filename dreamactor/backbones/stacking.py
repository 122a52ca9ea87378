"""Low-rank layers on large backbones: from files of any origin, several at once, and swapped.

Key layouts that are read; `save_layers` writes the first:

    diffusers   transformer.blocks.0.ffn.net.2.lora_A.weight, and transformer_2. of a second expert
    peft        blocks.0... or base_model.model.blocks.0...; alpha in adapter_config.json
    Wan's own   diffusion_model.blocks.0.self_attn.q.lora_down.weight, with .alpha and .diff_b:
                what the distillations to few steps come as; diffusers converts them
    musubi      lora_unet_blocks_0_self_attn_q.lora_down.weight; likewise

Layers stay beside the weights and are not merged, so one adapter can take the place of another
while the weights stay what they were, bit for bit.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import ModelMixin, WanImageToVideoPipeline
from diffusers.loaders import WanLoraLoaderMixin
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dreamactor.backbones.base import Native
from dreamactor.backbones.catalogue import CATALOGUE, Mode
from dreamactor.backbones.folder import settle
from dreamactor.backbones.headers import FIRST, SECOND, adapter_files, read_header
from dreamactor.backbones.incontext import check_mode
from dreamactor.backbones.load import Variant
from dreamactor.backbones.lora import (
    NAME,
    AdapterInfo,
    adapter_state,
    read_info,
    save_adapter,
)
from dreamactor.backbones.weights import load_weights
from dreamactor.conditioning.canvas import VERSION
from dreamactor.errors import ConfigError, WeightsError
from dreamactor.provenance import sha256

Layers = dict[str, dict[str, Tensor]]
"""Expert -> names of peft -> tensors, at a scale of one."""


class Stackable(Protocol):
    """What low-rank layers need of a backbone."""

    name: str
    pipe: WanImageToVideoPipeline
    dtype: torch.dtype
    weights: dict[str, str]
    variant: Variant
    lead: int
    native: Native
    own: Native
    """Its sizes and schedule without an adapter."""
    adapter: dict[str, Any] | None
    scales: dict[str, float]
    """Name of every set of layers on it -> its scale."""

    @property
    def mode(self) -> Mode:
        """Who sees whom in its transformers."""

    @property
    def experts(self) -> dict[str, ModelMixin]:
        """Its transformers by name."""


def mode_in(path: Path) -> Mode:
    """The mode that a backbone has to be loaded in for an adapter.

    A file that does not say it is taken for full here; `swap` refuses it if it is no adapter.
    """
    try:
        return check_mode(path, read_header(adapter_files(path)[0]))
    except WeightsError:
        return "full"


def swap(backbone: Stackable, path: Path) -> None:
    """Put an adapter of the canvas onto a backbone, in the place of the one it may have.

    Args:
        backbone: Large; other layers on it stay.
        path: A file of `save_layers`, or a folder of transformer.safetensors and
            transformer_2.safetensors that were written by it.

    Raises:
        WeightsError: It is missing, damaged, or of another backbone; nothing has changed then.
    """
    files = adapter_files(path)
    infos = [_info(file, backbone) for file in files]
    _check_alike(path, infos)
    layers = read_layers(path)
    wanted = set(backbone.experts)
    if set(layers) != wanted:
        raise WeightsError(
            f"{path}: layers of {_and(layers)}, {backbone.name} has {_and(wanted)}; want all"
        )
    for expert, state in layers.items():
        _, ignored = fitting(backbone.experts[expert], state, path)
        if ignored:
            raise WeightsError(f"{path}: {expert} of {backbone.name} has no {ignored[0]}")
    for transformer in backbone.experts.values():
        if NAME in getattr(transformer, "peft_config", {}):
            transformer.delete_adapters(NAME)
    _put(backbone, NAME, layers, 1.0)
    info = infos[0]
    digest = sha256(files[0]) if len(files) == 1 else [sha256(file) for file in files]
    backbone.variant, backbone.lead = info.variant, info.lead or 0
    backbone.native = info.native(backbone.own)
    backbone.adapter = {"sha256": digest, **asdict(info)}


def stack(backbone: Stackable, spec: str) -> list[str]:
    """Put more layers onto a backbone, such as a distillation to few steps.

    Args:
        backbone: Large.
        spec: As in `catalogue.Options.lora`. One file without layers of a second expert goes onto
            both of them, as Wan 2.1's on Wan 2.2.

    Returns:
        Layers of the file that the backbone does not have, and which are left out: those of the
        image encoder in files for both Wan 2.1 and Wan 2.2, say.

    Raises:
        ConfigError: Not such a spec.
        WeightsError: A file is missing or damaged, or none of it fits.
    """
    paths, scale = _parse(spec)
    experts = list(backbone.experts)
    if len(paths) > len(experts):
        raise ConfigError(f"lora={spec}: two files, {backbone.name} has one transformer")
    found: Layers = {}
    if len(paths) == 2:
        layers = {
            expert: _only(path, read_layers(path))
            for expert, path in zip(experts, paths, strict=True)
        }
    else:
        found = read_layers(paths[0])
        layers = {expert: found.get(expert, found.get(FIRST, {})) for expert in experts}
    left_out: list[str] = []
    if len(paths) == 1 and len(experts) == 1:
        left_out += [f"{SECOND}.{name.split('.lora_')[0]}" for name in found.get(SECOND, {})]
    for expert, path in zip(experts, paths * len(experts), strict=False):
        layers[expert], ignored = fitting(backbone.experts[expert], layers[expert], path)
        left_out += [f"{expert}.{name}" for name in ignored]
    if not any(layers.values()):
        raise WeightsError(f"{spec}: none of its layers is one of {backbone.name}")
    name = f"lora_{len(backbone.scales)}"
    _put(backbone, name, layers, scale)
    for path in paths:
        for file in adapter_files(path):
            backbone.weights[f"lora/{file.name}@{scale:g}"] = sha256(file)
    return sorted(set(left_out))


def join(high: Path, low: Path, out: Path) -> str:
    """Make one adapter of those of two experts; its sha256.

    Args:
        high: Of the transformer at and above the noise level, as `dreamactor train` writes it.
        low: Of the one below.
        out: The file to write.

    Raises:
        WeightsError: They are missing or damaged, or not of both experts of one backbone, driven
            by the same.
    """
    infos: list[AdapterInfo] = []
    state: dict[str, Tensor] = {}
    for path, expert in ((high, FIRST), (low, SECOND)):
        layers = load_weights(path)[0]
        infos.append(read_info(path))
        if CATALOGUE[infos[-1].backbone].boundary is None:
            raise WeightsError(f"{path}: {infos[-1].backbone} has one transformer; nothing to join")
        if any(not name.startswith(f"{expert}.") for name in layers):
            raise WeightsError(f"{path}: layers of another transformer, want those of {expert}")
        state |= layers
    _check_alike(out, infos)
    digests, runs = ("+".join(getattr(i, field) for i in infos) for field in ("weights", "config"))
    return save_adapter(out, state, replace(infos[0], weights=digests, config=runs))


def _check_alike(path: Path, infos: Sequence[AdapterInfo]) -> None:
    """Refuse files of two experts that are not driven alike."""
    kinds = [replace(info, weights="", config="") for info in infos]
    if any(kind != kinds[0] for kind in kinds):
        raise WeightsError(
            f"{path}: its files differ in what drives them, their rank or their place; want files "
            "that were trained alike"
        )


def save_layers(path: Path, experts: Mapping[str, ModelMixin], info: AdapterInfo) -> str:
    """Write the adapter of all experts to one file, in diffusers' key layout; its sha256."""
    state = {
        f"{expert}.{name}": value
        for expert, transformer in experts.items()
        for name, value in adapter_state(transformer).items()
    }
    return save_adapter(path, state, info)


def read_layers(path: Path) -> Layers:
    """The layers of a file or folder, in peft's names, with alpha / rank multiplied in.

    Raises:
        WeightsError: It is missing or damaged, or holds no low-rank layers.
    """
    files = adapter_files(path)
    if path.is_dir() and len(files) == 2:
        return {file.stem: _only(file, read_layers(file)) for file in files}
    state, metadata = _tensors(files[0])
    if any(key.startswith(("diffusion_model.", "lora_unet_")) for key in state):
        try:
            state = WanLoraLoaderMixin.lora_state_dict(state)
        except (KeyError, ValueError, IndexError, RuntimeError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise WeightsError(f"{path}: its layers are not those of Wan: {first}") from error
    layers: Layers = {}
    for key, value in state.items():
        key = key.removeprefix("base_model.model.").replace(".default.", ".")
        expert, dot, name = key.partition(".")
        if not dot or expert not in (FIRST, SECOND):
            expert, name = FIRST, key
        if ".lora_" not in name:
            raise WeightsError(f"{path}: {key} is no low-rank layer; want a file of nothing else")
        layers.setdefault(expert, {})[name] = value
    if not layers:
        raise WeightsError(f"{path}: holds no layers")
    for expert, state in layers.items():
        _scale(path, state, _config(path, metadata, expert))
    return layers


def fitting(
    transformer: ModelMixin, state: dict[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """The layers that a transformer has a place for, and the names of those it has none for.

    Raises:
        WeightsError: A layer has another shape than its place.
    """
    modules, kept, ignored = dict(transformer.named_modules()), {}, []
    for key, value in state.items():
        name, kind = key.split(".lora_")
        place = modules.get(name)
        place = getattr(place, "base_layer", place)
        if not isinstance(place, nn.Linear):
            ignored.append(name)
            continue
        axis, size = (1, place.in_features) if kind[0] == "A" else (0, place.out_features)
        if value.dim() <= axis or value.shape[axis] != size:
            raise WeightsError(f"{path}: {key} of shape {tuple(value.shape)} does not fit {size}")
        if not value.isfinite().all():
            raise WeightsError(f"{path}: {key} has numbers that are none; is it damaged?")
        kept[key] = value
    if any(key.endswith(".bias") for key in kept):  # peft has them on all layers or on none
        for key in [key for key in kept if key.endswith(".lora_B.weight")]:
            bias = key.removesuffix("weight") + "bias"
            kept.setdefault(bias, torch.zeros(len(kept[key]), dtype=kept[key].dtype))
    return kept, sorted(set(ignored))


def _put(backbone: Stackable, name: str, layers: Layers, scale: float) -> None:
    backbone.scales[name] = scale
    for expert, state in layers.items():
        transformer = backbone.experts[expert]
        if state:
            placed = {k: value.to(transformer.device, backbone.dtype) for k, value in state.items()}
            with warnings.catch_warnings():  # peft asks whether several are meant: they are
                warnings.filterwarnings("ignore", "Already found a `peft_config`")
                transformer.load_lora_adapter(
                    placed, prefix=None, adapter_name=name, _pipeline=backbone.pipe
                )
            for key, value in placed.items():  # peft rounds them where the layers are in float8
                place, kind = key.rsplit(".", 1)
                layer = transformer.get_parameter(f"{place}.{name}.{kind}")
                if layer.dtype != value.dtype:
                    layer.data = value
        names = [
            name for name in backbone.scales if name in getattr(transformer, "peft_config", {})
        ]
        if names:
            transformer.set_adapters(names, [backbone.scales[name] for name in names])
        transformer.requires_grad_(False)
    settle(backbone.pipe)


def _tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All of a safetensors file, and its metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "dreamactor" in metadata:
                return load_weights(path)[0], metadata
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error


def _config(path: Path, metadata: Mapping[str, str], expert: str) -> dict[str, Any]:
    """Alpha and rank as peft writes them to a file beside, or diffusers into the metadata."""
    try:
        if path.is_dir() and (path / "adapter_config.json").is_file():
            return dict(json.loads((path / "adapter_config.json").read_text()))
        if "lora_adapter_metadata" in metadata:
            stated = json.loads(metadata["lora_adapter_metadata"])
            start = f"{expert}."
            inner = {k.removeprefix(start): v for k, v in stated.items() if k.startswith(start)}
            return inner or {k: v for k, v in stated.items() if "." not in k}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: its alpha cannot be read ({error})") from error
    return {}


def _scale(path: Path, state: dict[str, Tensor], config: Mapping[str, Any]) -> None:
    """Multiply alpha / rank into the layers, in place."""
    if config.get("use_dora"):
        raise WeightsError(f"{path}: weight-decomposed layers (DoRA) are not read; want plain ones")
    if "lora_alpha" not in config:
        return
    patterns = config.get("alpha_pattern") or {}
    for key in [key for key in state if ".lora_B." in key]:
        name = key.split(".lora_B.")[0]
        rank = state[f"{name}.lora_A.weight"].shape[0]
        alpha = float(patterns.get(get_pattern_key(list(patterns), name), config["lora_alpha"]))
        state[key] = state[key] * (alpha / (rank**0.5 if config.get("use_rslora") else rank))


def _only(path: Path, layers: Layers) -> dict[str, Tensor]:
    """The layers of a file that is for one expert."""
    if len(layers) != 1:
        raise WeightsError(f"{path}: layers of {_and(layers)}; want those of one")
    return next(iter(layers.values()))


def _info(path: Path, backbone: Stackable) -> AdapterInfo:
    """What an adapter of the canvas says of itself, if it is one for this backbone.

    The digest of the weights it was trained on is kept for the record and not compared: the same
    weights come in several precisions and in any number of pieces.
    """
    with_header = _tensors(path)[1]
    if "dreamactor" not in with_header:
        raise WeightsError(
            f"{path}: no DreamActor header, so nothing says what drives it; want an adapter that "
            "this program wrote, or --lora for other layers"
        )
    info = read_info(path)
    if info.backbone != backbone.name:
        raise WeightsError(f"{path}: an adapter of {info.backbone}, here is {backbone.name}")
    if info.attention != backbone.mode:
        raise WeightsError(
            f"{path}: trained with attention {info.attention!r}, here {backbone.name} has "
            f"{backbone.mode!r}; want it loaded with this adapter"
        )
    if info.injection != "canvas":
        raise WeightsError(
            f"{path}: trained with injection {info.injection!r}; {backbone.name} has only canvas"
        )
    if info.canvas != VERSION:
        raise WeightsError(f"{path}: canvas version {info.canvas}, this program reads {VERSION}")
    return info


def _parse(spec: str) -> tuple[list[Path], float]:
    """Files and scale of a spec; an @ in a file's name counts only before a number."""
    found = re.fullmatch(r"(.+?)(?:@(-?(?:\d+\.?\d*|\.\d+)))?", spec)
    if found is None:
        raise ConfigError(f"lora={spec!r}: want FILE, FILE@SCALE or HIGH,LOW@SCALE")
    names = [found[1]] if Path(found[1]).exists() else found[1].split(",")
    if len(names) > 2 or not all(names):
        raise ConfigError(f"lora={spec!r}: want FILE, FILE@SCALE or HIGH,LOW@SCALE")
    return [Path(name) for name in names], float(found[2] or 1.0)


def _and(names: object) -> str:
    assert isinstance(names, dict | set)
    return " and ".join(sorted(names))
