"""Matches name the cell that shows the same spot of a body."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from dreamactor.training.matches import FAR, NOWHERE, matching_cells


def _sheet(height: int, width: int) -> torch.Tensor:
    """(h, w, 3) a flat body, 10 cm from cell to cell."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return 0.1 * torch.stack([x, y, torch.zeros_like(x)], dim=-1).float()


def test_a_shifted_body_is_found_where_it_was() -> None:
    """exact: the target is the reference two cells to the right; what left the picture is not."""
    reference = _sheet(4, 6)
    shifted = torch.full_like(reference, math.nan)
    shifted[:, 2:] = reference[:, :4]
    found = matching_cells(torch.stack([shifted, reference])[None], reference[None, None])
    cells = torch.arange(24).view(4, 6)
    assert_close(found[0, 0, :, 2:], cells[:, :4])
    assert (found[0, 0, :, :2] == NOWHERE).all()
    assert_close(found[0, 1], cells)


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_what_the_reference_hides_has_no_match(scale: float) -> None:
    """unchanged by: how large the figure is in the picture; half size moves borders only."""
    reference = _sheet(4, 6)
    behind = reference + torch.tensor([0.0, 0.0, 0.5])  # the back of the sheet
    found = matching_cells(scale * behind[None, None], scale * reference[None, None])
    assert (found == NOWHERE).all()
    nothing = torch.full_like(reference, math.nan)
    assert (matching_cells(reference[None, None], nothing[None, None]) == NOWHERE).all()
    assert FAR > 20.0


def test_each_frame_has_its_own_picture() -> None:
    """exact: the first frame is matched with the first picture only, the second with the second."""
    body = _sheet(4, 6)
    found = matching_cells(torch.stack([body, body])[None], torch.stack([body, body.flip(1)])[None])
    cells = torch.arange(24).view(4, 6)
    assert torch.equal(found[0], torch.stack([cells, cells.flip(1)]))
