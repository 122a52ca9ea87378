"""Backbones and pose estimators by name; nothing heavy is imported before one is asked for."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dreamactor.backbones.catalogue import CATALOGUE, Expert, Keeping, Mode, Options
from dreamactor.backbones.folder import HUB_ID, check_folder, digest_of, find_folder, quiet
from dreamactor.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from dreamactor.backbones.base import Backbone, Encoder, Trainee
    from dreamactor.conditioning.pose import PoseEstimator

Variant = Literal["rgb", "pose"]
"""What drives a backbone: the driving clip itself, or its drawn skeleton."""
BACKBONES = tuple(CATALOGUE)
"""Names that `load_backbone` knows."""
HUNYUAN = tuple(name for name, entry in CATALOGUE.items() if entry.family == "hunyuan")
ESTIMATORS = ("keypoints", "mediapipe", "rtmlib")
"""Names that `load_estimator` knows."""
ESTIMATOR = "keypoints"
"""Who finds joints where nobody is named."""


def check_backbone(name: str) -> str:
    """Return `name`, or say which one was meant.

    Raises:
        ConfigError: There is no backbone of that name.
    """
    return check_known("backbone", "backbone", name, BACKBONES)


def check_estimator(name: str) -> str:
    """As `check_backbone`, of pose estimators."""
    return check_known("pose", "estimator", name, ESTIMATORS)


def check_pose(variant: Variant, estimator: str | None) -> None:
    """Refuse the name of an estimator that there is not, or where none has to look.

    Raises:
        ConfigError: Says which one was meant, or what looks for joints.
    """
    if estimator is None:
        return
    check_estimator(estimator)
    if variant != "pose":
        raise ConfigError(f"pose={estimator!r}: only variant pose looks for joints")


def check_variant(backbone: Backbone, variant: Variant) -> None:
    """Refuse to drive a backbone with what it was not trained for.

    What that is stands in the header of its weights (none means rgb) or, if one was merged in, of
    its adapter.

    Raises:
        ConfigError: Says what is driven by what.
    """
    _check_driver(backbone.name, backbone.variant, backbone.adapter is not None, variant)


def _check_driver(name: str, driver: Variant, adapted: bool, variant: Variant) -> None:
    if driver == variant:
        return
    what = "the adapter is" if adapted else f"the weights of {name} are"
    raise ConfigError(
        f"variant={variant}: {what} trained for {driver}; want an --adapter trained for "
        f"{variant}, or --variant {driver}"
    )


def check_present(device: str) -> None:
    """Refuse a device that torch does not see; of the CPU it is not asked.

    Raises:
        ConfigError: Says which there are.
    """
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(f"device={device}: torch sees no CUDA device here; want cpu")
    count = torch.cuda.device_count()
    if (torch.device(device).index or 0) >= count:
        raise ConfigError(
            f"device={device}: torch sees {count} CUDA devices here; the last is cuda:{count - 1}"
        )


def check_lead(variant: Variant, lead: int | None) -> None:
    """Refuse weights of the pose variant that do not say how they were trained to begin.

    Args:
        variant: What drives them.
        lead: As in `backbones.lora.AdapterInfo`.

    Raises:
        ConfigError: It is missing, or out of place.
    """
    if variant == "rgb" and lead is not None:
        raise ConfigError(f"lead={lead}: only the pose variant has one")
    if variant == "pose" and (not isinstance(lead, int) or lead < 0):
        raise ConfigError(
            f"lead={lead}: want the number of frames without a skeleton at the start of the clips "
            "that the pose variant was trained on"
        )


def check_known(setting: str, noun: str, name: str, names: tuple[str, ...]) -> str:
    """Return `name`, or say which of the names was meant.

    Raises:
        ConfigError: It is none of them.
    """
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, 0.0)[0]
        raise ConfigError(
            f"{setting}={name!r}: no such {noun}, nearest is {near}; known: {', '.join(names)}"
        )
    return name


def check_files(name: str, weights: Path | None, adapter: Path | None, variant: Variant) -> None:
    """Refuse what `load_backbone` would, as far as files say it themselves; nothing is loaded.

    Args:
        name: One of BACKBONES.
        weights: As in `load_backbone`; the hub is not asked for an id.
        adapter: As in `load_backbone`.
        variant: What shall drive it.

    Raises:
        ConfigError: Something else drives these.
        MediaError: The adapter lies where nobody may look.
        WeightsError: Weights are missing, damaged, or belong to another model.
    """
    from dreamactor.backbones.headers import (
        NANO,
        adapter_files,
        check_base,
        check_model,
        read_header,
        read_manifest,
    )

    entry = CATALOGUE[name]
    digest: str | None = None
    driver: Variant = "rgb"
    if not entry.hub:
        folder = weights or NANO
        with _fitting(folder, name):
            files = read_manifest(folder)["files"]
            for file, kind in (("vae", "nano-vae"), ("transformer", "nano")):
                path = folder / f"{file}.safetensors"
                header = read_header(path)
                check_model(path, header, kind)
            digest, driver = digest_of(files), header.get("variant", "rgb")
    elif weights is None or weights.is_dir() or not HUB_ID.fullmatch(weights.as_posix()):
        check_folder(entry, find_folder(entry, weights))
    if adapter is not None:
        for path in adapter_files(adapter) if entry.family == "wan" else [adapter]:
            header = read_header(path)
            check_model(path, header, "adapter")
            trained = str(header.get("weights"))
            check_base(path, (str(header.get("backbone")), trained), (name, digest or trained))
            driver = header.get("variant", "rgb")
    _check_driver(name, driver, adapter is not None, variant)


@contextmanager
def _fitting(folder: Path, name: str) -> Iterator[None]:
    """Say of whatever goes wrong with files of another make that they do not fit."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{folder}: weights do not fit {name}: {first}") from error


