"""Perceptual distance between pictures: ST-LPIPS, the shift-tolerant kin of LPIPS v0.1.

LPIPS compares two pictures by the responses of a classification network. The weights that a
package index carries are those of its shift-tolerant version (ST-LPIPS): same recipe and same
training data, but the trunk blurs before it drops pixels, so moving a picture by one pixel costs
little. Its values are **not** those of LPIPS v0.1 and must not be compared with published ones.

Shapes: N pictures, H x W pixels; stage s has C_s channels on an h_s x w_s grid.

Source:
    R. Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual
    Metric" (distance, input scaling, heads); R. Zhang 2019, "Making Convolutional Networks
    Shift-Invariant Again" (blur-pool); Ghildyal and Liu 2022, "Shift-tolerant Perceptual
    Similarity Metric" (trunks, weights: PyPI stlpips_pytorch 0.0.2, BSD-2). The layers here are
    written from the formulas; run beside the package's own code they differ by less than 1e-6
    at five sizes of picture (tests/test_perceptual.py keeps the numbers).
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from dreamactor.errors import ShapeError, WeightsError

Net = Literal["vgg", "alex"]

PACKAGE = "stlpips_pytorch"
INSTALL_HINT = f"pip install --no-deps {PACKAGE}==0.0.2, or name a file of export_weights()"
SHA256 = {
    "alex": "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
    "vgg": "44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250",
}
"""Of the package's files: they are pickles, and only bytes that were looked at are unpickled."""
SHIFT = (-0.030, -0.088, -0.188)  # ImageNet mean and deviation for pictures in [-1, 1] (LPIPS v0.1)
SCALE = (0.458, 0.448, 0.450)
BLUR_PAD = 2  # ST-LPIPS pads 2 where Zhang 2019 pads 1, so no pixel is lost at the border
EPS = 1e-8  # under the root: a cell without any response has a finite gradient


@dataclass(frozen=True)
class Stage:
    """The convolutions between two taps of a trunk."""

    convs: tuple[str, ...]
    """Names of the convolutions in the package's file."""
    conv_pad: int
    """Zero padding of each convolution, cells."""
    pool: int
    """Side of the stride-1 max-pool before the stage, cells; 0 = none. A blur-pool follows it."""
    blur_first: bool = False
    """Blur-pool between the convolution and its ReLU: stands for a strided convolution."""


TRUNKS: dict[str, tuple[Stage, ...]] = {
    "alex": (
        Stage(("slice1.0",), 2, 0, blur_first=True),
        Stage(("slice2.5",), 2, 3),
        Stage(("slice3.9",), 1, 3),
        Stage(("slice4.11",), 1, 0),
        Stage(("slice5.13",), 1, 0),
    ),
    "vgg": (
        Stage(("slice1.0", "slice1.2"), 1, 0),
        Stage(("slice2.6", "slice2.8"), 1, 2),
        Stage(("slice3.12", "slice3.14", "slice3.16"), 1, 2),
        Stage(("slice4.20", "slice4.22", "slice4.24"), 1, 2),
        Stage(("slice5.28", "slice5.30", "slice5.32"), 1, 2),
    ),
}


def blur_pool(x: Tensor) -> Tensor:  # (N, C, ceil((h + 2) / 2), ceil((w + 2) / 2))
    """Halve a grid after a 3 x 3 binomial blur, so that a shift by one cell changes little.

    Args:
        x: (N, C, h, w), h and w at least 3.

    Source:
        Zhang 2019, section 3.2: depthwise filter [1, 2, 1] x [1, 2, 1] / 16, stride 2.
    """
    channels = x.shape[1]
    line = torch.tensor([0.25, 0.5, 0.25], device=x.device, dtype=x.dtype)
    kernel = torch.outer(line, line).expand(channels, 1, 3, 3)
    x = F.pad(x, (BLUR_PAD,) * 4, mode="reflect")  # (N, C, h + 4, w + 4)
    return F.conv2d(x, kernel, stride=2, groups=channels)


