"""README keeps its promises: two commands on the first screen, and every command parses."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

import dreamactor
from dreamactor.cli import app
from dreamactor.config import from_words
from dreamactor.image import read_image
from dreamactor.training.nano import NanoBaseConfig, NanoTrainConfig
from dreamactor.training.nano_vae import VAETrainConfig

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))
README = PAGES[0].read_text()
CONFIGS = {"nano-vae": VAETrainConfig, "nano": NanoTrainConfig, "nano-base": NanoBaseConfig}


def blocks(text, kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def typed():
    """Commands of `dreamactor` that README says to type, as words."""
    for block in blocks(README, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if line.count('"') % 2 == 0 else []
            if words and words[0].endswith("dreamactor"):
                yield words[1:]


def find(words):
    """The command that words begin with, and what is left of them."""
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words, f"{command.name} wants a command"
        assert words[0] in command.commands, f"no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def test_two_commands_and_a_picture_on_the_first_screen():
    first = README.splitlines()[:25]
    assert any(line.startswith("make demo") for line in first)
    assert any(line.startswith("make test") for line in first)
    assert any(line.startswith("![") for line in first)


def test_make_knows_them():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in PAGES:
        for target in re.findall(r"(?:`|^ *)make (\w+)", page.read_text(), re.MULTILINE):
            assert target in targets, f"{page.name}: make {target}"


@pytest.mark.parametrize("words", typed(), ids=lambda words: " ".join(words[:2]))
def test_every_command_to_type_parses(words):
    command, rest = find(words)
    context = command.make_context(command.name, list(rest))
    if command.name in CONFIGS:
        from_words(CONFIGS[command.name], context.params["settings"] or [])


def test_there_are_commands_to_type():
    assert {words[0] for words in typed()} >= {"animate", "train", "world"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_named_exists(page):
    for name in re.findall(r"`dreamactor ([a-z][a-z -]*)`", page.read_text()):
        words = name.split()
        command = typer.main.get_command(app)
        for word in words:
            assert word in getattr(command, "commands", {}), f"dreamactor {name}"
            command = command.commands[word]


def test_every_option_of_animate_is_in_the_table():
    command, _ = find(["animate"])
    named = set(re.findall(r"^\| `(--[a-z-]+)`", README, re.MULTILINE))
    there = {  # what is on by default is listed as what turns it off
        option
        for parameter in command.params
        for option in (parameter.secondary_opts or parameter.opts)
    }
    assert named <= there
    assert there - named <= {"--backbone", "--help"}, "options that README leaves out"


def test_python_in_readme_compiles_and_names_what_is_there():
    for block in blocks(README, "python"):
        compile(block, "README.md", "exec")
        for name in re.findall(r"dreamactor\.(\w+)", block):
            assert hasattr(dreamactor, name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not link.startswith("http"):
            target = page.parent / link.split("#")[0]
            assert target.exists(), f"{page.name}: {link}"
            if target.suffix == ".png":
                assert read_image(target).shape[1] > 400


def test_folders_of_the_map_exist():
    for name in re.findall(r"^\| `([\w/]+/)`", README, re.MULTILINE):
        assert (ROOT / name).is_dir(), name
