"""A worker: one process for each device, which loads its model once and does one job at a time."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Thread
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, NoReturn, Protocol, Self

from PIL import Image

from dreamactor.diffusion.job import AnimateConfig, prepare
from dreamactor.diffusion.watch import Watch
from dreamactor.errors import DreamActorError
from dreamactor.image import Rgb, atomic
from dreamactor.studio.queue import Job, Order, Progress, Queue
from dreamactor.studio.settings import Setup
from dreamactor.studio.told import told

if TYPE_CHECKING:
    from dreamactor.backbones.base import Backbone
    from dreamactor.backbones.catalogue import Options
    from dreamactor.conditioning.pose import PoseEstimator

QUEUE, WORKERS, JOBS, UPLOADS = "queue.sqlite", "workers.lock", "jobs", "uploads"
IDLE = 0.2
"""Seconds between looks for a job."""
PULSE = 0.3
"""Seconds between a worker's looks at its orders and reports of news."""
BEAT = 3.0
"""Seconds between signs of life where there is no news."""
PREVIEW_SECONDS = 1.0
"""Between two pictures of the last frame."""
PREVIEW_SIDE = 512

log = logging.getLogger(__name__)


class Animator(Protocol):
    """Does a job: in earnest `Pipelines`, in tests something small."""

    def __call__(self, config: AnimateConfig, watch: Watch) -> object:
        """Write `config.out` and its record, both or neither.

        Raises:
            DreamActorError: It cannot be done, in one line for the user.
        """


@dataclass
class Pipelines:
    """`diffusion.pipeline`, with models that stay loaded."""

    _models: dict[tuple[object, ...], tuple[Options, Backbone]] = field(default_factory=dict)
    _estimators: dict[str, PoseEstimator] = field(default_factory=dict)

    def __call__(self, config: AnimateConfig, watch: Watch) -> object:
        """As `Animator`."""
        from dreamactor.backbones.load import load_backbone, load_estimator
        from dreamactor.diffusion import pipeline

        job = prepare(config)
        config, options = job.config, job.config.options
        named = (config.backbone, config.weights, config.adapter)
        if named in self._models and self._models[named][0] != options:  # another preset's
            del self._models[named]  # before the next one comes: there may be room for one
            _free()
        if named not in self._models:
            watch.stage("load weights")
            backbone, weights, adapter = named
            model = load_backbone(backbone, weights, config.device, adapter, options)
            self._models[named] = options, model
        estimator = None
        if config.variant == "pose":
            who = config.estimator
            if who not in self._estimators:
                self._estimators[who] = load_estimator(who, device=config.device)
            estimator = self._estimators[who]
        job = replace(job, config=replace(config, adapter=None))  # it is in the model already
        return pipeline.run(job, self._models[named][1], estimator, watch)