def unit_length(x: Tensor) -> Tensor:  # (N, C, h, w)
    """Scale the C responses of every cell to length 1, in float32."""
    x = x.float()
    return x * torch.rsqrt(x.square().sum(1, keepdim=True) + EPS)


class Perceptual(nn.Module):
    """ST-LPIPS: a frozen metric, differentiable in its pictures.

    Args:
        net: Trunk, "vgg" or "alex".
        state: Tensors named `conv{s}_{i}.weight`, `conv{s}_{i}.bias` and `head{s}`, s and i from
            1 on, as `load` and `export_weights` make them. Stages that it lacks are left out.

    Example:
        >>> metric = Perceptual.load("alex")  # doctest: +SKIP
        >>> metric(truth, result)  # (N,) distances, 0 = same  # doctest: +SKIP
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.net = net
        depth = sum(f"conv{s}_1.weight" in state for s in range(1, len(TRUNKS[net]) + 1))
        self.stages = TRUNKS[net][:depth]
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))
        for name in _names(net, depth):
            if name not in state:
                raise WeightsError(f"perceptual weights for {net!r} lack {name!r}; {INSTALL_HINT}")
            self.register_buffer(name.replace(".", "_"), state[name].float().contiguous())
        self.eval()

    @classmethod
    def load(cls, net: Net = "vgg", weights: Path | str | None = None) -> Perceptual:
        """Build the metric from an exported file or, without one, from the installed package.

        Args:
            net: "vgg" or "alex"; "alex" takes a third of the time.
            weights: A file of `export_weights`; as many stages are used as it holds.

        Raises:
            WeightsError: Neither file nor package is there, or the file is another network's.
        """
        if net not in TRUNKS:
            raise WeightsError(f"net={net!r}: want one of {sorted(TRUNKS)}")
        return cls(net, _read_package(net) if weights is None else _read_file(net, Path(weights)))

    def features(self, x: Tensor) -> list[Tensor]:  # of (N, C_s, h_s, w_s)
        """Responses of every stage after its last ReLU, not normalised; x: (N, 3, H, W)."""
        if x.ndim != 4 or x.shape[1] != 3:
            raise ShapeError(f"perceptual input is {tuple(x.shape)}: want (N, 3, H, W)")
        x = (x - self.shift) / self.scale
        taps = []
        for s, stage in enumerate(self.stages, start=1):
            if stage.pool:
                x = blur_pool(F.max_pool2d(x, stage.pool, stride=1))
            for i in range(1, len(stage.convs) + 1):
                weight, bias = self._weights(s, i)
                x = F.conv2d(x, weight, bias, padding=stage.conv_pad)
                x = F.relu(blur_pool(x) if stage.blur_first else x)
            taps.append(x)
        return taps

    def forward(self, a: Tensor, b: Tensor, features_only: bool = False) -> Tensor:  # (N,)
        """Distance of each pair; 0 for equal pictures, unbounded above, rarely over 1.

        d = sum over stages of mean over cells of sum over channels of
        head * (unit(f_a) - unit(f_b))^2.

        Args:
            a: (N, 3, H, W), RGB in [-1, 1]; sides of 32 or more. A gradient reaches it.
            b: Like `a`.
            features_only: Leave the learned heads out: every channel weighs 1 and the sum over
                channels is a squared distance of unit vectors, so each stage lies in [0, 2]. As
                a training loss it leaves no channel unwatched (two thirds of the first "vgg"
                head are zeros).

        Raises:
            ShapeError: The shapes differ or are not those of RGB pictures.
        """
        if a.shape != b.shape:
            raise ShapeError(f"perceptual inputs differ: {tuple(a.shape)} and {tuple(b.shape)}")
        return self.compare(self.features(a), self.features(b), features_only)

    def compare(
        self, a: Sequence[Tensor], b: Sequence[Tensor], features_only: bool = False
    ) -> Tensor:  # (N,)
        """`forward` from the pictures' `features`, for one picture against several.

        Args:
            a: Of every stage (N, C_s, h_s, w_s).
            b: Like `a`.
            features_only: As of `forward`.
        """
        total = torch.zeros(len(a[0]), device=a[0].device)
        for s, (fa, fb) in enumerate(zip(a, b, strict=True), 1):
            difference = (unit_length(fa) - unit_length(fb)).square()  # (N, C, h, w)
            if not features_only:
                head: Tensor = getattr(self, f"head{s}")  # (C,)
                difference = difference * head.float().view(1, -1, 1, 1)
            total = total + difference.sum(1).mean((1, 2))
        return total

    def _weights(self, stage: int, conv: int) -> tuple[Tensor, Tensor]:
        name = f"conv{stage}_{conv}"
        return getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")


def export_weights(
    net: Net, path: Path | str, layers: int | None = None, dtype: torch.dtype = torch.float16
) -> Path:
    """Write the installed package's weights as one small safetensors file.

    Args:
        net: "vgg" or "alex".
        path: File to write; its folder must exist.
        layers: Keep so many stages, counted from the picture; None = all 5. Four of "vgg" end
            after relu4_3.
        dtype: Stored type; float16 moves a distance by less than 0.0002.

    Raises:
        WeightsError: The package is missing or `layers` is not within the trunk.
    """
    depth = len(TRUNKS[net]) if layers is None else layers
    if not 1 <= depth <= len(TRUNKS[net]):
        raise WeightsError(f"layers={layers}: {net!r} has stages 1 to {len(TRUNKS[net])}")
    state = _read_package(net)
    kept = {name: state[name].to(dtype).contiguous() for name in _names(net, depth)}
    safetensors.torch.save_file(kept, path, metadata={"net": net, "source": f"{PACKAGE} 0.0.2"})
    return Path(path)


def _names(net: str, depth: int) -> list[str]:
    """Names of the tensors of the first `depth` stages."""
    names = []
    for s, stage in enumerate(TRUNKS[net][:depth], start=1):
        for i in range(1, len(stage.convs) + 1):
            names += [f"conv{s}_{i}.weight", f"conv{s}_{i}.bias"]
        names.append(f"head{s}")
    return names


def _read_package(net: str) -> dict[str, Tensor]:
    """Weights of the installed package, under our names.

    Its code is never imported, and its file is read only if it is the known one, by PyTorch's
    unpickler that makes nothing but tensors.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(f"perceptual weights need the package {PACKAGE}; {INSTALL_HINT}")
    folder = Path(spec.submodule_search_locations[0]) / "weights" / "vST0.0"
    path = folder / f"{net}_shift_tolerant.pth"
    if not path.is_file():
        raise WeightsError(f"{path} is missing; {INSTALL_HINT}")
    content = path.read_bytes()  # once: what is checked is what is read
    if hashlib.sha256(content).hexdigest() != SHA256[net]:
        raise WeightsError(f"{path} is not the file of {PACKAGE} 0.0.2; {INSTALL_HINT}")
    foreign: dict[str, Tensor] = torch.load(
        io.BytesIO(content), map_location="cpu", weights_only=True
    )
    state = {}
    for s, stage in enumerate(TRUNKS[net], start=1):
        for i, conv in enumerate(stage.convs, start=1):
            state[f"conv{s}_{i}.weight"] = foreign[f"net.{conv}.weight"]
            state[f"conv{s}_{i}.bias"] = foreign[f"net.{conv}.bias"]
        state[f"head{s}"] = foreign[f"lin{s - 1}.model.1.weight"].flatten()
    return state


def _read_file(net: str, path: Path) -> dict[str, Tensor]:
    """Weights of a file that `export_weights` wrote."""
    if not path.is_file():
        raise WeightsError(f"perceptual weights {path} do not exist; {INSTALL_HINT}")
    try:
        with safe_open(path, framework="pt") as file:
            stored = (file.metadata() or {}).get("net")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"{path} is no safetensors file: {error}") from error
    if stored != net or "conv1_1.weight" not in state:
        raise WeightsError(f"{path} holds weights of {stored!r}: want {net!r}")
    return state
