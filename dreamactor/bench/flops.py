"""Floating-point operations of a pass, by counting: matrix products, convolutions, attention.

A multiplication and an addition are two. Norms, activations and rotations are left out, as torch's
own counter leaves them out, to which `tests/test_bench_speed.py` holds these numbers.

Legend as of `backbones.shapes`. One clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from dreamactor.backbones.animate2 import SKIPPED
from dreamactor.backbones.catalogue import CacheHolds, Mode
from dreamactor.backbones.layers import STRIDE_T
from dreamactor.backbones.shapes import PATCH, Blocks, JointNetwork, Network, Size

STYLE, MOTION, HIDDEN, PARTS = 512, 20, 1024, 4  # Wan-Animate's encoders of a face
BLUR, PADDED = 16, 3  # taps of the blur before a convolution of stride 2; of one over time
GLYPHS, REFINED = 2048, 4  # HunyuanVideo-1.5: channels after ByT5; a refiner's ffn over its width


def plain(network: Network, size: Size) -> int:
    """Image-to-video: a clip by itself."""
    return _all_see_all(network, size.latent_frames * size.frame_tokens)


def full(network: Network, size: Size) -> int:
    """The whole canvas, every token seeing every token."""
    return _all_see_all(network, 2 * size.latent_frames * size.frame_tokens)


def one_way(network: Network, size: Size, mode: Mode, holds: CacheHolds | None) -> int:
    """A pass in a one-way mode.

    Args:
        network: Shape.
        size: Of a half.
        mode: Which.
        holds: What is kept of the context; None = it is computed anew.
    """
    frames, one = size.latent_frames, size.frame_tokens
    target, seen = (frames - 1) * one, (frames + 1) * one
    if mode == "one-way-aligned":  # reference and own time; keys of frame 0 are not seen
        keys, seen = target + 2 * one, frames * one
    else:
        keys = target + seen
    projected = seen if holds == "states" else 0
    found = _embedding(network, 2 * frames * one) + _conditions(network)
    found += network.layers * _block(network, target, keys, projected) + _head(network, target)
    if holds is None:
        found += _conditions(network) + _context(network, size)
    return found


def filling(network: Network, size: Size) -> int:
    """The context alone, once a segment."""
    canvas = 2 * size.latent_frames * size.frame_tokens
    return _embedding(network, canvas) + _conditions(network) + _context(network, size)


def animate(network: Network, size: Size) -> int:
    """Wan-Animate: a clip with its reference as one more frame, added poses, and a face."""
    frames, one = size.latent_frames, size.frame_tokens
    tokens, width = (frames + 1) * one, network.width
    poses = _dense(frames * one, PATCH**2 * network.channels, width)
    seen = (frames + 1) * (PARTS + 1)
    look = 2 * _dense(tokens, width, width) + 2 * _dense(seen, width, width)
    look += 4 * tokens * (PARTS + 1) * width
    looks = network.layers // network.every
    return _all_see_all(network, tokens) + poses + looks * look + _face(network, size.frames)


def animate_2(network: Network, size: Size, passes: int) -> int:
    """Wan-Animate-2's step, keys and values of the driving clip kept.

    Pairs of tokens are those that see each other; the blocks of 128 that its kernel goes by have a
    few more. A second pass, without the prompt, leaves a block out.
    """
    frames, one = size.latent_frames, size.frame_tokens
    tokens = (frames + 1) * one
    block = _block(network, tokens, tokens) + 4 * frames * one * one * network.width
    once = _embedding(network, tokens) + _conditions(network) + _head(network, tokens)
    skipped = (passes - 1) * (network.layers > SKIPPED)
    return passes * (once + network.layers * block) - skipped * block


def training(network: Network, size: Size, mode: Mode, rank: int, checkpoint: bool) -> int:
    """A step over one example: forward, again for what was not kept, and backward.

    The transformer is frozen and has an adapter on its feed-forward layers. Nothing goes back to
    what no trained number comes before: embeddings, text, and the first block's attention. Where
    scores of attention go back they are computed anew: five products for the forward pass's two.

    Args:
        network: Shape.
        size: Of a half.
        mode: Of attention.
        rank: Of the adapter.
        checkpoint: Whether the blocks' activations are computed twice.
    """
    frames, one = size.latent_frames, size.frame_tokens
    aligned, whole = mode == "one-way-aligned", mode == "full"
    target, context = (frames - 1) * one, 0 if whole else (frames + 1) * one
    target = 2 * frames * one if whole else target
    keys = target + (2 * one if aligned else context)
    width, count = network.width, network.layers
    adapter = _beside(network, rank, target) + _beside(network, rank, context)
    block = _block(network, target, keys) + adapter
    block += 0 if whole else _block(network, context, context)
    passes = 2 if checkpoint else 1
    found = _embedding(network, 2 * frames * one) + _head(network, target)
    found += (1 if whole else 2) * _conditions(network) + passes * count * block
    found += _head(network, target) + count * _fed_back(network, rank, target)
    found += (count - 1) * _attention_back(network, target, keys)
    found -= _spared(network, rank, target)
    if not whole:  # the last block's context is seen, and goes nowhere itself
        found += (count - 1) * _fed_back(network, rank, context)
        found += max(0, count - 2) * _attention_back(network, context, context)
        found += (count > 1) * 2 * _dense(context, width, width)
        found -= (count > 1) * _spared(network, rank, context)
    return found


def joint_training(network: JointNetwork, size: Size, rank: int, checkpoint: bool) -> int:
    """As `training`, of HunyuanVideo-1.5, whose adapter is on the video's layers alone.

    Text and picture go through layers of their own in every block. What they are after the first
    hangs on nothing that learns, and after the last nothing hangs on what they are.
    """
    video, beside = 2 * size.latent_frames * size.frame_tokens, network.beside
    width, count = network.width, network.layers
    block = _joint_block(network, video) + _beside(network, rank, video)
    head = _dense(video, width, network.channels)
    found = _dense(video, 2 * network.channels + 1, width) + _joint_conditions(network)
    found += (2 if checkpoint else 1) * count * block + _dense(1, width, 2 * width) + 2 * head
    found += count * _fed_back(network, rank, video) - _spared(network, rank, video)
    found += (count - 1) * (4 * _dense(video, width, width) + 10 * (video + beside) ** 2 * width)
    through = 4 * _dense(beside, width, width) + _dense(beside, width, network.ffn, width)
    return found + max(0, count - 2) * through


def _joint_block(network: JointNetwork, video: int) -> int:
    """A block over the video's tokens and those beside."""
    tokens, width = video + network.beside, network.width
    levels = 2 * _dense(1, width, 6 * width)  # of noise: shifts, scales and gates
    layers = 4 * _dense(tokens, width, width) + _dense(tokens, width, network.ffn, width)
    return levels + layers + 4 * tokens**2 * width


