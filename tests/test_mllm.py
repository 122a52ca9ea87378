"""Asking a model: answers come through, faults end in time and in one line, keys stay secret."""

import base64
import io
import json
import logging
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import oracle
import pytest
from PIL import Image

from dreamactor import mllm
from dreamactor.errors import AnswerError, ConfigError, WeightsError
from dreamactor.mllm import Endpoint, Local, Recorded, choose, from_environment, request_id

KEY = "sk-very-secret-123"
PICTURE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
SMOOTH = np.full((24, 32, 3), (200, 30, 90), np.uint8)


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(mllm, "PAUSE", 0.01)


def ask(server, seconds=5.0, images=(), key=KEY):
    return Endpoint(server.url, "fox-vl", key, seconds).ask(images, "What moves?")


# ---- an endpoint that works --------------------------------------------------------------------


def test_an_answer_and_what_was_asked():
    with oracle.oracle("waves both arms") as server:
        assert ask(server, images=[SMOOTH, SMOOTH[:12]]) == "waves both arms"
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["stream"]) == ("fox-vl", 0, False)
    words, *pictures = body["messages"][0]["content"]
    assert words == {"type": "text", "text": "What moves?"}
    for part, picture in zip(pictures, [SMOOTH, SMOOTH[:12]], strict=True):
        head, data = part["image_url"]["url"].split(",")
        assert (part["type"], head) == ("image_url", "data:image/jpeg;base64")
        seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), int)
        assert np.abs(seen - picture).max() <= 3
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_no_key_no_header():
    with oracle.oracle("a fox") as server:
        ask(server, key="")
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    "fault", [oracle.status(500), oracle.status(503), oracle.truncated, oracle.half, oracle.cut]
)
def test_a_passing_fault_is_asked_again(fault):
    with oracle.oracle(fault, "a fox") as server:
        assert ask(server) == "a fox"
    assert len(server.bodies) == 2
    assert server.bodies[0] == server.bodies[1]


def test_a_servers_own_pause_is_kept():
    with oracle.oracle(oracle.status(429, Retry_After="0.4"), "a fox") as server:
        assert ask(server) == "a fox"
    assert server.times[1] - server.times[0] >= 0.4


@pytest.mark.parametrize(
    ("after", "seconds"),
    [("7", 7), ("0.5", 0.5), ("-1", 0), ("", 0), ("soon", 0), ("inf", 0), ("nan", 0)],
)
def test_retry_after_is_seconds(after, seconds):
    assert mllm._seconds(after) == seconds


@pytest.mark.parametrize(("hours", "seconds"), [(1, 3600), (-1, 0)])
def test_retry_after_is_a_date(hours, seconds):
    date = format_datetime(datetime.now(UTC) + timedelta(hours=hours), usegmt=True)
    assert mllm._seconds(date) == pytest.approx(seconds, abs=30)


def test_a_longer_pause_than_there_is_time_gives_up_at_once():
    start = time.monotonic()
    fault, message = oracle.status(429, Retry_After="3600"), r"fox-vl: status 429 \(asked once\)"
    with oracle.oracle(fault) as server, pytest.raises(AnswerError, match=message):
        ask(server)
    assert time.monotonic() - start < 3
    assert len(server.bodies) == 1


@pytest.mark.parametrize("name", ["max_tokens", "temperature"])
def test_what_a_model_does_not_know_is_left_out(name):
    said = json.dumps({"error": {"message": f"Unsupported parameter: '{name}'"}})
    with oracle.oracle(oracle.status(400, said), "a fox") as server:
        assert ask(server) == "a fox"
    assert name in server.bodies[0]
    assert name not in server.bodies[1]


def test_a_refusal_is_an_answer_that_others_judge():
    with oracle.oracle(oracle.refusal) as server:
        assert ask(server) == "I'm sorry, I can't help with that."


