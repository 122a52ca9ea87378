"""The studio's queue: no job lost, none done twice, and the world can be killed at any time."""

import math
import os
import signal
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from copycat import Copycat
from fake_animator import Fake
from serving import write_inputs

from dreamactor.config import Section
from dreamactor.diffusion.watch import Watch
from dreamactor.errors import ConfigError, WeightsError
from dreamactor.studio import crew, worker
from dreamactor.studio.queue import TRIES, Full, Progress, Queue
from dreamactor.studio.settings import Limits, Setup
from dreamactor.studio.told import told
from dreamactor.studio.worker import do
from dreamactor.video import probe

ASKED = {
    "start": 0.0, "end": None, "consent": True, "variant": "rgb", "prompt": "x", "audio": True,
}  # fmt: skip


@pytest.fixture
def queue(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = Queue(Path("queue.sqlite"))
    yield found
    found.close()


def submit(queue, count=1, **asked):
    return [queue.submit("r" * 16, "d" * 16, {**ASKED, **asked}, 100) for _ in range(count)]


def test_exact_jobs_are_done_in_the_order_they_came(queue):
    made = submit(queue, 3)
    assert [queue.ahead(job) for job in made] == [0, 1, 2]
    claimed = [queue.claim("a") for _ in range(4)]
    assert [job and job.id for job in claimed] == [*(job.id for job in made), None]
    assert [job.id for job in queue.jobs()] == [job.id for job in reversed(made)]
    assert [job.id for job in queue.jobs(1, before=made[2].number)] == [made[1].id]


def test_exact_each_job_goes_to_one_worker_however_many_ask_at_once(queue):
    ids = {job.id for job in submit(queue, 40)}
    got, others = [], [Queue(Path("queue.sqlite")) for _ in range(4)]

    def work(other, name):
        while (job := other.claim(name)) is not None:
            got.append(job.id)
            assert other.end(job, "done")

    threads = [threading.Thread(target=work, args=(q, str(k))) for k, q in enumerate(others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in others:
        other.close()
    assert len(got) == 40
    assert set(got) == ids
    assert queue.count() == {"done": 40}


def test_exact_what_is_on_the_disk_is_what_the_next_process_finds(queue):
    (job,) = submit(queue, seed=3)
    other = Queue(Path("queue.sqlite"))
    assert other.job(job.id) == job
    assert job.asked["seed"] == 3
    assert "key" not in other.claim("a").plain()
    other.close()


def test_exact_a_worker_that_comes_back_from_the_dead_changes_nothing(queue):
    submit(queue)
    dead = queue.claim("a")
    assert queue.release("b") == 0
    assert queue.release("a") == 1
    alive = queue.claim("b")
    assert (alive.id, alive.tries) == (dead.id, 2)
    queue.report(dead, Progress("denoise", 9, 9, 0.0, 1))
    assert queue.order(dead) == "lost"
    assert not queue.end(dead, "failed", "late")
    queue.give_back(dead)
    assert queue.job(alive.id) == alive
    assert queue.end(alive, "done")
    assert queue.job(alive.id).state == "done"


def test_exact_a_job_that_kills_its_workers_fails(queue):
    (job,) = submit(queue)
    for tries in range(1, TRIES + 1):
        assert queue.claim("a").tries == tries
        queue.release()
    found = queue.job(job.id)
    assert (found.state, found.error) == ("failed", "its worker died 3 times at it")
    assert found.ended is not None
    assert queue.claim("a") is None


def test_exact_the_end_of_a_server_is_no_try(queue):
    (job,) = submit(queue)
    for _ in range(TRIES + 2):
        queue.give_back(queue.claim("a"))
        queue.claim("a")  # a server that is killed
        queue.release(blame=False)
    assert (queue.job(job.id).state, queue.job(job.id).tries) == ("queued", 0)


def test_exact_cancelling(queue):
    waiting, running, done = (job.id for job in submit(queue, 3))
    queue.cancel(waiting)
    assert queue.job(waiting).state == "cancelled"
    claimed = queue.claim("a")
    assert (claimed.id, queue.order(claimed)) == (running, "go on")
    queue.cancel(running)
    assert (queue.job(running).state, queue.order(claimed)) == ("running", "stop")
    queue.release("a")  # killed before it could stop
    assert queue.job(running).state == "cancelled"
    queue.end(queue.claim("a"), "done")
    assert queue.cancel(done).state == "done"
    assert queue.cancel("0" * 16) is None


def test_refuses_more_than_there_is_room_for(queue):
    submit(queue, 2)
    with pytest.raises(Full, match="2 jobs wait or run, the limit is 2"):
        queue.submit("r", "d", ASKED, 2)
    queue.end(queue.claim("a"), "done")
    queue.submit("r", "d", ASKED, 2)


def test_refuses_a_queue_of_another_version_and_what_is_none(tmp_path):
    with sqlite3.connect(tmp_path / "new.sqlite") as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(ConfigError, match="version 99, want 1"):
        Queue(tmp_path / "new.sqlite")
    (tmp_path / "text.sqlite").write_text("not a data base, but long enough to be one" * 9)
    with pytest.raises(ConfigError, match="cannot be used as a queue"):
        Queue(tmp_path / "text.sqlite")


def test_exact_uploads_stay_while_a_job_names_them(queue):
    for name in ("r" * 16, "d" * 16, "other"):
        queue.add_upload(name, "reference", {"width": 4})
    (job,) = submit(queue)
    assert queue.upload("other").plain()["width"] == 4
    assert queue.forget_uploads(before=2**40) == ["other"]
    queue.end(queue.claim("a"), "done")
    assert queue.remove(job.id)
    assert len(queue.forget_uploads(before=2**40)) == 2


# ---- a worker's part ------------------------------------------------------------------------


@pytest.fixture
def files(queue, tmp_path):
    """Uploads as the intake leaves them."""
    picture, clip = write_inputs(tmp_path)
    for name, path, target in (("r", picture, "file.png"), ("d", clip, "file.mp4")):
        folder = tmp_path / "uploads" / (name * 16)
        folder.mkdir(parents=True)
        path.rename(folder / target)
    return tmp_path


def finish(queue, animator, **asked):
    (job,) = submit(queue, **asked)
    do(queue, queue.claim("a"), "cpu", Setup(), animator)
    return queue.job(job.id)


def test_exact_a_job_that_was_done_is_not_done_again(queue, files):
    diary = files / "diary"
    (job,) = submit(queue)
    lost = queue.claim("a")
    do(queue, lost, "cpu", Setup(), Fake(diary=diary))
    with sqlite3.connect("queue.sqlite") as db:  # as if it had been killed before it said so
        db.execute("UPDATE jobs SET state = 'running', key = 'k'")
    queue.release()
    do(queue, queue.claim("b"), "cpu", Setup(), Fake(diary=diary))
    assert queue.job(job.id).state == "done"
    assert [line.split()[0] for line in diary.read_text().splitlines()] == ["begin", "end"]


def test_exact_what_a_killed_worker_left_goes(queue, files):
    (job,) = submit(queue)
    left = files / "jobs" / job.id / ".result.mp4.12345678.part"
    left.mkdir(parents=True)
    (left / "result.mp4").write_bytes(b"half")
    do(queue, queue.claim("a"), "cpu", Setup(), Fake())
    assert {path.name for path in left.parent.iterdir()} >= {"result.mp4", "result.json"}
    assert not left.exists()


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ("refuse", "the driving clip: nobody in it"),
        ("break", "RuntimeError: it broke; the server's log has more"),
    ],
)
def test_exact_a_fault_ends_the_job_in_one_line(queue, files, prompt, error):
    found = finish(queue, Fake(), prompt=prompt)
    assert (found.state, found.error) == ("failed", error)
    assert finish(queue, Fake()).state == "done"


def test_exact_a_fault_names_no_folder_of_the_server(queue, files):
    weights = files / "of mine"

    def refuses(config, watch):
        raise WeightsError(f"{config.weights}/a.safetensors: damaged, see {config.driving}")

    def breaks(config, watch):
        raise OSError(28, "No space left on device", "/var/cache/x")

    for animator, error in (
        (refuses, "the server's weights/a.safetensors: damaged, see the driving clip"),
        (breaks, "OSError: [Errno 28] No space left on device: 'a file of the server'; the"),
    ):
        (job,) = submit(queue)
        do(queue, queue.claim("a"), "cpu", Setup(weights=weights), animator)
        assert queue.job(job.id).error.startswith(error)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/srv/my studio/uploads/0a/file.png: no\npicture", "the reference: no picture"),
        ("/srv/my studio/jobs/0a/result.mp4: cannot be written", "result.mp4: cannot be written"),
        ("/tmp/tmpab/part.mp4: too short", "the driving clip: too short"),
        ("local:/opt/vl: no '/opt/a'", "local:a file of the server: no 'a file of the server'"),
        ("/w/nano2/a: not /w/nano", "a file of the server: not the server's weights"),
        ("https://host/v1 said 1/2, H.264/H.265", "https://host/v1 said 1/2, H.264/H.265"),
    ],
)
def test_exact_clients_are_told_names_and_no_paths(text, shown):
    assert told(text, Path("/srv/my studio"), Setup(weights=Path("/w/nano"))) == shown


