"""The stages of the chain: each calls what its command calls, on the folders of those before.

    pool -> keypoints        base (fresh/, short/) -> weights/
    pool -> pose_cache -> pose -> pairs (data/) -> filter -> rgb_cache -> rgb -> bench

A stage can be killed at any moment and run again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from dreamactor.backbones.nano import DATA
from dreamactor.bench.measured import Measured
from dreamactor.bench.variants import VariantsBenchConfig, bench_variants
from dreamactor.bootstrap.gate import gate_best
from dreamactor.bootstrap.manifest import DataSet
from dreamactor.bootstrap.pairs import PairsConfig, animator, make_pairs
from dreamactor.bootstrap.review import accept_unseen, unreviewed
from dreamactor.bootstrap.sources import World
from dreamactor.config import Section, check_least, from_words
from dreamactor.errors import ConfigError, MediaError
from dreamactor.provenance import sha256
from dreamactor.reproduce.settings import ReproduceConfig
from dreamactor.training.adapt import train_adapter
from dreamactor.training.cache import Cache
from dreamactor.training.encode import CacheConfig, fill_cache
from dreamactor.training.export import export_nano
from dreamactor.training.keypoints import KeypointTrainConfig, train_keypoints
from dreamactor.training.nano import NanoBaseConfig, train_nano
from dreamactor.training.pool import SHARD, TARGET_FRAMES, PoolConfig, fill, filling
from dreamactor.training.stage import AdaptConfig, RgbConfig
from dreamactor.world.cast import load_cast
from dreamactor.world.pairs import PairSampler

T = TypeVar("T")
Run = Callable[["Time"], str]
LEAST_SHARDS = 2
"""Of a pool: the first one is held back by whoever trains on it."""
SLACK = 10.0
"""Minutes that renderers are given beyond the base's, which start late and are ended with it."""
PARTS = 20
"""Into which the pairs are cut, to look at the clock in between."""
MEANS = ("minutes", "pause_minutes", "compile", "processes", "workers", "threads", "gpus", "device")
"""Settings that say how a stage is carried out and not what comes of it."""


@dataclass(frozen=True)
class Time:
    """What a stage has."""

    minutes: float
    """In all: a trainer counts by itself what earlier processes took of it."""
    left: Callable[[], float]
    """Minutes of them that are left now."""


@dataclass(frozen=True)
class Stage:
    """A part of the chain that is done once."""

    name: str
    after: tuple[str, ...]
    """Stages whose results it takes."""
    settings: Mapping[str, Any]
    """JSON values that say what comes of it, but for those stages."""
    run: Run
    """Do it, or go on with it; a line that sums up."""
    timed: bool = True
    """Whether it can be ended by the clock."""


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Settings of the pool."""

    shards: int = 300
    """Of 16 twins; the clock may end it before. A shard of 256 x 256 pixels takes 150 MB."""
    gpus: int = 1
    """EGL devices to spread renderers over."""

    def __post_init__(self) -> None:
        check_least(self, {"shards": LEAST_SHARDS, "gpus": 1})


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """What is rendered beside the base's training and deleted once it is encoded."""

    shards: int = 1_000_000
    """Of whole clips at most; 0 = the pool is used, and may be learnt by heart."""
    short: int = 1_000_000
    """Of clips of four frames at most; 0 = whole clips from the start."""
    room: int = 110
    """Shards of whole clips that may lie there at once."""
    short_room: int = 240
    gpus: int = 1
    """EGL devices to spread renderers over."""

    def __post_init__(self) -> None:
        check_least(self, {"shards": 0, "short": 0, "room": 2, "short_room": 2, "gpus": 1})


def build(config: ReproduceConfig) -> list[Stage]:
    """All stages, their settings checked.

    Raises:
        AssetError: The cast pack is missing or damaged.
        ConfigError: A setting of a stage cannot work.
        WeightsError: The autoencoder is missing.
    """
    return _Chain(config).stages()


