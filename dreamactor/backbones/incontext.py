"""In-context attention that need not be paid for at every step: who sees whom on the canvas.

The canvas has twice the tokens of a clip, half of which never change. Three modes, in which a
transformer of Wan's kind is trained and run alike:

    full             every token sees every token, as in the paper
    one-way          the context (motion half, and the reference's own latent frame) sees only
                     itself; the target (all other latent frames of the reference half) sees all
    one-way-aligned  besides, a target's latent frame sees of the motion half only the frame of
                     its own time, and as before the target and the reference's frame

For the context to be the same at every step and in both branches of guidance, nothing in it may
hang on noise, noise level or prompt. So in the one-way modes its tokens

    carry   what is given there, in the noise channels too: their canvas channels
    have    timestep 0, where latents are without noise
    read    the empty prompt, and the states of the reference's picture where a model has them

What comes out at the context's places is what was given there. Frames of an earlier segment that
are shown again belong to the target: how many there are differs between clips of a batch.

Legend: B clips, C latent channels, F latent frames, h x 2w latent cells of the canvas in patches of
2 x 2, so rows x 2 c tokens a frame, m = rows c of one half; D channels of a token. Targets are
(F - 1) m tokens; the context is (F + 1) m, in the order motion 0, reference, motion 1 to F - 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor

from dreamactor.backbones import feature_cache
from dreamactor.backbones.catalogue import Keeping, Mode
from dreamactor.backbones.context_cache import ContextCache, announce, cache_bytes, kept_dtype
from dreamactor.backbones.parallel import Spread, Team, by_diffusers, check_keeping, check_team
from dreamactor.backbones.sight import Rotary, Sight, SightedAttention
from dreamactor.errors import ShapeError, WeightsError

Shape = tuple[int, int, int]
"""(F, rows, 2 c): tokens of a canvas."""
CONTEXT_TIMESTEP = 0.0


def set_mode(transformer: WanTransformer3DModel, mode: Mode) -> None:
    """Have a transformer attend in a mode, in training and sampling alike; weights stay.

    In a one-way mode it is called as ever, with the whole canvas and one timestep a clip. To be set
    before diffusers or accelerate put their hooks on it (offload).

    Args:
        transformer: diffusers'; changed in place.
        mode: As its weights were, or are to be, trained.
    """
    assert "forward" not in vars(transformer), "hooks hold on to the forward that was"
    transformer.__class__ = WanTransformer3DModel if mode == "full" else InContextTransformer
    transformer.mode, transformer.team = mode, None
    for block in transformer.blocks:
        block.attn1.set_processor(WanAttnProcessor() if mode == "full" else SightedAttention())


def set_parallel(transformer: WanTransformer3DModel, team: Team, even: bool = False) -> None:
    """Have several processes sample together, each of which calls the transformer with all inputs.

    All of them get all of what is predicted. Of a kept context each has its own heads' part. Not
    for training.

    Args:
        transformer: diffusers', in its mode; changed in place. In mode full diffusers does it, and
            it is not taken back.
        team: The processes, all of which call this; of one there is nothing to do.
        even: In mode full: whether the canvas has equally many tokens for each.

    Raises:
        ConfigError: The heads cannot be shared out evenly.
    """
    check_team(team, transformer.config.num_attention_heads)
    if team.count == 1:
        return
    if mode_of(transformer) == "full":
        by_diffusers(transformer, team, even)
    else:
        transformer.team = team


def mode_of(transformer: Any) -> Mode:
    """The mode that `set_mode` set; full without."""
    return cast(Mode, getattr(transformer, "mode", "full"))


def check_mode(path: Path, header: dict[str, Any], mode: Mode | None = None) -> Mode:
    """The mode that a weight file or adapter was trained in; files that name none are full.

    Args:
        path: For the message.
        header: Of the file.
        mode: The one that is wanted; None takes any that there is.

    Raises:
        WeightsError: It is another, or none that is known.
    """
    found = header.get("attention", "full")
    words = get_args(Mode) if mode is None else (mode,)
    if found not in words:
        raise WeightsError(f"{path}: trained with attention {found!r}, want {' or '.join(words)}")
    return cast(Mode, found)


def split(tokens: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """Tokens of a canvas by whether they change.

    Args:
        tokens: (B, F rows 2c, ...).
        shape: Of the canvas.

    Returns:
        Target (B, (F - 1) m, ...) and context (B, (F + 1) m, ...).
    """
    grid, half = tokens.unflatten(1, shape), shape[2] // 2
    left, right = grid[:, :, :, :half], grid[:, :, :, half:]
    order = [right[:, :1], left[:, :1], right[:, 1:]]
    return left[:, 1:].flatten(1, 3), torch.cat([part.flatten(1, 3) for part in order], dim=1)


def join(target: Tensor, context: Tensor, shape: Shape) -> Tensor:
    """Undo `split`: (B, F rows 2c, ...)."""
    frames, rows, columns = shape
    half, one = columns // 2, rows * (columns // 2)
    first, reference, rest = context.tensor_split([one, 2 * one], dim=1)
    left = torch.cat([reference, target], dim=1).unflatten(1, (frames, rows, half))
    right = torch.cat([first, rest], dim=1).unflatten(1, (frames, rows, half))
    return torch.cat([left, right], dim=3).flatten(1, 3)


def seen_tokens(mode: Mode, shape: Shape) -> int:
    """Tokens of the context that targets see: no target has the time of motion frame 0."""
    frames, rows, columns = shape
    return (frames + (mode != "one-way-aligned")) * rows * (columns // 2)


class _Stream(NamedTuple):
    """What all tokens of a kind have in common."""

    rotary: Rotary
    text: Tensor
    """(B, L, D) states, those of the picture first."""
    time: Tensor
    """(B, 6, D) embedded timestep for the blocks."""
    last: Tensor
    """(B, D) and for the output."""
    spread: Spread | None
    """Over several processes, if there are any."""


class InContextTransformer(WanTransformer3DModel):
    """diffusers' transformer in a one-way mode; `set_mode` makes one."""

    mode: Mode
    team: Team | None = None
    """Processes that sample together; `set_parallel` names them."""

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        return_dict: bool = False,
        silence: Tensor | None = None,
        cache: ContextCache | None = None,
        fill: bool = False,
    ) -> tuple[Tensor]:
        """As of diffusers, which names the first five, on a canvas.

        Args:
            hidden_states: (B, 2C + 4, F, h, 2w) noise | mask | canvas.
            timestep: (B,) of the target.
            encoder_hidden_states: (B, L, text) of the prompt.
            encoder_hidden_states_image: Of the reference's picture, where the model has them.
            return_dict: Has to be False.
            silence: (1, L, text) of the empty prompt; None = zeros, which is nano's.
            cache: The context of this canvas from an earlier call; None computes it anew.
            fill: Fill the cache, which is empty, and predict nothing.

        Returns:
            (B, C, F, h, 2w): predicted for the target, given for the context (its latents).
        """
        assert not return_dict
        assert self.team is None or not torch.is_grad_enabled(), "processes only sample together"
        given = hidden_states[:, -self.config.out_channels :]
        shape = _tokens_of(hidden_states)
        spreads = self._spreads(shape)
        tables = [_own(split(table, shape), spreads) for table in self.rope(hidden_states)]
        target, context = _own(split(self._embed(hidden_states), shape), spreads)
        image = encoder_hidden_states_image
        rotary, of_context = cast(tuple[Rotary, Rotary], tuple(zip(*tables, strict=True)))
        if fill or cache is None:
            if silence is None:
                silence = encoder_hidden_states.new_zeros(1, 1, encoder_hidden_states.shape[2])
            still = torch.full_like(timestep, CONTEXT_TIMESTEP)
            text = silence.to(encoder_hidden_states).expand(len(hidden_states), -1, -1)
            context_stream = self._stream(of_context, still, text, image, spreads[1])
            if fill:
                assert cache is not None
                self._fill(cache, context, context_stream, shape)
                return (given,)
        stream = self._stream(rotary, timestep, encoder_hidden_states, image, spreads[0])
        if cache is None:
            target = self._both(target, context, stream, context_stream, shape)
        else:
            target = self._reuse(cache, target, stream, of_context, shape)
        patches = self._head(target, stream.last)
        if stream.spread is not None:
            patches = stream.spread.gather(patches)
        return (self._laid(given, patches, shape),)

    def _spreads(self, shape: Shape) -> tuple[Spread | None, Spread | None]:
        """Of targets and of the context, over the processes if there are several."""
        if self.team is None:
            return None, None
        frames, one = shape[0], shape[1] * (shape[2] // 2)
        return Spread(self.team, (frames - 1) * one), Spread(self.team, (frames + 1) * one)

    def _embed(self, canvas: Tensor) -> Tensor:
        """(B, F rows 2c, D); the context without the noise that its noise channels may carry."""
        channels, half = self.config.out_channels, canvas.shape[-1] // 2
        x = canvas.clone()
        x[:, :channels, :, :, half:] = canvas[:, -channels:, :, :, half:]
        x[:, :channels, 0, :, :half] = canvas[:, -channels:, 0, :, :half]
        tokens: Tensor = self.patch_embedding(x)
        return tokens.flatten(2).transpose(1, 2).contiguous()

    def _stream(
        self,
        rotary: Rotary,
        timestep: Tensor,
        text: Tensor,
        image: Tensor | None,
        spread: Spread | None,
    ) -> _Stream:
        last, time, text, image = self.condition_embedder(timestep, text, image)
        states = text if image is None else torch.cat([image, text], dim=1)
        return _Stream(rotary, states, time.unflatten(1, (6, -1)), last, spread)

    def _both(
        self, target: Tensor, context: Tensor, stream: _Stream, still: _Stream, shape: Shape
    ) -> Tensor:
        """Target and context through all blocks side by side."""
        skip, frames = self._skipped(shape), self._frames(shape)

        def both(block: Any, target: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
            found: list[Tensor] = []
            context = block(
                context,
                still.text,
                still.time,
                Sight(still.rotary, found=found, spread=still.spread),
            )
            seen = tuple(part[:, skip:] for part in found)
            sight = Sight(stream.rotary, seen, frames=frames, spread=stream.spread)
            return block(target, stream.text, stream.time, sight), context

        again = torch.is_grad_enabled() and self.gradient_checkpointing
        for block in self.blocks:
            if again:
                target, context = self._gradient_checkpointing_func(both, block, target, context)
            else:
                target, context = both(block, target, context)
        return target

    def _fill(self, cache: ContextCache, context: Tensor, still: _Stream, shape: Shape) -> None:
        """The context alone through all blocks."""
        skip = self._skipped(shape)
        for block in self.blocks:
            found: list[Tensor] = []
            sight = Sight(still.rotary, found=found, holds=cache.keeping.holds, spread=still.spread)
            context = block(context, still.text, still.time, sight)
            cache.put([part[:, skip:] for part in found])

    def _reuse(
        self, cache: ContextCache, target: Tensor, stream: _Stream, positions: Rotary, shape: Shape
    ) -> Tensor:
        """The target alone through all blocks."""
        skip, frames = self._skipped(shape), self._frames(shape)
        seen_rotary = (positions[0][:, skip:], positions[1][:, skip:])
        for number, block in enumerate(self.blocks):
            seen = cache.get(number) if number == 0 or feature_cache.runs(self) else ()
            sight = Sight(stream.rotary, seen, seen_rotary, frames, spread=stream.spread)
            target = block(target, stream.text, stream.time, sight)
        return target

    def _head(self, target: Tensor, last: Tensor) -> Tensor:
        """(B, (F - 1) m, 4 C) predicted patches."""
        shift, scale = (self.scale_shift_table + last.unsqueeze(1)).chunk(2, dim=1)
        normal = (self.norm_out(target.float()) * (1 + scale) + shift).type_as(target)
        patches: Tensor = self.proj_out(normal)
        return patches

    def _laid(self, given: Tensor, patches: Tensor, shape: Shape) -> Tensor:
        """The canvas with its target predicted."""
        frames, rows, columns = shape
        grid = patches.unflatten(2, (2, 2, -1)).unflatten(1, (frames - 1, rows, columns // 2))
        predicted = grid.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
        out = given.clone()
        out[:, :, 1:, :, : out.shape[-1] // 2] = predicted
        return out

    def _skipped(self, shape: Shape) -> int:
        """Tokens at the beginning of the context that targets do not see."""
        return (shape[0] + 1) * shape[1] * (shape[2] // 2) - seen_tokens(self.mode, shape)

    def _frames(self, shape: Shape) -> int:
        return shape[0] - 1 if self.mode == "one-way-aligned" else 0


def _own(both: tuple[Tensor, Tensor], spreads: tuple[Spread | None, ...]) -> tuple[Tensor, Tensor]:
    """This process's share of targets and context, (B, N, ...) each."""
    one, other = (
        part if spread is None else spread.share(part)
        for part, spread in zip(both, spreads, strict=True)
    )
    return one, other


def _tokens_of(canvas: Tensor) -> Shape:
    """(F, rows, 2 c) of a canvas (B, channels, F, h, 2w)."""
    _, _, frames, height, width = canvas.shape
    if frames < 2 or height % 2 or width % 4:
        raise ShapeError(
            f"canvas of {frames} latent frames of {height} x {width} cells: want two or more, and "
            "halves of whole tokens, 2 x 2 cells each"
        )
    return frames, height // 2, width // 2


def predicted_bytes(transformer: InContextTransformer, canvas: Tensor, keeping: Keeping) -> int:
    """Size of the cache of a canvas, before there is one; of several processes, in each of them.

    Args:
        transformer: In a one-way mode.
        canvas: (B, channels, F, h, 2w), in the dtype of the network.
        keeping: How it is kept.

    Raises:
        ConfigError: Several processes keep keys and values, not states.
    """
    count = 1 if transformer.team is None else transformer.team.count
    check_keeping(keeping, count)
    batch, _, frames, height, width = canvas.shape
    config = transformer.config
    head = config.attention_head_dim
    return cache_bytes(
        len(transformer.blocks),
        seen_tokens(transformer.mode, (frames, height // 2, width // 2)),
        config.num_attention_heads // count * head,
        head,
        kept_dtype(keeping, canvas.dtype),
        keeping.holds,
        batch,
    )


class Context:
    """The context of one canvas, computed once and kept.

    Where a backbone has two transformers it is kept for the one at work, and computed anew for the
    other when that takes over.

    Args:
        keeping: Where and how; not "none".
    """

    def __init__(self, keeping: Keeping) -> None:
        self.keeping = keeping
        self._owner: Any = None
        self._cache: ContextCache | None = None

    def of(self, transformer: Any, inputs: dict[str, Any]) -> ContextCache:
        """The cache for a transformer, filled; inputs are those of `predict`."""
        if self._cache is None or self._owner is not transformer:
            self._cache = None  # its memory goes before more is taken
            canvas, head = inputs["hidden_states"], transformer.config.attention_head_dim
            announce(predicted_bytes(transformer, canvas, self.keeping), self.keeping)
            cache = ContextCache(self.keeping, canvas.dtype, head, canvas.device)
            with feature_cache.aside(transformer):
                transformer(**inputs, cache=cache, fill=True)
            self._owner, self._cache = transformer, cache
        return self._cache


def keep(
    transformer: Any, keeping: Keeping, silence: Tensor | None = None, **inputs: Any
) -> Context | None:
    """The context of a canvas, if the transformer's mode has one and it is to be kept.

    Args:
        transformer: diffusers'.
        keeping: Where and how.
        silence: As in `predict`.
        **inputs: Likewise; of the first only mask and canvas count, of the others the picture's.
    """
    if mode_of(transformer) == "full" or keeping.place == "none":
        return None
    context = Context(keeping)
    context.of(transformer, {**inputs, "silence": silence})
    return context


def predict(
    transformer: Any,
    context: Context | None,
    silence: Tensor | None = None,
    branch: str = "cond",
    **inputs: Any,
) -> Tensor:
    """One pass of a transformer in any mode.

    Args:
        transformer: diffusers'.
        context: Kept from pass to pass over the same canvas; None computes all of it anew.
        silence: (1, L, text) of the empty prompt; None = zeros.
        branch: Of guidance, for a feature cache.
        **inputs: The first four arguments of `InContextTransformer.forward`.

    Returns:
        (B, C, F, h, 2w).
    """
    if mode_of(transformer) != "full":
        inputs |= {"silence": silence}
        if context is not None:
            inputs |= {"cache": context.of(transformer, inputs)}
    if feature_cache.at_work(transformer):
        return feature_cache.predict_each(transformer, branch, inputs)
    found: Tensor = transformer(**inputs, return_dict=False)[0]
    return found
