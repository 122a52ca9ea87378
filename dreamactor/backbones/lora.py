"""Low-rank adapters on a frozen transformer: attach, save, load, merge; peft, through diffusers.

An adapter file is safetensors in the key layout of diffusers and peft, so that either loads it;
its header says which backbone it was trained on, as what, and on which canvas. The scale is one
(alpha = rank), which is what loaders assume that know no alpha. Where the driver does not come in
by the canvas, layers of `backbones.injection` stand beside the low-rank ones, under their names in
the transformer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from diffusers import ModelMixin, WanTransformer3DModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from dreamactor.backbones.catalogue import Injection, Mode
from dreamactor.backbones.folder import digest_of
from dreamactor.backbones.headers import check_base, check_model, read_header
from dreamactor.backbones.incontext import set_mode
from dreamactor.backbones.injection import BESIDE, INJECTS, injected, set_injection
from dreamactor.backbones.load import Variant, check_lead
from dreamactor.backbones.weights import load_weights, save_weights
from dreamactor.conditioning.canvas import VERSION
from dreamactor.errors import ConfigError, WeightsError
from dreamactor.provenance import sha256

if TYPE_CHECKING:
    from dreamactor.backbones.base import Native

Targets = Literal["ff", "attention"]
Sampling = tuple[int, float]
"""Steps and shift of a sampler's schedule (`diffusion.flow.schedule`)."""
NAME = "dreamactor"  # of the adapter within the transformer
MODULES: dict[Targets, str] = {
    "ff": r"(blocks\.\d+\.ffn|transformer_blocks\.\d+\.ff)\.net\.(0\.proj|2)",
    "attention": r"(blocks\.\d+\.attn1|transformer_blocks\.\d+\.attn)\.to_(q|k|v|out\.0)",
}
"""Which layers get an adapter, in Wan's and in HunyuanVideo-1.5's names: the paper's feed-forward
layers, or self-attention to compare with. Nothing of the text branch: Wan's cross-attention stays
as it is, and so do HunyuanVideo's `ff_context`, its projections of text and its token refiner."""


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter is and what it belongs to."""

    variant: Variant
    backbone: str
    """Name of the backbone, such as nano."""
    weights: str
    """sha256 of the transformer it was trained on (`folder.digest_of`)."""
    rank: int = 256
    targets: Targets = "ff"
    canvas: int = VERSION
    """Layout of the canvas (`conditioning.canvas.VERSION`)."""
    config: str = ""
    """Hash of the training settings."""
    lead: int | None = None
    """Frames of the canvas, its first one among them, that showed no skeleton in training: so many
    are empty when it animates. The pose variant has to say it; rgb has none."""
    attention: Mode = "full"
    """Who saw whom on the canvas in training, and so has to when it animates."""
    injection: Injection = "canvas"
    """How the driver came in, likewise."""
    sampling: Sampling | None = None
    """Of an adapter that was distilled, the schedule that it draws by; it needs no guidance."""

    def __post_init__(self) -> None:
        """Check every value by itself.

        Raises:
            ConfigError: One that cannot work.
        """
        if self.rank < 1:
            raise ConfigError(f"rank={self.rank}: want 1 or more; the paper has 256")
        choices = {
            "variant": Variant, "targets": Targets, "attention": Mode, "injection": Injection,
        }  # fmt: skip
        for name, words in ((name, get_args(choice)) for name, choice in choices.items()):
            if getattr(self, name) not in words:
                raise ConfigError(f"{name}={getattr(self, name)!r}: want {' or '.join(words)}")
        if self.injection not in BESIDE and self.attention != "full":
            raise ConfigError(
                f"injection={self.injection} attention={self.attention}: want attention=full"
            )
        check_lead(self.variant, self.lead)
        if self.sampling is not None and not (self.sampling[0] >= 1 and self.sampling[1] >= 1):
            raise ConfigError(f"sampling={self.sampling}: want steps and shift, 1 or more each")

    def native(self, own: Native) -> Native:
        """The sizes of a backbone with this adapter, whose schedule goes over its own."""
        if self.sampling is None:
            return own
        return replace(own, steps=self.sampling[0], shift=self.sampling[1], guidance=1.0)


class Adaptable(Protocol):
    """What an adapter needs of a backbone: that it has one transformer."""

    name: str
    native: Native
    transformer: ModelMixin
    weights: dict[str, str]
    variant: Variant
    lead: int
    adapter: dict[str, Any] | None


def layers_of(info: AdapterInfo) -> LoraConfig:
    """An adapter's layers, as peft takes them."""
    return LoraConfig(r=info.rank, lora_alpha=info.rank, target_modules=MODULES[info.targets])


def attach(transformer: ModelMixin, info: AdapterInfo) -> list[Tensor]:
    """Freeze a transformer and give it a fresh adapter, which changes nothing yet.

    Returns:
        The adapter's parameters, which are all that may be trained; float32, since steps of
        training are smaller than bfloat16 can tell from nothing. Those of `backbones.injection`
        are among them.
    """
    set_injection(transformer, info.injection)
    transformer.requires_grad_(False)
    transformer.add_adapter(layers_of(info), NAME)
    for parameter in injected(transformer).values():  # which peft froze
        parameter.requires_grad_(True)
    found = [p for p in transformer.parameters() if p.requires_grad]
    for parameter in found:
        parameter.data = parameter.data.float()
    return found


