"""The whole chain on a tiny network: every stage runs, a killed run goes on, settings are kept."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from test_nano import TINY, TINY_VAE, save, tiny_nano

from dreamactor import cli
from dreamactor.backbones.keypoints import KeypointNet, KeypointsConfig, header_of
from dreamactor.backbones.weights import save_weights
from dreamactor.errors import AssetError
from dreamactor.world.cast import load_cast
from dreamactor.world.render import Renderer

CONFIG = Path(__file__).parents[1] / "configs" / "reproduce_tiny.yaml"
NAMES = "pool base keypoints pose_cache pose pairs filter rgb_cache rgb bench".split()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small only wait for each other's threads."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words that name tiny networks; skips where nothing can be drawn."""
    try:
        Renderer(load_cast(cli.MINI)).context  # noqa: B018 - opens it
    except AssetError as fault:
        pytest.skip(str(fault))
    folder = tmp_path_factory.mktemp("files")
    nano = tiny_nano()
    (folder / "oracle").mkdir()
    save(nano, folder / "oracle")
    header = {"model": "nano", "task": "video", "config": asdict(TINY), "predicts": "latents"}
    save_weights(folder / "base.safetensors", nano.transformer.state_dict(), header)
    network = KeypointNet(KeypointsConfig((8, 8, 8, 8), (1, 1, 1, 1), 8))
    save_weights(folder / "keypoints.safetensors", network.state_dict(), header_of(network, 0))
    return [
        f"cast={cli.MINI}",
        f"vae={folder / 'oracle' / 'vae.safetensors'}",
        f"base.start={folder / 'base.safetensors'}",
        f"keypoints.start={folder / 'keypoints.safetensors'}",
        f"pairs.weights={folder / 'oracle'}",
        f"bench.oracle={folder / 'oracle'}",
    ]


def _run(monkeypatch, capsys, words):
    """Exit code, output, errors of `dreamactor reproduce`."""
    kept = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["dreamactor", "reproduce", str(CONFIG), *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    signal.signal(signal.SIGTERM, kept)
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


@pytest.mark.usefixtures("quick")
def test_whole(files, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    words = [*files, f"out={out}"]
    start = time.monotonic()
    code, said, err = _run(monkeypatch, capsys, words)
    print(said, err, time.monotonic() - start)
    assert code == 0