def test_exact_a_variant_without_weights_is_refused_in_words(queue, files):
    found = finish(queue, Fake(), variant="pose")
    assert found.error == "variant=pose: this server has weights for rgb"


def test_exact_a_cancelled_job_ends_at_its_next_step(queue, files, monkeypatch):
    monkeypatch.setattr(worker, "PULSE", 0.01)
    (job,) = submit(queue)
    claimed = queue.claim("a")
    timer = threading.Timer(0.3, queue.cancel, [job.id])
    timer.start()
    do(queue, claimed, "cpu", Setup(), Fake(seconds=20, steps=400))
    found = queue.job(job.id)
    assert found.state == "cancelled"
    assert 0 < found.step < 100
    assert not (files / "jobs" / job.id / "result.mp4").exists()


def test_exact_progress_counts_down_and_shows_the_last_frame(queue, files, monkeypatch):
    monkeypatch.setattr(worker, "PULSE", 0.01)
    monkeypatch.setattr(worker, "PREVIEW_SECONDS", 0.05)
    seen, report = [], Queue.report
    monkeypatch.setattr(Queue, "report", lambda q, j, now: (seen.append(now), report(q, j, now)))
    found = finish(queue, Fake(seconds=1.0, steps=10))
    assert [now.step for now in seen] == sorted(now.step for now in seen)
    etas = [now.eta for now in seen if now.eta is not None]
    assert etas[0] > etas[-1] >= 0
    assert seen[-1].steps == 10
    assert found.preview >= 5
    preview = (files / "jobs" / found.id / "preview.jpg").read_bytes()
    assert preview[:3] == b"\xff\xd8\xff"


