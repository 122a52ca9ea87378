"""The prompt of a job before it is handed in, found in a process of its own.

Describing takes seconds and imports what the server does without; where the environment names a
local model, that process loads it. It begins with the first question.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from dreamactor.errors import AnswerError
from dreamactor.mllm import Describer
from dreamactor.studio.intake import Busy

SECONDS = 180.0
"""For one answer, imports and waiting included."""
WAITING = 8
"""Questions at once; more are refused."""

Tell = Callable[[Path, Path, float, float | None, Describer], dict[str, Any]]


def tell(
    reference: Path, driving: Path, start: float, end: float | None, describer: Describer
) -> dict[str, Any]:
    """The three texts of a picture and a part of a clip; see `guidance.describe_files`.

    Raises:
        DreamActorError: The part is too short, or the model that is asked cannot be.
    """
    from dreamactor.conditioning.guidance import describe_files
    from dreamactor.mllm import choose
    from dreamactor.studio.decode import cut

    with tempfile.TemporaryDirectory() as folder:
        if start or end is not None:
            whole, driving = driving, Path(folder, "part.mp4")
            cut(whole, driving, start, end)
        return describe_files(reference, driving, choose(describer)).plain()


class Words:
    """Asks that process; made and used inside the server's event loop."""

    def __init__(self, describer: Describer, tell: Tell = tell) -> None:
        self._describer, self._tell = describer, tell
        self._pool: ProcessPoolExecutor | None = None
        self._waiting = 0

    async def ask(
        self, reference: Path, driving: Path, start: float, end: float | None
    ) -> dict[str, Any]:
        """As `tell`.

        Raises:
            AnswerError: There was none in time.
            Busy: Too many ask.
            DreamActorError: As `tell`.
        """
        if self._waiting >= WAITING:
            raise Busy(f"{self._waiting} prompts are being written; try again")
        self._waiting += 1
        try:
            if self._pool is None:
                from dreamactor.runs import end_with_parent

                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(1, context, end_with_parent)
            asked = self._pool.submit(self._tell, reference, driving, start, end, self._describer)
            return await asyncio.wait_for(asyncio.wrap_future(asked), SECONDS)
        except (TimeoutError, BrokenProcessPool) as error:
            self.close()  # the next question begins another
            raise AnswerError("no prompt could be found; write one, or leave it empty") from error
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the process."""
        if self._pool is None:
            return
        pool, self._pool = self._pool, None
        processes = list(pool._processes.values())  # it has no public way to end who does not end
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