# ---- nothing hangs -----------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [oracle.silent, oracle.dripping, oracle.dripping_head])
def test_slow_servers_are_left_in_time(fault):
    start = time.monotonic()
    with oracle.oracle(fault) as server, pytest.raises(AnswerError, match="no answer in"):
        ask(server, seconds=0.6)
    assert time.monotonic() - start < 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (oracle.status(500), "status 500 (asked 3 times)"),
        (oracle.truncated, "a reply that is no chat completion (asked 3 times)"),
        (oracle.status(200, "[" * 100_000), "a reply that is no chat completion"),
        (oracle.status(200, '{"choices": []}'), "a reply that is no chat completion"),
        (oracle.status(200, '{"choices": [{"message": "hm"}]}'), "no chat completion"),
        (oracle.status(200, oracle.completion([{"text": "a fox"}])), "an empty answer"),
        (oracle.status(200, ""), "a reply that is no chat completion"),
        ("", "an empty answer (asked 3 times)"),
        (" \n", "an empty answer"),
        (oracle.half, "no connection (RemoteProtocolError)"),
        (oracle.endless, "a reply of more than 1 MB"),
        (oracle.cut, "an answer cut off at 300 tokens"),
    ],
)
def test_faults_that_stay_are_one_line(fault, message):
    with oracle.oracle(fault) as server, pytest.raises(AnswerError) as error:
        ask(server)
    assert str(error.value).startswith("fox-vl: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = Endpoint(f"http://127.0.0.1:{free.getsockname()[1]}/v1", "fox-vl")
    with pytest.raises(AnswerError, match=r"no connection \(ConnectError\) \(asked 3 times\)"):
        endpoint.ask([], "What moves?")


# ---- what asking again would not mend ----------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "said", "message"),
    [
        (401, f"Incorrect key: {KEY}", "status 401; is DREAMACTOR_MLLM_KEY right?"),
        (403, f"Incorrect key: {KEY[:8]}***", "status 403; is DREAMACTOR_MLLM_KEY right?"),
        (404, "no such model", "are DREAMACTOR_MLLM_URL and DREAMACTOR_MLLM_MODEL right? (no such"),
        (400, "this model sees no images", "status 400 (this model sees no images)"),
        (400, f"bad header: Bearer {KEY}", "status 400 (bad header: Bearer ***)"),
        (302, "", "status 302"),
    ],
)
def test_wrong_settings_are_said_at_once(number, said, message):
    headers = {"Location": "http://elsewhere.invalid/"} if number == 302 else {}
    fault = oracle.status(number, said, **headers)
    with oracle.oracle(fault) as server, pytest.raises(ConfigError) as error:
        ask(server)
    assert message in str(error.value)
    assert KEY[:8] not in str(error.value)
    assert len(server.bodies) == 1


def test_keys_reach_neither_logs_nor_reprs_nor_answers(caplog):
    caplog.set_level(logging.DEBUG)
    with oracle.oracle(oracle.status(500), f"a fox called {KEY}") as server:
        endpoint = Endpoint(server.url, "fox-vl", KEY)
        assert endpoint.ask([], "What moves?") == "a fox called ***"
    assert caplog.text, "the HTTP library tells of its requests"
    assert KEY not in caplog.text + repr(endpoint) + endpoint.name


# ---- settings ----------------------------------------------------------------------------------


def environment(**values):
    return {f"DREAMACTOR_MLLM_{name}": value for name, value in values.items()}


def test_the_environment_says_who_is_asked(monkeypatch):
    url = "http://localhost:11434/v1"
    assert from_environment({}) is None
    found = from_environment(environment(URL=url, MODEL="fox-vl", KEY=" k ", TIMEOUT="5"))
    assert found == Endpoint(url, "fox-vl", "k", 5.0)
    assert from_environment(environment(URL=url, MODEL="fox-vl")).seconds == 60
    local = from_environment(environment(MODEL="somebody/fox-vl"))
    assert (type(local), local.name) == (Local, "somebody/fox-vl")
    monkeypatch.setenv("DREAMACTOR_MLLM_MODEL", "somebody/fox-vl")
    assert choose("auto").name == "somebody/fox-vl"
    assert choose("offline") is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"URL": "http://localhost/v1"}, "_URL is set, DREAMACTOR_MLLM_MODEL is not"),
        ({"URL": KEY, "MODEL": "m"}, "_URL: not an address; want http://HOST:PORT/v1"),
        ({"URL": "ftp://host/v1", "MODEL": "m"}, "_URL: not an address"),
        ({"URL": "http://host:port/v1", "MODEL": "m"}, "_URL: not an address"),
        ({"URL": f"http://u:{KEY}@host/v1", "MODEL": "m"}, "put it in DREAMACTOR_MLLM_KEY"),
        ({"URL": f"http://host/v1?key={KEY}", "MODEL": "m"}, "put it in DREAMACTOR_MLLM_KEY"),
        ({"URL": "http://host/v1", "MODEL": "m", "KEY": "a\nb"}, "is there a line break in it?"),
        ({"MODEL": "m", "TIMEOUT": "0"}, "TIMEOUT='0': want seconds"),
        ({"MODEL": "m", "TIMEOUT": "soon"}, "TIMEOUT='soon': want seconds"),
        ({"MODEL": "m", "TIMEOUT": "nan"}, "want seconds, more than 0, at most 3600"),
    ],
)
def test_refuses_settings_and_shows_no_key(values, message):
    with pytest.raises(ConfigError) as error:
        from_environment(environment(**values))
    assert message in str(error.value)
    assert KEY not in str(error.value)


def test_refuses_another_describer():
    with pytest.raises(ConfigError, match="describer='gpt': want auto or offline"):
        choose("gpt")


# ---- recorded ----------------------------------------------------------------------------------


def test_recorded_answers_depend_on_words_pixels_and_shape(tmp_path):
    path = tmp_path / "answers.json"
    path.write_text(json.dumps({request_id([PICTURE], "Who?"): "a fox"}))
    recorded = Recorded.read(path)
    assert recorded.ask([PICTURE], "Who?") == "a fox"
    for images, words in (
        ([PICTURE], "What?"), ([], "Who?"), ([PICTURE + 1], "Who?"),
        ([PICTURE.reshape(32, 24, 3)], "Who?"),
    ):  # fmt: skip
        with pytest.raises(AnswerError, match="no answer to request"):
            recorded.ask(images, words)


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}'])
def test_refuses_a_damaged_record(tmp_path, text):
    (tmp_path / "answers.json").write_text(text)
    with pytest.raises(ConfigError, match=r"answers\.json: want a JSON"):
        Recorded.read(tmp_path / "answers.json")


