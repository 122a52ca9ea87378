"""Who follows a run while it goes on: a server's page, a test."""

from __future__ import annotations

from dreamactor.image import Rgb


class Watch:
    """Told what a run does. This one does not care.

    What a method raises ends the run, which then leaves neither clip nor record.
    """

    def stage(self, name: str) -> None:
        """A stage of the record's `seconds` begins: "load weights", "describe", "denoise", ..."""

    def plan(self, steps: int) -> None:
        """How many sampling steps the whole clip takes; before the first."""

    def step(self) -> None:
        """One of them was made."""

    def frame(self, picture: Rgb) -> None:
        """The subject's next frame, (H, W, 3), at the backbone's rate and in the result's size."""


UNWATCHED = Watch()
