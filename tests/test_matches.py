"""The loss of matches: labels name the cell that shows the same spot, and the right one wins."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from dreamactor.training.matches import FAR, NOWHERE, match_loss, matching_cells


def _sheet(height: int, width: int) -> torch.Tensor:
    """(h, w, 3) a flat body, 10 cm from cell to cell."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return 0.1 * torch.stack([x, y, torch.zeros_like(x)], dim=-1).float()


def test_a_shifted_body_is_found_where_it_was() -> None:
    """exact: the target is the reference two cells to the right; what left the picture is not."""
    reference = _sheet(4, 6)
    shifted = torch.full_like(reference, math.nan)
    shifted[:, 2:] = reference[:, :4]
    found = matching_cells(torch.stack([reference, shifted, reference])[None])
    cells = torch.arange(24).view(4, 6)
    assert_close(found[0, 0, :, 2:], cells[:, :4])
    assert (found[0, 0, :, :2] == NOWHERE).all()
    assert_close(found[0, 1], cells)


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_what_the_reference_hides_has_no_match(scale: float) -> None:
    """unchanged by: how large the figure is in the picture; half size moves borders only."""
    reference = _sheet(4, 6)
    behind = reference + torch.tensor([0.0, 0.0, 0.5])  # the back of the sheet
    found = matching_cells(scale * torch.stack([reference, behind])[None])
    assert (found == NOWHERE).all()
    nothing = torch.full_like(reference, math.nan)
    assert (matching_cells(torch.stack([nothing, reference])[None]) == NOWHERE).all()
    assert FAR > 20.0


@pytest.mark.parametrize(("frame", "row", "column"), [(0, 0, 0), (5, 3, 2), (7, 2, 7)])
def test_the_right_cell_wins(frame: int, row: int, column: int) -> None:
    """exact: features of one cell of one driven frame agree with those of one reference cell."""
    match = torch.full((1, 8, 4, 8), NOWHERE)
    match[0, frame, row, column] = 3 * 8 + 5
    seek = torch.zeros(1, 2, 2, 4, 4, 2, 2, 3)
    seek[0, frame // 4, row // 2, column // 2, frame % 4, row % 2, column % 2, 1] = 10
    offer = torch.zeros(1, 2, 4, 2, 2, 3)
    offer[0, 1, 2, 1, 1, 1] = 10  # row 3, column 5
    loss = match_loss(seek.flatten(-4), offer.flatten(-3), match, torch.Generator())
    assert loss.item() < 1e-6


def test_knowing_nothing_costs_the_logarithm_of_the_cells() -> None:
    match = torch.zeros(2, 4, 4, 6, dtype=torch.long)
    seek, offer = torch.zeros(2, 1, 2, 3, 4 * 4 * 5), torch.zeros(2, 2, 3, 4 * 5)
    assert_close(match_loss(seek, offer, match, torch.Generator()), torch.tensor(math.log(24.0)))
    nowhere = torch.full_like(match, NOWHERE)
    assert match_loss(seek, offer, nowhere, torch.Generator()).item() == 0