def adapter_state(
    transformer: ModelMixin, weights: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The adapter's weights by the names they have in its file.

    Args:
        transformer: It has the adapter.
        weights: Other values of its parameters, such as averages, by the names they have there.
    """
    state: dict[str, Tensor] = get_peft_model_state_dict(transformer, weights, adapter_name=NAME)
    own: Mapping[str, Tensor] = injected(transformer)
    return state | {name: (weights or own)[name] for name in own}


def save_adapter(path: Path, state: dict[str, Tensor], info: AdapterInfo, part: str = "") -> str:
    """Write an adapter in half precision, whole or not at all; returns its sha256.

    Args:
        path: Where to.
        state: As from `adapter_state`.
        info: What it is.
        part: As in `base.Trainee`; where names begin so, diffusers' pipelines load them too.
    """
    named = {f"{part}.{name}" if part else name: value for name, value in state.items()}
    return save_weights(path, named, {"model": "adapter", **asdict(info)})


def read_info(path: Path) -> AdapterInfo:
    """What an adapter file says of itself.

    Raises:
        WeightsError: It is missing, damaged, or no adapter.
    """
    return _info(path, read_header(path))


def load_adapter(
    transformer: ModelMixin, path: Path, backbone: str, weights: str, part: str = ""
) -> AdapterInfo:
    """Attach the adapter of a file.

    Args:
        transformer: The backbone's.
        path: As from `save_adapter`.
        backbone: Name of the backbone at hand.
        weights: sha256 of its transformer file.
        part: As of `save_adapter`.

    Raises:
        WeightsError: The file is missing or damaged, or belongs to another backbone or canvas.
    """
    state, header = load_weights(path)
    state = {name.removeprefix(f"{part}."): value for name, value in state.items()}
    info = _info(path, header)
    check_base(path, (info.backbone, info.weights), (backbone, weights))
    if info.canvas != VERSION:
        raise WeightsError(f"{path}: canvas version {info.canvas}, this program reads {VERSION}")
    if info.injection != "canvas" and backbone not in INJECTS:
        raise WeightsError(
            f"{path}: trained with injection {info.injection!r}; {backbone} has only canvas"
        )
    for name, value in state.items():
        if not value.isfinite().all():
            raise WeightsError(f"{path}: {name} has numbers that are none; is it damaged?")
    attach(transformer, info)
    device = next(transformer.parameters()).device
    placed = {name: value.to(device) for name, value in state.items()}
    new = {name: placed[name] for name in injected(transformer).keys() & placed.keys()}
    try:
        low_rank = {name: value for name, value in placed.items() if name not in new}
        set_peft_model_state_dict(transformer, low_rank, adapter_name=NAME)
        transformer.load_state_dict(new, strict=False)
    except (RuntimeError, KeyError, ValueError) as error:
        last = str(error).splitlines()[-1].strip()
        raise WeightsError(f"{path}: its layers do not fit {backbone}: {last}") from error
    if set(placed) != set(adapter_state(transformer)):
        raise WeightsError(f"{path}: its layers are not those of {backbone}; is it damaged?")
    return info


def merge(transformer: ModelMixin) -> None:
    """Add the adapter to the weights it stands beside, and take it away: faster, and for good.

    What `backbones.injection` put there stays.
    """
    transformer.fuse_lora(adapter_names=[NAME])
    transformer.unload_lora()
    transformer.requires_grad_(False)


def adapt(backbone: Adaptable, path: Path) -> None:
    """Merge the adapter of a file into a backbone, and note there which one it is.

    Raises:
        WeightsError: As `load_adapter`; or it was trained in a mode that the backbone cannot have.
    """
    weights, mode = digest_of(backbone.weights), read_info(path).attention
    wan = isinstance(backbone.transformer, WanTransformer3DModel)
    if mode != "full" and not wan:
        raise WeightsError(
            f"{path}: trained with attention {mode!r}; {backbone.name} has only full"
        )
    if wan:
        set_mode(backbone.transformer, mode)
    info = load_adapter(backbone.transformer, path, backbone.name, weights)
    merge(backbone.transformer)
    backbone.variant, backbone.lead = info.variant, info.lead or 0
    backbone.native = info.native(backbone.native)
    backbone.adapter = {"sha256": sha256(path), **asdict(info)}


def _info(path: Path, header: dict[str, Any]) -> AdapterInfo:
    check_model(path, header, "adapter")
    stated = {k: v for k, v in header.items() if k != "model"}
    try:
        if stated.get("sampling") is not None:
            steps, shift = stated["sampling"]
            stated["sampling"] = (int(steps), float(shift))
        return AdapterInfo(**stated)
    except (TypeError, ValueError, ConfigError) as error:
        raise WeightsError(f"{path}: not an adapter header this program reads ({error})") from error