def _free() -> None:
    """Give back memory that nothing holds."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class StoppedError(Exception):
    """The job is to end here: cancelled, or no longer ours."""


class Follow(Watch):
    """Tells the queue how far a job is, and the job when to stop.

    A thread does the telling, so that what computes never waits for the disk.
    """

    def __init__(self, queue: Queue, job: Job, folder: Path) -> None:
        self._queue, self._job, self._folder = queue, job, folder
        self._stage, self._step, self._steps = "prepare", 0, 0
        self._begun: float | None = None
        self._latest: Rgb | None = None
        self._previews = 0
        self.order: Order = "go on"
        self._over = Event()
        self._thread = Thread(target=self._tell, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def stage(self, name: str) -> None:
        """See `Watch`."""
        self._heed()
        if self._steps == 0 or self._step >= self._steps:
            self._stage = name
        else:  # stages follow each other many times a second: it is all one to who waits
            self._stage = "animate"

    def plan(self, steps: int) -> None:
        """See `Watch`."""
        self._steps, self._begun = steps, time.monotonic()

    def step(self) -> None:
        """See `Watch`."""
        self._step += 1
        self._heed()

    def frame(self, picture: Rgb) -> None:
        """See `Watch`."""
        self._latest = picture
        self._heed()

    def _heed(self) -> None:
        if self.order != "go on":
            raise StoppedError

    def _now(self) -> Progress:
        eta = None
        if self._begun is not None and self._step:
            spent = time.monotonic() - self._begun
            eta = round(spent / self._step * (self._steps - self._step), 1)
        return Progress(self._stage, self._step, self._steps, eta, self._previews)

    def _tell(self) -> None:
        said, spoke, showed = None, 0.0, 0.0
        while not self._over.wait(PULSE):
            self.order = self._queue.order(self._job)
            if self.order != "go on":
                return  # who does not come to a step now is killed for its silence, see `crew.py`
            if self._latest is not None and time.monotonic() - showed > PREVIEW_SECONDS:
                picture, self._latest, showed = self._latest, None, time.monotonic()
                try:
                    write_preview(self._folder / "preview.jpg", picture)
                    self._previews += 1
                except DreamActorError as error:  # a full disk; the job itself will say so
                    log.warning("job %s: no preview: %s", self._job.id, error)
            now = self._now()
            if now != said or time.monotonic() - spoke > BEAT:
                self._queue.report(self._job, now)
                said, spoke = now, time.monotonic()
        self._queue.report(self._job, self._now())


def write_preview(path: Path, picture: Rgb) -> None:
    """A small JPEG, whole or not at all."""
    image = Image.fromarray(picture)
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    with atomic(path) as hidden:
        image.save(hidden, "JPEG", quality=85)


def work(root: Path, name: str, device: str, setup: Setup, animator: Animator) -> None:
    """Do jobs until SIGTERM, or until the server is gone.

    Args:
        root: The server's folder.
        name: Of this worker.
        device: Where its models run.
        setup: Which models.
        animator: Does a job.
    """
    from dreamactor.runs import end_with_parent

    end_with_parent()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the server, which ends us
    os.chdir(root)  # records name files as they lie in here
    with suppress(KeyboardInterrupt), Path(WORKERS).open("w") as alive:
        fcntl.flock(alive, fcntl.LOCK_SH)  # the kernel lets go of it when we end, however we do
        queue = Queue(Path(QUEUE))
        while True:
            job = queue.claim(name)
            if job is None:
                time.sleep(IDLE)
            else:
                do(queue, job, device, setup, animator)
    os._exit(0)  # all is on the disk, and to tidy up the memory of a model takes seconds


def do(queue: Queue, job: Job, device: str, setup: Setup, animator: Animator) -> None:
    """Do a job that was claimed, and say how it ended.

    Raises:
        KeyboardInterrupt: SIGTERM; the job is in the queue again.
    """
    folder = Path(JOBS, job.id)
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".*.part"):  # by a worker that was killed
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    clip = folder / "result.mp4"
    follow = Follow(queue, job, folder)
    try:
        if not clip.with_suffix(
            ".json"
        ).is_file():  # else it was done, and killed before it said so
            with follow:
                animator(_ready(job, folder, clip, device, setup), follow)
        queue.end(job, "done")
    except KeyboardInterrupt:
        queue.give_back(job)
        raise
    except StoppedError:
        if follow.order == "stop":
            queue.end(job, "cancelled")
    except DreamActorError as error:
        queue.end(job, "failed", told(str(error), Path.cwd(), setup))
    except Exception as error:  # a fault of ours or of a library ends this job, not the server
        log.exception("job %s", job.id)
        first = told(next(iter(str(error).splitlines()), ""), Path.cwd(), setup)[:200]
        queue.end(job, "failed", f"{type(error).__name__}: {first}; the server's log has more")


def _ready(job: Job, folder: Path, clip: Path, device: str, setup: Setup) -> AnimateConfig:
    """What `animate` is asked for, with a driving clip that is cut where that was wanted."""
    asked = dict(job.asked)
    start, end = asked.pop("start"), asked.pop("end")
    asked.pop("consent")
    reference = Path(UPLOADS, job.reference, "file.png")
    driving = Path(UPLOADS, job.driving, "file.mp4")
    if start or end is not None:
        from dreamactor.studio.decode import cut

        whole, driving = driving, folder / "driving.mp4"
        if not driving.is_file():
            cut(whole, driving, start, end)
    return setup.config(asked, device, reference, driving, clip)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