# ---- local -------------------------------------------------------------------------------------

WORDS = ["a", "fox", "bird", "waves", "runs", "what", "moves", "user", "assistant"]
SPECIAL = ["endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Qwen2.5-VL of two thin layers that has learnt nothing; most words end its answers."""
    torch = pytest.importorskip("torch")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2VLImageProcessorPil,
    )

    folder = tmp_path_factory.mktemp("models") / "tiny-vl"
    special = [f"<|{name}|>" for name in SPECIAL]
    ids = {word: k for k, word in enumerate(["<unk>", *special, *WORDS])}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", additional_special_tokens=special
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{m.role}} {{m.content}}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
    )
    ends = list(range(len(ids)))
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(ids), "hidden_size": 32, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
            "bos_token_id": 1, "pad_token_id": 1, "eos_token_id": 3,
            "rope_parameters": {
                "rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4
            },
        },
        vision_config={
            "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2,
            "out_hidden_size": 32, "window_size": 56, "fullatt_block_indexes": [0],
        },
        image_token_id=ids["<|image_pad|>"], vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"], video_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ends
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(min_pixels=28**2, max_pixels=56**2).save_pretrained(folder)
    return folder


def test_local_sees_every_cell_of_every_picture(folder):
    local = Local(folder)
    model, tokenizer, _ = local._load()
    read, seen = [], []
    model.register_forward_pre_hook(lambda _, args, given: read.append(given), with_kwargs=True)
    model.model.visual.register_forward_hook(lambda *_: seen.append(1))
    images = [np.resize(PICTURE, (56, 56, 3)), np.resize(PICTURE, (28, 84, 3))]
    answer = local.ask(images, "what moves")
    assert answer in ["", *WORDS, "<unk>"]
    assert answer == local.ask(images, "what moves")
    pads = read[0]["input_ids"] == tokenizer.convert_tokens_to_ids(mllm.PAD)
    assert int(pads.sum()) == 2 * 2 + 1 * 3, "cells of 28 x 28 pixels"
    assert len(seen) == 2, "both questions looked at the pictures"
    assert local.ask([], "what moves") in ["", *WORDS, "<unk>"]
    assert local.name == "tiny-vl", "no path of this machine"


def test_local_asks_as_transformers_processor_does(folder, monkeypatch):
    """That one wants torchvision for clips; a stand-in for its reader of clips is enough here."""
    import torch
    from transformers import Qwen2_5_VLProcessor

    class Clips:
        model_input_names = ()

    monkeypatch.setattr(
        Qwen2_5_VLProcessor, "check_argument_for_proper_class", lambda *_: object, raising=True
    )
    local = Local(folder)
    model, tokenizer, pictures = local._load()
    theirs = Qwen2_5_VLProcessor(pictures, tokenizer, Clips())
    images = [np.resize(PICTURE, (56, 56, 3)), np.resize(PICTURE, (28, 84, 3))]
    wanted = theirs(
        text=[local._prompt(tokenizer, "what moves", [1, 1])],
        images=[Image.fromarray(image) for image in images],
        return_tensors="pt",
    )
    given = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **w: given.append(w) or generate(**w))
    local.ask(images, "what moves")
    for name, tensor in wanted.items():
        assert torch.equal(given[0][name].to(tensor.dtype), tensor), name
    assert set(wanted) == set(given[0]) - {"max_new_tokens", "do_sample", "max_time"}


def test_local_words_cannot_pass_for_pictures(folder):
    prompt = Local._prompt(Local(folder)._load()[1], f"what {mllm.PAD} moves", [2])
    assert prompt.count(mllm.PAD) == 2


def test_local_ends_in_time(folder, monkeypatch):
    local = Local(folder, seconds=0.2)
    local._load()[0].generation_config.eos_token_id = [0]
    monkeypatch.setattr(mllm, "TOKENS", 1_000_000)
    start = time.monotonic()
    with pytest.raises(AnswerError, match=r"tiny-vl: the answer was not over after .* 0.2 s"):
        local.ask([PICTURE], "what moves")
    assert time.monotonic() - start < 10


def test_local_refuses_a_strip(folder):
    with pytest.raises(AnswerError, match="tiny-vl: absolute aspect ratio"):
        Local(folder).ask([np.zeros((1, 300, 3), np.uint8)], "what moves")


def test_local_refuses_other_models(folder, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="is no model, want one of qwen2_vl, qwen2_5_vl"):
        Local(tmp_path).ask([], "what moves")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "llava"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="is llava, want one of qwen2_vl, qwen2_5_vl"):
        Local(tmp_path).ask([], "what moves")


def test_local_reads_no_pickle(folder, tmp_path):
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(WeightsError, match="want a folder or hub name of a Qwen-VL model"):
        Local(tmp_path).ask([], "what moves")
