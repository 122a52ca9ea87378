"""A claim has one owner at a time, whatever dies."""

import os
import subprocess
import sys
import threading
import time

from dreamactor.work.claims import Claims


def age(path, seconds):
    os.utime(path, (time.time() - seconds,) * 2)


def of_the_dead(claims, item):
    """A claim whose owner, on this machine, ended without letting go."""
    code = (
        "import os, sys; from pathlib import Path; from dreamactor.work.claims import Claims\n"
        "with Claims(Path(sys.argv[1])).take(sys.argv[2]): os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, claims.folder, item], check=True)
    return claims.folder / f"{item}.0"


def test_exact_one_owner_and_nothing_left_behind(tmp_path):
    claims = Claims(tmp_path)
    with claims.take("x") as mine:
        assert mine is not None
        assert mine.held
        with claims.take("x") as second, claims.take("y") as other:
            assert second is None
            assert other is not None
    assert list(tmp_path.iterdir()) == []
    with claims.take("x") as again:
        assert again is not None


def test_exact_the_claim_of_a_dead_process_is_taken_over_at_once(tmp_path):
    claims = Claims(tmp_path)
    left = of_the_dead(claims, "x")
    assert left.is_file()
    with claims.take("x") as mine:
        assert mine is not None
        assert mine.number == 1
    assert list(tmp_path.iterdir()) == []


def test_exact_silence_loses_a_claim_and_its_owner_knows(tmp_path):
    claims = Claims(tmp_path, expiry=3600)  # beats every 5 s: the age below stays
    with claims.take("x") as first:
        age(first.path, 3000)
        with claims.take("x") as second:
            assert second is None
        age(first.path, 4000)
        with claims.take("x") as second:
            assert second is not None
            assert second.held
            assert not first.held


def test_exact_a_living_owner_beats(tmp_path):
    claims = Claims(tmp_path, expiry=0.8)
    with claims.take("x") as mine:
        age(mine.path, 0.7)
        time.sleep(1.2)
        assert not claims.is_stale(mine.path)
        with claims.take("x") as second:
            assert second is None


def test_exact_one_of_many_takes_over(tmp_path):
    claims, taken = Claims(tmp_path), 0
    for turn in range(20):
        left = claims.folder / f"{turn}.0"
        left.write_text("{}")
        age(left, 3600)
        holders = []
        start, done = threading.Barrier(8), threading.Barrier(8)

        def reach(turn=turn, holders=holders, start=start, done=done):
            start.wait()
            with claims.take(str(turn)) as claim:
                if claim is not None:
                    holders.append(claim)
                done.wait()

        threads = [threading.Thread(target=reach) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(holders) <= 1, turn
        taken += len(holders)
    assert taken  # all may step back from each other, but not always