class _Chain:
    """Stages of one config."""

    def __init__(self, config: ReproduceConfig) -> None:
        import torch

        self.config, self.out = config, config.out
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.vae = config.vae or DATA / "vae.safetensors"
        self.cast = load_cast(config.cast)
        self.given = {"cast": self.cast.digest, "vae": sha256(self.vae), "size": config.size}
        self.weights, self.data = self.out / "weights", self.out / "data"
        self.base = self.weights / "transformer.safetensors"

    def stages(self) -> list[Stage]:
        """In order."""
        first = [self._pool(), self._base(), self._keypoints()]
        middle = [self._cache("pose"), self._adapter("pose"), self._pairs(), self._filter()]
        return [*first, *middle, self._cache("rgb"), self._adapter("rgb"), self._bench()]

    # ---- rendering and training -----------------------------------------------------------------

    def _twins(self, stream: int, frames: int = TARGET_FRAMES) -> PoolConfig:
        config = self.config
        return PoolConfig(config.cast, "train", 10 * config.seed + stream, config.size, frames)

    def _pool(self) -> Stage:
        section, pool = from_words(Shards, self.config.pool.words), self._twins(0)

        def run(time: Time) -> str:
            shards, processes = range(section.shards), self.config.processes
            made = fill(self.out / "pool", pool, shards, processes, time.left(), section.gpus)
            if made < LEAST_SHARDS:
                raise ConfigError(
                    f"pool: {made} shards in {time.minutes:.1f} minutes, want {LEAST_SHARDS} or "
                    "more; begin again in another folder (out=) with a larger shares.pool= or "
                    "more processes="
                )
            return f"{made} shards, {2 * SHARD * made:,} clips"

        return self._stage("pool", (), {"shards": section.shards, "seed": pool.seed}, run)

    def _base(self) -> Stage:
        fresh = from_words(Fresh, self.config.fresh.words)
        wired: dict[str, object] = {"vae": self.vae, "consume": bool(fresh.shards)}
        wired["pool"] = self.out / ("fresh" if fresh.shards else "pool")
        wired["short"] = self.out / "short" if fresh.short else None
        config = self._config(NanoBaseConfig, "base", wired, {"seed": self.config.seed})
        pools = [  # folder, what, shards, how many may lie there
            ("fresh", self._twins(1), fresh.shards, fresh.room),
            ("short", self._twins(2, frames=4), fresh.short, fresh.short_room),
        ]

        def run(time: Time) -> str:
            with ExitStack() as renderers:
                for name, pool, shards, room in pools:
                    if shards:
                        each, left = max(1, self.config.processes // 2), time.left() + SLACK
                        renderers.enter_context(
                            filling(
                                self.out / name, pool, range(shards), each, left, fresh.gpus, room
                            )
                        )
                path = train_nano(replace(config, minutes=time.minutes), self.out / "base")
            steps, shift = self.config.steps, self.config.shift
            size = export_nano(self.vae, path, self.weights, steps, shift, self.config.size)
            missed = _last(self.out / "base", "missed_1")
            return f"{_steps(self.out / 'base')}; missed {missed}; {size / 1e6:.1f} MB"

        settings = {
            **self._said("base", config.seed),
            "fresh": fresh.shards,
            "short": fresh.short,
            "steps": self.config.steps,
            "shift": self.config.shift,
        }
        return self._stage("base", () if fresh.shards else ("pool",), settings, run)

    def _keypoints(self) -> Stage:
        wired = {"pool": self.out / "pool"}
        config = self._config(KeypointTrainConfig, "keypoints", wired, {"seed": self.config.seed})

        def run(time: Time) -> str:
            train_keypoints(replace(config, minutes=time.minutes), self.out / "keypoints")
            near, far = (_last(self.out / "keypoints", k) for k in ("held_pck5", "held_pck10"))
            steps = _steps(self.out / "keypoints")
            return f"{steps}; of held frames' joints {near} within .05, {far} within .1"

        return self._stage("keypoints", ("pool",), self._said("keypoints", config.seed), run)

    def _cache(self, task: str) -> Stage:
        name = f"{task}_cache"
        source = {"pose": ("pool", self.out / "pool"), "rgb": ("triplets", self._triplets)}[task]
        wired: dict[str, object] = {"vae": self.vae, source[0]: source[1]}
        config = self._config(
            CacheConfig, name, wired, {"seed": self.config.seed, "size": self.config.size}
        )

        def run(time: Time) -> str:
            limited = replace(config, minutes=max(0.0, time.left()))
            fill_cache(limited, "pose" if task == "pose" else "rgb", self.out / name)
            cache = Cache(self.out / name)
            cache.close()
            return f"{len(cache)} examples of {' x '.join(map(str, cache.shape))}"

        after = ("pool",) if task == "pose" else ("filter",)
        return self._stage(name, after, self._said(name, config.seed), run)

    def _adapter(self, task: str) -> Stage:
        wired: dict[str, object] = {"cache": self.out / f"{task}_cache", "base": self.base}
        wired |= {"vae": self.vae}
        kind: type[AdaptConfig] = AdaptConfig
        if task == "rgb":
            kind, wired = RgbConfig, {**wired, "start": self.out / "pose" / "adapter.safetensors"}
        config = self._config(kind, task, wired, {"seed": self.config.seed})

        def run(time: Time) -> str:
            folder = self.out / task
            train_adapter(
                replace(config, minutes=time.minutes), "pose" if task == "pose" else "rgb", folder
            )
            missed, swapped = (_last(folder, k) for k in ("missed_1", "swapped_1"))
            return f"{_steps(folder)}; missed {missed}, with another's driver {swapped}"

        after = ("base", f"{task}_cache", *(("pose",) if task == "rgb" else ()))
        return self._stage(task, after, self._said(task, config.seed), run)

    # ---- bootstrapping and measuring ------------------------------------------------------------

    @property
    def _triplets(self) -> Path:
        return self.data / "triplets.jsonl"

    def _pairs(self) -> Stage:
        mine = {
            "seed": 10 * self.config.seed + 3,
            "size": self.config.size,
            "steps": self.config.steps,
            "device": self.device,
        }
        wired: dict[str, object] = {"weights": self.weights, "variant": "pose", "pose": "keypoints"}
        wired["adapter"] = self.out / "pose" / "adapter.safetensors"
        wired["estimator"] = self.out / "keypoints" / "keypoints.safetensors"
        config = self._config(PairsConfig, "pairs", wired, mine)

        def run(time: Time) -> str:
            made = animator(config)
            sampler = PairSampler(self.cast, config.split, config.size)
            part = -(-config.count // PARTS)
            for count in range(part, config.count + part, part):
                world = World(sampler, min(count, config.count), config.per_source, config.seed)
                done = make_pairs(self.data, world, made, config.workers, config.ray, config.expiry)
                if done.failed:
                    item, why = next(iter(done.failed.items()))
                    raise MediaError(
                        f"pairs: {len(done.failed)} of {done.items} items could not be made. The "
                        f"first, {item}: {why}"
                    )
                if time.left() <= 0:
                    break
            ended = "" if done.items >= config.count * config.per_source else ", ended by the clock"
            return f"{done.items} pairs by {done.data.generator['name']}, stage 1{ended}"

        settings = {"steps": config.steps, **self._said("pairs", config.seed)}
        return self._stage("pairs", ("pose", "keypoints"), settings, run)

    def _filter(self) -> Stage:
        config = self.config

        def run(time: Time) -> str:
            data, judge = DataSet(self.data), Measured()
            workers = config.processes if config.processes > 1 else 0
            found, threshold = gate_best(data, judge, config.threshold, config.least, workers)
            if config.reviewers:
                open_ = unreviewed(data, judge.name, config.reviewers)
                if open_:
                    raise ConfigError(
                        f"{len(open_)} of {found.passed} pairs want {config.reviewers} "
                        f"reviewer(s): `dreamactor bootstrap review --data {self.data}`, then this "
                        "command again"
                    )
            else:
                accept_unseen(data, judge.name)
            _, count = data.write_triplets(judge.name, max(1, config.reviewers))
            if not count:
                raise ConfigError(
                    f"none of {found.items} pairs became a triplet (threshold "
                    f"{threshold:.2f}); want more pairs, a lower threshold= or least= over 0"
                )
            above = f"average over {threshold:.2f}"
            if threshold < config.threshold:
                above += f" (too few were over {config.threshold:g})"
            seen = "" if config.reviewers else "; no person has looked at them"
            return f"{count} triplets of {found.items} pairs, {above}{seen}"

        settings = {
            "threshold": config.threshold,
            "least": config.least,
            "reviewers": config.reviewers,
        }
        return self._stage("filter", ("pairs",), settings, run, timed=False)

    def _bench(self) -> Stage:
        wired = {
            "weights": self.weights,
            "pose": self.out / "pose" / "adapter.safetensors",
            "keypoints": self.out / "keypoints" / "keypoints.safetensors",
            "rgb": self.out / "rgb" / "adapter.safetensors",
        }
        mine = {
            "size": self.config.size,
            "steps": self.config.steps,
            "device": self.device,
            "processes": self.config.processes if self.device != "cpu" else 0,
        }
        config = self._config(VariantsBenchConfig, "bench", wired, mine)

        def run(time: Time) -> str:
            bench_variants(self.config.cast, self.out / "bench", config)
            return f"{config.count} pairs"

        after = ("base", "keypoints", "pose", "rgb")
        settings = {**self._said("bench", config.seed), "steps": config.steps}
        return self._stage("bench", after, settings, run, timed=False)

    # ---- settings -------------------------------------------------------------------------------

    def _stage(
        self,
        name: str,
        after: tuple[str, ...],
        settings: Mapping[str, Any],
        run: Run,
        timed: bool = True,
    ) -> Stage:
        return Stage(name, after, {**self.given, **settings}, run, timed)

    def _config(
        self, kind: type[T], name: str, wired: Mapping[str, object], mine: Mapping[str, object]
    ) -> T:
        """Settings of a stage's command.

        Args:
            kind: Its dataclass.
            name: The section that goes over `mine`.
            wired: What no section may change.
            mine: What the chain would have.
        """
        section: Section = getattr(self.config, name)
        for key in section:
            if key in wired or key in ("minutes", "device"):
                raise ConfigError(f"{name}.{key}: the chain settles this by itself; leave it out")
        values = {**mine, **section, **wired}
        try:
            return from_words(kind, [f"{key}={value}" for key, value in values.items()])
        except ConfigError as error:
            raise ConfigError(f"section {name}: {error}") from error

    def _said(self, name: str, seed: int) -> dict[str, Any]:
        """What a section says that has a say in the result."""
        section: Section = getattr(self.config, name)
        return {"seed": seed, **{k: v for k, v in section.items() if k not in MEANS}}


def metrics(run: Path) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl, whole ones."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _last(run: Path, key: str) -> str:
    found = [row[key] for row in metrics(run) if key in row]
    return f"{found[-1]:.2f}" if found else "-"


def _steps(run: Path) -> str:
    found = [row["step"] for row in metrics(run)]
    return f"{max(found, default=0):,} steps"