class Notes(Watch):
    """Writes down what it is told, and ends the run at a step."""

    def __init__(self, last=None):
        self.stages, self.steps, self.made, self.frames, self.last = [], None, 0, [], last

    def stage(self, name):
        self.stages.append(name)

    def plan(self, steps):
        self.steps = steps

    def step(self):
        self.made += 1
        if self.made == self.last:
            raise worker.StoppedError

    def frame(self, picture):
        self.frames.append(picture.shape)


def test_exact_the_pipeline_says_how_far_it_is_and_can_be_ended(files, monkeypatch):
    config = Setup(describer="offline").config(
        {"variant": "rgb", "prompt": "x", "steps": 3},
        "cpu", files / "uploads" / ("r" * 16) / "file.png",
        files / "uploads" / ("d" * 16) / "file.mp4", files / "out.mp4",
    )  # fmt: skip
    loaded = []
    monkeypatch.setattr(
        "dreamactor.backbones.load.load_backbone", lambda *a: loaded.append(a) or Copycat()
    )
    animate = worker.Pipelines()
    notes = Notes(last=4)  # of two segments, in the second
    with pytest.raises(worker.StoppedError):
        animate(config, notes)
    assert {path.name for path in files.iterdir() if "out" in path.name} == set()
    notes = Notes()
    animate(config, notes)
    assert (notes.steps, notes.made) == (6, 6)
    assert notes.frames == [(64, 42, 3)] * 24
    assert {"load weights", "describe", "denoise", "decode latents", "write"} <= set(notes.stages)
    assert probe(files / "out.mp4").frames == 24
    assert len(loaded) == 1  # the model stays


def test_exact_workers_that_die_or_hang_are_replaced(files, monkeypatch):
    monkeypatch.setattr(crew, "POLL", 0.05)
    monkeypatch.setattr(crew, "REST", (0.0, 0.0))
    monkeypatch.setattr(crew, "SILENCE", 4.0)
    queue = Queue(Path("queue.sqlite"))
    deadly, hanging = (*submit(queue, prompt="die"), *submit(queue))
    found = crew.Crew(files, queue, ("cpu",), Setup(), Fake(seconds=1.0))
    found.start()

    def wait(job, state):
        end = time.monotonic() + 120
        while queue.job(job.id).state != state:
            assert time.monotonic() < end, queue.job(job.id)
            time.sleep(0.01)

    wait(deadly, "failed")
    assert queue.job(deadly.id).error == "its worker died 3 times at it"
    wait(hanging, "running")
    (process,) = found._processes.values()
    os.kill(process.pid, signal.SIGSTOP)
    wait(hanging, "queued")  # it was killed
    wait(hanging, "done")
    assert queue.job(hanging.id).tries == 2
    assert found.alive == 1
    found.stop()
    assert found.alive == 0
    queue.close()


def test_refuses_limits_that_cannot_be():
    with pytest.raises(ConfigError, match="queue=0: want 1 or more"):
        Limits(queue=0)
    for name in ("seconds", "decode_seconds", "patience"):
        with pytest.raises(ConfigError, match=f"{name}=inf: want a finite number"):
            Limits(**{name: math.inf})
    with pytest.raises(ConfigError, match="unknown setting 'qeue'; nearest is queue"):
        Setup(limit=Section(qeue="3"))
