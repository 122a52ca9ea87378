"""In-context attention in one direction: equal to a masked network, with and without a cache."""

import logging
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import wan_folder
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch.testing import assert_close

from dreamactor.backbones import attention
from dreamactor.backbones.attention import attend, attend_by_frame, attend_lse, merge
from dreamactor.backbones.catalogue import Keeping
from dreamactor.backbones.context_cache import ContextCache, announce, cache_bytes
from dreamactor.backbones.incontext import (
    Context,
    check_mode,
    join,
    mode_of,
    predict,
    predicted_bytes,
    seen_tokens,
    set_mode,
    split,
)
from dreamactor.conditioning.canvas import reference_half
from dreamactor.diffusion.flow import schedule
from dreamactor.diffusion.sampler import guided, sample_euler
from dreamactor.errors import ShapeError, WeightsError

ONE_WAY = ("one-way", "one-way-aligned")
B, C, FRAMES, ROWS, COLUMNS = 2, 16, 4, 2, 6
SHAPE = (FRAMES, ROWS, COLUMNS)
HALF = COLUMNS  # cells: 2 a token, and half the tokens
CLOSE = {"atol": 1e-5, "rtol": 1e-5}

pytestmark = pytest.mark.usefixtures("one_thread")


def draws(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(mode, clip=False, layers=3):
    transformer = wan_folder.transformer(5, clip, layers)
    set_mode(transformer, mode)
    return transformer.requires_grad_(False)


def asked(clip=False, seed=0, text=512):
    """Arguments of one pass over a canvas of two clips."""
    image = draws(B, 5, wan_folder.CLIP_WIDTH, seed=seed + 1) if clip else None
    return {
        "hidden_states": draws(B, 2 * C + 4, FRAMES, 2 * ROWS, 2 * COLUMNS, seed=seed),
        "timestep": torch.tensor([900.0, 300.0]),
        "encoder_hidden_states": draws(B, text, wan_folder.TEXT_WIDTH, seed=seed + 2),
        "encoder_hidden_states_image": image,
    }


def silence():
    return draws(1, 512, wan_folder.TEXT_WIDTH, seed=9)


# ---- the masked reference: one sequence, a mask, a timestep and a text for every token -----------


def seen_by(mode):
    """(N, N): whether token i (row) sees token j, written down token by token."""
    places = [
        (f, c >= COLUMNS // 2) for f in range(FRAMES) for _ in range(ROWS) for c in range(COLUMNS)
    ]

    def sees(one, other):
        (time, motion), (time_other, motion_other) = one, other
        if mode == "full":
            return True
        if motion or time == 0:
            return motion_other or time_other == 0
        return mode == "one-way" or not motion_other or time == time_other

    return torch.tensor([[sees(one, other) for other in places] for one in places])


class Masked(WanAttnProcessor):
    """diffusers' processor with a mask."""

    def __init__(self, mask):
        super().__init__()
        self.mask = mask

    def __call__(self, attn, hidden_states, text=None, mask=None, rotary_emb=None):
        return super().__call__(attn, hidden_states, text, self.mask, rotary_emb)


class TwoTexts(WanAttnProcessor):
    """Some tokens read another text."""

    def __init__(self, context, others):
        super().__init__()
        self.context, self.others = context, others

    def __call__(self, attn, hidden_states, text=None, mask=None, rotary_emb=None):
        prompt = super().__call__(attn, hidden_states, text)
        pictures = text[:, : text.shape[1] - 512]
        silent = torch.cat([pictures, self.others.expand(len(text), -1, -1)], dim=1)
        other = super().__call__(attn, hidden_states, silent)
        return torch.where(self.context[:, None], other, prompt)


def by_mask(transformer, mode, inputs, silent):
    """The same by diffusers' own forward, of a network in mode full."""
    motion = torch.arange(COLUMNS) >= COLUMNS // 2
    first = torch.arange(FRAMES) == 0
    context = (motion[None, None] | first[:, None, None]).expand(SHAPE)  # (F, rows, 2c)
    cells = context.repeat_interleave(2, 1).repeat_interleave(2, 2)
    x = inputs["hidden_states"].clone()
    x[:, :C] = torch.where(cells, x[:, -C:], x[:, :C])
    flat = context.flatten()
    embedded = transformer.condition_embedder.text_embedder(silent)
    for block in transformer.blocks:
        block.attn1.set_processor(Masked(seen_by(mode)))
        block.attn2.set_processor(TwoTexts(flat, embedded))
    times = torch.where(flat, 0.0, inputs["timestep"][:, None])
    found = transformer(**inputs | {"hidden_states": x, "timestep": times}, return_dict=False)[0]
    return torch.where(cells, x[:, :C], found)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("mode", ONE_WAY)
def test_equals_a_masked_network(mode, clip):
    """same: diffusers' forward over all tokens with a mask, by way of no gradient and of one."""
    inputs = asked(clip)
    expected = by_mask(network("full", clip), mode, inputs, silence())
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            found = predict(network(mode, clip), None, silence(), **inputs)
        assert_close(found, expected, **CLOSE)
    for other in {"full", *ONE_WAY} - {mode}:
        differs = by_mask(network("full", clip), other, inputs, silence()) - expected
        assert differs.abs().max() > 1e-3


@pytest.mark.parametrize("holds", ["keys", "states"])
@pytest.mark.parametrize("place", ["device", "host"])
@pytest.mark.parametrize("mode", ONE_WAY)
def test_kept_equals_computed_anew(mode, place, holds):
    """same: at other noise, noise level and text than those the cache was filled at."""
    transformer, context = network(mode, clip=True), Context(Keeping(place, "auto", holds))
    inputs = asked(clip=True)
    with torch.no_grad():
        for seed, time in ((1, 999.0), (2, 500.0), (3, 1.0)):
            x = inputs["hidden_states"].clone()
            x[:, :C] = draws(B, C, *x.shape[2:], seed=seed)
            text = draws(B, 512, wan_folder.TEXT_WIDTH, seed=10 + seed)
            step = inputs | {"hidden_states": x, "encoder_hidden_states": text}
            step["timestep"] = torch.tensor([time, time / 2])
            kept = predict(transformer, context, silence(), **step)
            assert_close(kept, predict(transformer, None, silence(), **step), **CLOSE)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("mode", ONE_WAY)
def test_a_sample_is_the_same_with_one_cache_for_all_steps_and_branches(mode, guidance):
    """same: six Euler steps of two clips; the cache is filled once."""
    transformer, inputs = network(mode), asked()
    filled = []

    def sample(context):
        def velocity(text, x, sigma):
            canvas = torch.cat([x, inputs["hidden_states"][:, C:]], dim=1)
            step = {"hidden_states": canvas, "timestep": sigma.expand(B) * 1000}
            return predict(transformer, context, **step, encoder_hidden_states=text)

        said = partial(velocity, inputs["encoder_hidden_states"])
        unsaid = partial(velocity, torch.zeros(1, 1, wan_folder.TEXT_WIDTH).expand(B, -1, -1))
        with torch.no_grad():
            noise = inputs["hidden_states"][:, :C]
            return sample_euler(guided(said, unsaid, guidance), noise, schedule(6, 3.0))

    expected = sample(None)
    transformer.blocks[0].register_forward_pre_hook(
        lambda _, given: filled.append(given[0].shape[1])
    )
    found = sample(Context(Keeping()))
    assert_close(found, expected, atol=1e-4, rtol=1e-4)
    one = ROWS * COLUMNS // 2
    passes = 6 * (1 if guidance == 1 else 2)
    assert filled == [(FRAMES + 1) * one] + passes * [(FRAMES - 1) * one]


def test_a_training_step_has_the_gradients_of_the_masked_network():
    """same: gradients of every weight, with gradient checkpointing too."""
    inputs = asked()
    for mode in ONE_WAY:
        expected = gradients(mode, inputs, masked=True)
        for again in (False, True):
            for name, value in gradients(mode, inputs, again=again).items():
                assert_close(value, expected[name], atol=1e-5, rtol=1e-4, msg=f"{mode} {name}")


def gradients(mode, inputs, masked=False, again=False):
    transformer = wan_folder.transformer(5, False, 2)
    if again:
        transformer.enable_gradient_checkpointing()
    set_mode(transformer, "full" if masked else mode)
    if masked:
        out = by_mask(transformer, mode, inputs, silence())
    else:
        out = predict(transformer, None, silence(), **inputs)
    target = reference_half(out)[:, :, 1:]
    (target * draws(*target.shape, seed=4)).sum().backward()
    return {name: p.grad for name, p in transformer.named_parameters()}


@pytest.mark.parametrize("mode", ONE_WAY)
def test_compiled_blocks_are_one_graph_each(mode):
    """same: `compile_repeated_blocks`, without a break in a block, as training uses it."""
    inputs = asked()
    plain, compiled = network(mode, layers=2), network(mode, layers=2)
    compiled.compile_repeated_blocks(backend="aot_eager", fullgraph=True)
    assert_close(predict(compiled, None, **inputs), predict(plain, None, **inputs), **CLOSE)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # diffusers' too
@pytest.mark.parametrize("mode", ONE_WAY)
def test_autocast_as_in_training(mode):
    """same: bfloat16 where autocast wants it, with gradients and (merged) without."""
    transformer, inputs = network(mode), asked()
    exact = predict(transformer, None, **inputs)
    for grad in (True, False):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
            found = predict(transformer, None, **inputs)
        error = float((found - exact).norm() / exact.norm())
        assert 0 < error < 0.005  # measured .0025


# ---- who knows what ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ONE_WAY)
def test_the_context_knows_neither_noise_nor_level_nor_prompt(mode):
    """unchanged by: all that differs between steps and branches; to the last bit."""
    transformer, inputs = network(mode, clip=True), asked(clip=True)
    other = asked(clip=True, seed=40) | {
        key: inputs[key] for key in ("hidden_states", "encoder_hidden_states_image")
    }
    x = inputs["hidden_states"].clone()
    x[:, :C] = draws(B, C, *x.shape[2:], seed=7)
    other |= {"hidden_states": x, "timestep": torch.tensor([1.0, 2.0])}
    caches = [
        Context(Keeping()).of(transformer, given | {"silence": silence()})
        for given in (inputs, other)
    ]
    for block in range(3):
        for one, same in zip(*(cache.get(block) for cache in caches), strict=True):
            assert torch.equal(one, same)


@pytest.mark.parametrize("mode", ONE_WAY)
def test_a_target_frame_sees_which_motion(mode):
    """exact: in one block, of the context before it, the aligned one knows its own time's alone."""
    transformer, inputs = network(mode, layers=1), asked()
    base = predict(transformer, None, **inputs)
    for time in range(FRAMES):
        x = inputs["hidden_states"].clone()
        x[:, C:, time, :, HALF:] += 1
        found = predict(transformer, None, **inputs | {"hidden_states": x})
        changed = (reference_half(found - base)[:, :, 1:] != 0).any(dim=(0, 1, 3, 4))
        expected = [mode == "one-way" or frame == time for frame in range(1, FRAMES)]
        assert changed.tolist() == expected


@pytest.mark.parametrize("mode", ONE_WAY)
def test_what_is_given_comes_out_at_the_context_s_places(mode):
    """exact."""
    inputs = asked()
    given, found = inputs["hidden_states"][:, -C:], predict(network(mode), None, **inputs)
    assert torch.equal(found[..., HALF:], given[..., HALF:])
    assert torch.equal(found[:, :, 0], given[:, :, 0])
    assert (found[:, :, 1:, :, :HALF] != given[:, :, 1:, :, :HALF]).all()


def test_splitting_and_joining():
    """exact: the order of tokens, and there and back."""
    tokens = torch.arange(FRAMES * ROWS * COLUMNS).view(1, -1, 1)
    target, context = split(tokens, SHAPE)
    places = [divmod(int(n) % COLUMNS, COLUMNS // 2)[0] for n in context.flatten()]
    one = ROWS * COLUMNS // 2
    assert places == [1] * one + [0] * one + [1] * (FRAMES - 1) * one
    times = (context.flatten() // (ROWS * COLUMNS)).tolist()
    assert times == [0] * 2 * one + [f for f in range(1, FRAMES) for _ in range(one)]
    assert torch.equal(join(target, context, SHAPE), tokens)


def test_full_is_diffusers_to_the_last_bit():
    """unchanged by: a mode that was set and taken back."""
    inputs, transformer = asked(), wan_folder.transformer(5, False, 2)
    with torch.no_grad():
        expected = transformer(**inputs, return_dict=False)[0]
        assert mode_of(transformer) == "full"
        set_mode(transformer, "one-way")
        assert mode_of(transformer) == "one-way"
        assert not torch.equal(predict(transformer, None, **inputs), expected)
        set_mode(transformer, "full")
        assert torch.equal(predict(transformer, None, **inputs), expected)


@pytest.mark.parametrize("shape", [(1, 4, 12), (4, 3, 12), (4, 4, 10)])
def test_refuses_a_canvas_of_parts_of_tokens(shape):
    inputs = asked() | {"hidden_states": torch.zeros(B, 2 * C + 4, *shape)}
    with pytest.raises(ShapeError, match="want two or more, and halves of whole tokens"):
        predict(network("one-way"), None, **inputs)


# ---- attention in parts --------------------------------------------------------------------------


def parts(dtype=torch.float32):
    """Queries, and two sets of keys and values."""
    shapes = {"query": 6, "key": 5, "value": 5, "key_too": 9, "value_too": 9}
    return [draws(2, n, 3, 8, seed=k).to(dtype) for k, n in enumerate(shapes.values())]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_merged_attention_equals_attention_over_all(dtype, bound):
    """same: as of one softmax, also where one side has nearly all of it."""
    query, key, value, key_too, value_too = parts(dtype)
    for scale in (1, 30):
        expected = attend(
            query, torch.cat([key, scale * key_too], 1), torch.cat([value, value_too], 1)
        )
        found = merge(attend_lse(query, key, value), attend_lse(query, scale * key_too, value_too))
        assert_close(found, expected, atol=bound, rtol=bound)


def test_the_logarithm_of_the_sum_is_that_of_the_definition():
    """same: kernel and definition."""
    query, key, value, _, _ = parts()
    sides = [side.transpose(1, 2) for side in (query, key, value)]
    for found, plain in zip(attend_lse(query, key, value), attention._plain(*sides), strict=True):
        assert_close(found, plain.transpose(1, 2), **CLOSE)
    expected = torch.einsum("bqhd,bkhd->bqhk", query, key).mul(8**-0.5).logsumexp(-1)
    assert_close(attend_lse(query, key, value)[1], expected, **CLOSE)


def test_attention_by_frame_equals_masked_attention():
    """same: frame by frame (with gradients), merged (without), and with a mask."""
    query, key, value, key_own, value_own = parts()
    mask = torch.zeros(6, 14, dtype=torch.bool)
    mask[:, :5] = True
    for frame in range(3):
        mask[2 * frame : 2 * frame + 2, 5 + 3 * frame : 8 + 3 * frame] = True
    sides = [query, torch.cat([key, key_own], 1), torch.cat([value, value_own], 1)]
    expected = F.scaled_dot_product_attention(*(side.transpose(1, 2) for side in sides), mask)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            found = attend_by_frame(query, (key, value), (key_own, value_own), 3)
        assert_close(found, expected.transpose(1, 2), **CLOSE)


# ---- the cache -----------------------------------------------------------------------------------


@pytest.mark.parametrize("holds", ["keys", "states"])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "int8"])
@pytest.mark.parametrize("mode", ONE_WAY)
def test_its_size_is_what_was_said_before(mode, dtype, holds, caplog):
    """exact: against the tensors that are kept, and their storage."""
    transformer, inputs, keeping = network(mode), asked(), Keeping("device", dtype, holds)
    expected = predicted_bytes(transformer, inputs["hidden_states"], keeping)
    announce.cache_clear()
    with caplog.at_level(logging.DEBUG, "dreamactor.backbones"):
        cache = Context(keeping).of(transformer, inputs)
    assert cache.bytes == expected
    stored = [part.untyped_storage().nbytes() for block in cache._blocks for part in block]
    assert sum(stored) == expected
    numbers = 3 * B * seen_tokens(mode, SHAPE) * 24 * (2 if holds == "keys" else 1)
    size = {"auto": 4, "bfloat16": 2, "int8": 1 + 4 / wan_folder.HEAD}[dtype]
    assert expected == numbers * size
    assert f" take {expected / 2**20:.1f} MiB of the device's memory" in caplog.text


def test_a_large_cache_is_announced(caplog):
    """exact: from 1 GiB on; what is smaller is no news."""
    announce.cache_clear()
    with caplog.at_level(logging.INFO, "dreamactor.backbones"):
        for size in ((1 << 30) - 1, 1 << 30):
            announce(size, Keeping("host"))
    assert caplog.messages == ["context cache: keys and values take 1.0 GiB of the host's memory"]


def test_sizes_of_wan_14b():
    """exact: 832x480x81, as docs/fast.md says."""
    shape = (21, 30, 2 * 52)
    assert (seen_tokens("one-way", shape), seen_tokens("one-way-aligned", shape)) == (34320, 32760)
    sizes = {
        (dtype, holds): cache_bytes(40, 34320, 5120, 128, dtype, holds) / 2**30
        for dtype in (torch.bfloat16, torch.int8)
        for holds in ("keys", "states")
    }
    assert [round(size, 1) for size in sizes.values()] == [26.2, 13.1, 13.5, 6.8]


def test_eight_bits_miss_by_half_a_level_at_most():
    """exact bound: 1/254 of the largest number of a token's head."""
    cache = ContextCache(Keeping("device", "int8"), torch.float32, 12, torch.device("cpu"))
    kept = [draws(2, 7, 2, 12, seed=1), 100 * draws(2, 7, 2, 12, seed=2)]
    cache.put(kept)
    for found, exact in zip(cache.get(0), kept, strict=True):
        bound = exact.abs().amax(-1, keepdim=True) / 254
        assert ((found - exact).abs() <= bound * (1 + 1e-5)).all()
        assert not torch.equal(found, exact)


EIGHT_BITS, HALVES = 1e-3, 4e-4
"""Relative error of a pass of three blocks whose context is kept so; measured 2.4e-4 and 9e-5."""


@pytest.mark.parametrize("holds", ["keys", "states"])
@pytest.mark.parametrize(("dtype", "bound"), [("int8", EIGHT_BITS), ("bfloat16", HALVES)])
def test_fewer_bits_change_a_pass_little(dtype, bound, holds):
    transformer, inputs = network("one-way"), asked()
    with torch.no_grad():
        exact = predict(transformer, None, **inputs)
        found = predict(transformer, Context(Keeping("device", dtype, holds)), **inputs)
    target = reference_half(exact)[:, :, 1:]
    error = (reference_half(found)[:, :, 1:] - target).norm() / target.norm()
    assert 0 < error < bound


def test_two_transformers_are_kept_one_at_a_time():
    """exact: the second pushes the first out, and back."""
    first, second, inputs, context = (
        network("one-way"),
        network("one-way", layers=2),
        asked(),
        Context(Keeping()),
    )
    kept = context.of(first, inputs)
    assert context.of(first, inputs) is kept
    assert len(context.of(second, inputs)._blocks) == 2
    assert context.of(first, inputs) is not kept


# ---- files ---------------------------------------------------------------------------------------


def test_weights_name_their_mode(tmp_path):
    """refuses: another mode than the one that is wanted, and one that there is not."""
    path = tmp_path / "transformer.safetensors"
    assert check_mode(path, {}) == "full"
    assert check_mode(path, {"attention": "one-way"}) == "one-way"
    with pytest.raises(WeightsError, match=r"trained with attention 'one-way', want full$"):
        check_mode(path, {"attention": "one-way"}, "full")
    with pytest.raises(WeightsError, match=r"'sideways', want full or one-way or one-way-aligned$"):
        check_mode(path, {"attention": "sideways"})
