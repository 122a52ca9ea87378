"""What goes from one segment of a long clip to the next, and what keeps it from drifting away.

Every segment is shown the reference in its first frame, and the end of the one before; what that
one got wrong is handed on with it. Remedies (`segments.Guard`), apart from none:

    statistics   each segment's colours are brought to the first one's: mean and spread of each
                 channel, within limits; so is what the next one is shown
    anchor       every fourth segment is shown the reference alone, and faded in over the frames
                 that it would have been shown

Statistics suit a camera that stands still: where the picture's colours are meant to change, they
hold them back.

Legend: B clips, T frames, H x W pixels; values in [-1, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from dreamactor.diffusion.segments import Guard, Segment

MOST = 0.2
"""That a mean is moved by, of the range -1 to 1."""
SPREAD = 1.25
"""Times that a spread grows or shrinks at most."""


class Seams:
    """The frames between segments.

    Args:
        guard: What is done against drift.
        overlap: Generated frames that the next segment is shown again.
    """

    def __init__(self, guard: Guard, overlap: int) -> None:
        self.overlap = overlap
        self._colours = Colours() if guard == "statistics" else None
        self._past: Tensor | None = None  # (B, 3, overlap, H, W)
        self._held: Tensor | None = None  # of them, those that were not given out yet

    def shown(self, segment: Segment) -> Tensor | None:
        """(B, 3, shown, H, W) of what came before, that a segment is shown; None for an anchor."""
        return self._past if segment.shown else None

    def join(self, clip: Tensor, segment: Segment, following: Segment | None) -> Tensor:
        """The frames that are finished now.

        Args:
            clip: (B, 3, T, H, W) as decoded, the reference first.
            segment: That it is of.
            following: What comes next; where that is an anchor, the end is held back.

        Returns:
            (B, 3, n, H, W), each frame of the whole clip once in the end.
        """
        new = clip[:, :, 1 + segment.shown : 1 + segment.shown + segment.new]
        if self._colours is not None:
            new = self._colours.matched(new)
        if self._held is not None:
            both = fade(self._held, new[:, :, : self.overlap])
            new = torch.cat([both, new[:, :, self.overlap :]], dim=2)
            self._held = None
        if not self.overlap:
            return new
        whole = new if self._past is None else torch.cat([self._past, new], dim=2)
        self._past = whole[:, :, -self.overlap :]
        if following is None or following.shown:
            return new
        self._held = self._past
        return new[:, :, : -self.overlap]


class Colours:
    """Those of the first clip, to which later ones are brought."""

    def __init__(self) -> None:
        self._first: tuple[Tensor, Tensor] | None = None  # (B, 3, 1, 1, 1) mean and spread

    def matched(self, clip: Tensor) -> Tensor:
        """The clip (B, 3, T, H, W) in the colours of the first one given.

        Source:
            Reinhard et al. 2001, "Color Transfer between Images"; here channel by channel in RGB.
        """
        over = (2, 3, 4)
        mean, spread = clip.mean(over, keepdim=True), clip.std(over, keepdim=True)
        if self._first is None:
            self._first = mean, spread
            return clip
        scale = (self._first[1] / spread.clamp(min=1e-4)).clamp(1 / SPREAD, SPREAD)
        shift = (self._first[0] - mean).clamp(-MOST, MOST)
        return ((clip - mean) * scale + mean + shift).clamp(-1, 1)


def fade(before: Tensor, after: Tensor) -> Tensor:
    """Frame t of T is (t + 1) / (T + 1) of `after`; both are (B, 3, T, H, W)."""
    frames = before.shape[2]
    part = torch.arange(1, frames + 1).to(before) / (frames + 1)
    return torch.lerp(before, after, part[:, None, None])