def _joint_conditions(network: JointNetwork) -> int:
    """Noise level, text, which its refiner goes over first, and picture, once a pass."""
    width = network.width
    (words, word), (glyphs, glyph), (patches, patch) = network.words, network.glyphs, network.image
    found = 2 * _dense(1, 256, width, width)  # the refiner has its own
    found += _dense(1, word, width, width) + _dense(words, word, width)
    refiner = 4 * _dense(words, width, width) + 4 * words**2 * width
    refiner += _dense(words, width, REFINED * width, width) + _dense(1, width, 2 * width)
    found += network.refiners * refiner
    found += _dense(glyphs, glyph, GLYPHS, GLYPHS, width)
    return found + _dense(patches, patch, patch, width)


def _beside(network: Blocks, rank: int, tokens: int) -> int:
    """The adapter of a block, forward."""
    width, ffn = network.width, network.ffn
    return _dense(tokens, width, rank, ffn) + _dense(tokens, ffn, rank, width)


def _fed_back(network: Blocks, rank: int, tokens: int) -> int:
    """A block's feed-forward layers, to their inputs, and the adapter's to its weights too."""
    frozen = _dense(tokens, network.width, network.ffn, network.width)
    return frozen + 2 * _beside(network, rank, tokens)


def _spared(network: Blocks, rank: int, tokens: int) -> int:
    """What the first block need not pass back to its feed-forward layer's input."""
    return _dense(tokens, network.width, network.ffn) + _dense(tokens, network.width, rank)


