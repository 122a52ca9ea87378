"""Where attention should look: places among all tokens; losses that only the right one stills."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from dreamactor.training.guide import (
    Look,
    driver_tokens,
    look_loss,
    reference_tokens,
    spot_loss,
)
from dreamactor.training.matches import NOWHERE

ROWS, COLUMNS = 2, 4  # tokens of a half; cells are twice as many each way


def _one(frame: int, row: int, column: int) -> torch.Tensor:
    """(1, 8, 4, 8) nothing but one cell of one frame has a match: row 3, column 5."""
    match = torch.full((1, 8, 2 * ROWS, 2 * COLUMNS), NOWHERE)
    match[0, frame, row, column] = 3 * 2 * COLUMNS + 5
    return match


@pytest.mark.parametrize(("frame", "row", "column"), [(0, 0, 0), (5, 3, 2), (7, 2, 7)])
def test_places_are_those_of_the_canvas(frame: int, row: int, column: int) -> None:
    """exact: row 3, column 5 is in row 1, column 2 of its half, on frame 0 or one's own."""
    tokens = torch.arange(3 * ROWS * 2 * COLUMNS).view(3, ROWS, 2, COLUMNS)
    match, asked = _one(frame, row, column), (frame // 4, row // 2 * COLUMNS + column // 2)
    for places, wanted in (
        (reference_tokens(match, 2), tokens[0, 1, 0, 2]),
        (driver_tokens(match), tokens[frame // 4 + 1, 1, 1, 2]),
    ):
        assert places.shape == (1, 2, ROWS * COLUMNS, 16)
        known = places != NOWHERE
        assert known.sum() == 1
        assert known[0, asked[0], asked[1]].any()
        assert places[known] == wanted
    alone = reference_tokens(match, 1)
    assert alone[alone != NOWHERE] == 1 * COLUMNS + 2


def test_looking_at_the_right_token_costs_nothing() -> None:
    """exact: 0 if the asked token's query meets that key alone, ln N if all keys are alike."""
    places = reference_tokens(_one(5, 3, 2), 2)
    count = 3 * ROWS * 2 * COLUMNS
    key = torch.zeros(1, 2, count, 4)
    key[:, :, 1 * 2 * COLUMNS + 2, 0] = 40
    query = torch.zeros(1, 2, 2, ROWS * COLUMNS, 4)
    alike = look_loss(Look(query, key), places, torch.Generator())
    assert_close(alike, torch.tensor(math.log(count)))
    query[:, :, 1, 1 * COLUMNS + 1, 0] = 1
    assert look_loss(Look(query, key), places, torch.Generator()).item() < 1e-6
    nowhere = torch.full_like(places, NOWHERE)
    assert look_loss(Look(query, key), nowhere, torch.Generator()).item() == 0


def test_spots_are_read_where_they_are() -> None:
    """exact: one cell of one frame of the driver is a metre off along y; all else is right."""
    surface = torch.randn(1, 2 * 9, 2 * ROWS, 2 * COLUMNS, 3)
    surface[:, :, 0] = math.nan  # a row without a subject
    split = surface.view(1, 2, 9, ROWS, 2, COLUMNS, 2, 3)
    found = torch.zeros(1, 3, ROWS, 2, COLUMNS, 4, 2, 2, 4)
    for half in range(2):
        for frame in range(12):
            shown = split[:, half, max(0, frame - 3)]  # frame 0 stands for four
            spots = shown.permute(0, 1, 3, 2, 4, 5)
            there = torch.where(spots[..., :1].isfinite(), 30.0, -30.0)
            found[:, frame // 4, :, half, :, frame % 4] = torch.cat([spots, there], dim=-1)
    flat = found.nan_to_num(7.0).flatten(5).flatten(3, 4)
    assert [loss.item() for loss in spot_loss(flat, surface)] == [0, pytest.approx(0, abs=1e-9)]
    found[0, 1, 1, 1, 2, 3, 0, 1, 1] += 1
    found[0, 1, 1, 1, 2, 3, 0, 1, 3] = 0  # there or not: one bit of all cells
    flat, seen = found.nan_to_num(7.0).flatten(5).flatten(3, 4), 2 * 3 * 4 * 3 * 8
    spots, outlines = spot_loss(flat, surface)
    assert_close(spots, torch.tensor(1 / (3 * seen)))
    assert_close(outlines, torch.tensor(math.log(2) / (seen / 3 * 4)))
    assert spot_loss(flat, torch.full_like(surface, math.nan))[0].item() == 0
