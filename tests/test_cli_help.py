"""`--help` of every command that takes settings lists all of them."""

import re
import signal
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import get_type_hints

import pytest
import typer.main
from typer.testing import CliRunner

from dreamactor import config
from dreamactor.cli import app
from dreamactor.config import Section, parse


def commands(group, words=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


FOUND = {
    words: command
    for words, command in commands(typer.main.get_command(app))
    if any(parameter.name == "settings" for parameter in command.params)
}


class AskedError(Exception):
    """For a config of a class."""


def taken(words, monkeypatch):
    """The config that a command's settings become, seen where it asks for it."""

    def ask(cls, *_):
        raise AskedError(cls)

    monkeypatch.setattr(config, "from_words", ask)
    monkeypatch.setattr(config, "from_file", ask)
    given = list(words)
    for parameter in FOUND[words].params:
        if parameter.required:
            given += [*(o for o in parameter.opts if o.startswith("--")), "pose"]
    kept = signal.getsignal(signal.SIGTERM)
    try:
        CliRunner().invoke(app, given, catch_exceptions=False)
    except AskedError as asked:
        return asked.args[0]
    finally:
        signal.signal(signal.SIGTERM, kept)
    raise AssertionError(f"{words} asks for no config")


@pytest.mark.parametrize("words", FOUND, ids=" ".join)
def test_help_lists_every_setting_with_its_default(words, monkeypatch):
    """same: the fields of the config that the command takes; typed as listed, their defaults."""
    cls = taken(words, monkeypatch)
    shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "80"}).stdout
    _, _, listed = shown.partition("\nSettings, ")
    rows = dict(re.findall(r"^  ([* ] [\w.]+)=(\S*)(?=  |$)", listed, re.MULTILINE))
    hints, wanted = get_type_hints(cls), set()
    for field in fields(cls):
        kind = hints[field.name]
        required = field.default is MISSING and field.default_factory is MISSING
        wanted.add(key := f"{'* '[not required]} {field.name}{'.key' * (kind is Section)}")
        if required:
            assert rows[key] == "..."
        elif kind is not Section:
            typed = parse(field.name, rows[key], kind)
            if isinstance(typed, Path):  # of the package, by its name in it
                assert str(field.default).endswith(rows[key])
            else:
                assert typed == field.default
    assert set(rows) == wanted
    wide = [line for line in shown.splitlines() if len(line) > 80]
    assert not [line for line in wide if " " in line.strip()]  # one long default stays one word


def test_help_says_what_settings_mean_inherited_ones_too():
    shown = CliRunner().invoke(app, ["train", "rgb", "--help"], env={"COLUMNS": "80"}).stdout
    said = " ".join(shown.split())
    assert "* start=... <path|none> The pose stage's adapter; start=none to go without. " in said
    assert " targets=ff <ff|attention|full> ff (the paper), attention, or full: no " in said
    assert "keeps_mode" not in said


def test_help_without_what_an_extra_brings(monkeypatch):
    """refuses: the list alone, and names what is missing."""
    monkeypatch.setitem(sys.modules, "dreamactor.world.export", None)
    done = CliRunner().invoke(app, ["world", "export", "--help"])
    assert done.exit_code == 0
    assert "--cast" in done.stdout
    assert "Settings are listed where dreamactor.world.export is installed." in done.stdout