def _attention_back(network: Network, tokens: int, keys: int) -> int:
    """Both attentions of a block; text and picture themselves get nothing."""
    read = network.text[0] + (network.image[0] if network.image else 0)
    return 6 * _dense(tokens, network.width, network.width) + (
        10 * tokens * (keys + read) * network.width
    )


def _dense(tokens: int, *widths: int) -> int:
    """Matrix products from width to width."""
    return 2 * tokens * sum(a * b for a, b in pairwise(widths))


def _all_see_all(network: Network, tokens: int) -> int:
    blocks = network.layers * _block(network, tokens, tokens)
    return _embedding(network, tokens) + _conditions(network) + blocks + _head(network, tokens)


def _context(network: Network, size: Size) -> int:
    tokens = (size.latent_frames + 1) * size.frame_tokens
    return network.layers * _block(network, tokens, tokens)


def _embedding(network: Network, tokens: int) -> int:
    channels = 2 * network.channels + STRIDE_T
    return _dense(tokens, PATCH**2 * channels, network.width)


def _head(network: Network, tokens: int) -> int:
    return _dense(tokens, network.width, PATCH**2 * network.channels)


def _conditions(network: Network) -> int:
    """Noise level, text and picture, once a pass."""
    width = network.width
    found = _dense(1, 256, width, width, 6 * width)
    found += _dense(network.text[0], network.text[1], width, width)
    if network.image is not None:
        tokens, channels = network.image
        found += _dense(tokens, channels, channels, width)
    return found


def _block(network: Network, tokens: int, keys: int, projected: int = 0) -> int:
    """A block over tokens that see `keys`, of which some are projected from states beside."""
    width = network.width
    read = network.text[0] + (network.image[0] if network.image else 0)
    own = 4 * _dense(tokens, width, width) + 2 * _dense(projected, width, width)
    across = 2 * _dense(tokens, width, width) + 2 * _dense(read, width, width)
    pairs = 4 * tokens * (keys + read) * width
    return own + across + pairs + _dense(tokens, width, network.ffn, width)


def _face(network: Network, frames: int) -> int:
    """Wan-Animate's encoders: of T faces, then along time."""
    each = sum(_convolutions(network)) + _dense(1, *[STYLE] * 5, MOTION)
    each += 2 * MOTION * MOTION * STYLE
    half = (frames - 1) // 2 + 1
    quarter = (half - 1) // 2 + 1
    along = _dense(frames, PADDED * STYLE, PARTS * HIDDEN)
    along += PARTS * _dense(half + quarter, PADDED * HIDDEN, HIDDEN)
    return frames * each + along + PARTS * _dense(quarter, HIDDEN, network.width)


def _convolutions(network: Network) -> Iterator[int]:
    """Of the motion encoder, one face."""
    side, channels = network.face, network.face_channels
    yield _dense(side**2, 3, channels[side])
    while side > 4:
        one, two = channels[side], channels[side // 2]
        yield _dense(side**2, 9 * one, one)
        yield 2 * BLUR * one * ((side + 1) ** 2 + (side - 1) ** 2)
        yield _dense((side // 2) ** 2, 9 * one, two) + _dense((side // 2) ** 2, one, two)
        side //= 2
    yield _dense(1, 16 * channels[4], STYLE)
