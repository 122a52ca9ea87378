"""Captions of a folder of clips, one file beside each, for whoever reads and mends them."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from dreamactor.conditioning.guidance import describe_clip
from dreamactor.mllm import Client
from dreamactor.runs import write_text
from dreamactor.training.takes import clips_of


def write_captions(folder: Path, client: Client | None = None) -> str:
    """Write CLIP.txt beside every clip that has none; a line that sums up.

    Args:
        folder: Of clips.
        client: Who is asked; None takes the offline describer.

    Raises:
        ConfigError: There is no such folder.
        MediaError: It holds no clips, or one cannot be read; those before it have their captions.
    """
    clips = clips_of(folder)
    new = [clip for clip in clips if not clip.with_suffix(".txt").exists()]
    for clip in tqdm(new, unit="clip", disable=None, leave=False):
        write_text(clip.with_suffix(".txt"), describe_clip(clip, client) + "\n")
    return f"{folder}: {len(new)} new captions, {len(clips) - len(new)} were there"