def load_backbone(
    name: str,
    weights: Path | None = None,
    device: str = "cpu",
    adapter: Path | None = None,
    options: Options | None = None,
) -> Backbone:
    """A backbone with its weights.

    Args:
        name: One of BACKBONES.
        weights: Folder of its weights, or for a large one its hub id; None takes those that ship
            with the package, or that the hub's cache holds.
        device: Where it runs: "cpu", "cuda" or "cuda:1".
        adapter: File of low-rank layers (`backbones.lora`) for the transformer.
        options: How a large one runs.

    Raises:
        ConfigError: An unknown name, a device that is not there, or options that cannot be.
        WeightsError: Weights are missing, damaged, or belong to another model.
    """
    options = _checked(name, device, options)
    if CATALOGUE[name].hub:
        return _load_large(name, weights, device, adapter, options)
    from dreamactor.backbones.incontext import mode_of
    from dreamactor.backbones.nano import DATA, load_nano

    folder = weights or DATA
    with _fitting(folder, name):
        model = load_nano(folder, device, "animate" if adapter is None else None, options.keeping)
    if adapter is not None:
        from dreamactor.backbones.lora import adapt

        adapt(model, adapter)
    _check_cache(name, mode_of(model.transformer), options)
    model.compiled = _compiled([model.transformer], options)
    return model


def _checked(name: str, device: str, options: Options | None) -> Options:
    """The options, once name, device and they are known to go together."""
    options = options or Options()
    check_backbone(name)
    check_options(name, device, options)
    check_present(device)
    if options.compile:
        from dreamactor.backbones.compiled import check_compiler

        check_compiler(device)
    return options


def _compiled(networks: Iterable[object], options: Options) -> bool:
    """Compile the blocks of networks, if that is wanted; the last thing done to them."""
    if options.compile:
        from dreamactor.backbones.compiled import compile_blocks

        compile_blocks(networks)
    return options.compile


def _check_cache(name: str, mode: Mode, options: Options) -> None:
    """Refuse settings of a cache where there is nothing to keep."""
    if mode == "full" and options.keeping not in (Keeping(), Keeping("none")):
        raise ConfigError(
            f"cache={options.keeping.place}: these weights of {name} have attention full, of which "
            "nothing can be kept; leave --cache, --cache-dtype and --cache-holds out"
        )


def check_options(name: str, device: str, options: Options) -> None:
    """Refuse options that a backbone does not have, or a device does not need.

    Raises:
        ConfigError: Names the first, and what would do.
    """
    if not CATALOGUE[name].hub:
        if options.dtype == "bfloat16":
            raise ConfigError(f"dtype=bfloat16: {name} runs in float32")
        for field in ("size", "frames", "lora"):
            if given := getattr(options, field):
                raise ConfigError(f"{field}={given}: only for large backbones, {name} has its own")
        if options.offload != "none":
            raise ConfigError(
                f"offload={options.offload}: only for large backbones, {name} is small"
            )
        if options.storage != "auto":
            raise ConfigError(
                f"storage={options.storage}: only for large backbones, {name} is small"
            )
    if options.lora and CATALOGUE[name].family == "hunyuan":
        raise ConfigError(f"lora={options.lora[0]}: only for Wan's backbones; {name} has none")
    if options.cache == "host" and device == "cpu":
        raise ConfigError("cache=host: wants --device cuda; on the CPU both are one memory")
    if options.offload != "none" and device == "cpu":
        raise ConfigError(f"offload={options.offload}: wants --device cuda, from which to offload")
    if options.storage == "float8" and options.offload == "group":
        # low-rank layers would be put beside layers that have gone; never tried on a GPU either
        raise ConfigError(
            "storage=float8: not with offload=group, which needs no smaller layers; want offload "
            "none or model"
        )
    if options.compile and options.storage == "float8":
        # layers change their weights' format within a block, which cuts its graph in pieces
        raise ConfigError(
            "compile=true: not with storage=float8, whose layers change as they compute; want "
            "storage=auto, or leave --compile out"
        )
    if options.compile and options.offload == "group":
        # what brings a block cuts its graph in pieces; on a GPU, by streams, that was never run
        raise ConfigError(
            "compile=true: not with offload=group, whose blocks come and go; want offload none or "
            "model, or leave --compile out"
        )


def _load_large(
    name: str, weights: Path | None, device: str, adapter: Path | None, options: Options
) -> Backbone:
    if CATALOGUE[name].family == "hunyuan":
        with quiet():
            from dreamactor.backbones.hunyuan import load_hunyuan

        _check_cache(name, "full", options)
        hunyuan = load_hunyuan(name, weights, device, adapter, options)
        hunyuan.compiled = _compiled([hunyuan.transformer], options)
        return hunyuan
    with quiet():
        from dreamactor.backbones.wan import load_wan

    mode: Mode = "full"
    if adapter is not None:
        from dreamactor.backbones.stacking import mode_in

        mode = mode_in(adapter)
    _check_cache(name, mode, options)
    model = load_wan(name, weights, device, options, mode)
    if adapter is not None or options.lora:
        from dreamactor.backbones.stacking import stack, swap

        if adapter is not None:
            swap(model, adapter)
        for layers in options.lora:
            if left_out := stack(model, layers):
                warnings.warn(
                    f"{layers}: {len(left_out)} layers that {name} does not have are left out, "
                    f"{left_out[0]} first",
                    stacklevel=2,
                )
    model.compiled = _compiled(model.experts.values(), options)
    return model


def load_encoder(
    name: str, weights: Path | None, device: str = "cpu", options: Options | None = None
) -> Encoder:
    """All of a large backbone but its transformers, to make examples with.

    Args:
        name: One of BACKBONES, but not nano, whose autoencoder is a file of its own.
        weights: As in `load_backbone`.
        device: Where it runs: "cpu", "cuda" or "cuda:1".
        options: Precision and sizes.

    Raises:
        ConfigError: An unknown name, a device that is not there, or options that cannot be.
        WeightsError: Weights are missing, damaged, or belong to another model.
    """
    options = _checked(name, device, options)
    if CATALOGUE[name].family == "hunyuan":
        with quiet():
            from dreamactor.backbones import hunyuan

        return hunyuan.load_encoder(name, weights, device, options)
    with quiet():
        from dreamactor.backbones import wan_training

    return wan_training.load_encoder(name, weights, device, options)


def load_trainee(name: str, path: Path, expert: Expert | None = None) -> Trainee:
    """A backbone's transformer, to be trained.

    Args:
        name: One of BACKBONES.
        path: Its weight file; of a large model its folder or hub id.
        expert: Which of two transformers.

    Raises:
        ConfigError: An unknown name, or an expert that it does not have.
        WeightsError: Weights are missing, damaged, or belong to another model.
    """
    check_backbone(name)
    entry = CATALOGUE[name]
    entry.expert(expert)
    if entry.family == "hunyuan":
        with quiet():
            from dreamactor.backbones import hunyuan

        return hunyuan.load_trainee(name, path)
    if entry.family == "wan":
        with quiet():
            from dreamactor.backbones import wan_training

        return wan_training.load_trainee(name, path, expert)
    from dreamactor.backbones import nano

    return nano.load_trainee(path)


def load_estimator(name: str, weights: Path | None = None, device: str = "cpu") -> PoseEstimator:
    """A pose estimator with its weights.

    Args:
        name: One of ESTIMATORS.
        weights: A file for keypoints, a folder of two for rtmlib; None takes those that ship
            with the package, or that rtmlib fetches. mediapipe brings its own.
        device: Where it runs, but for mediapipe: "cpu", "cuda" or "cuda:1".

    Raises:
        ConfigError: An unknown name, an extra that is not installed, or no such device.
        WeightsError: Weights are missing, damaged, or belong to another model.
    """
    check_estimator(name)
    if name == "mediapipe":
        from dreamactor.conditioning.pose import MediaPipe

        if weights is not None:
            raise ConfigError(f"weights={weights}: mediapipe brings its own; leave weights out")
        return MediaPipe()
    if name == "rtmlib":
        from dreamactor.conditioning.pose import RTMLib

        return RTMLib(weights, device)
    check_present(device)
    from dreamactor.backbones.keypoints import DATA, Keypoints, load_network
    from dreamactor.provenance import sha256

    path = weights or DATA
    return Keypoints(load_network(path), device, {path.name: sha256(path)})
