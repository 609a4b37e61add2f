"""Large files as they arrive: straight to disk, counted, given up when they grow or stall."""

from __future__ import annotations

import asyncio
from pathlib import Path

from starlette.requests import Request

from variegate.errors import ImagesError, NoSpace

AT_ONCE = asyncio.Semaphore(4)
PATIENCE = 60.0  # seconds without a byte


class TooLarge(Exception):
    """More came than is taken; says how much that is."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self.most = most

    def __str__(self) -> str:
        return f"{self.most / 1e9:.2g} GB" if self.most >= 1e9 else f"{self.most / 1e6:.0f} MB"


async def receive(request: Request, file: Path, *, most: int) -> int:
    """Write a request's body to a file and return its size.

    Raises: TooLarge; ImagesError when it stalls; NoSpace when it cannot be written;
    ClientDisconnect.
    """
    claimed = request.headers.get("content-length", "0")
    if claimed.isdigit() and int(claimed) > most:
        raise TooLarge(most)
    size = 0
    async with AT_ONCE:
        try:
            file.parent.mkdir(exist_ok=True)
            with file.open("wb") as out:
                stream = request.stream().__aiter__()
                while True:
                    try:
                        chunk = await asyncio.wait_for(anext(stream), PATIENCE)
                    except StopAsyncIteration:
                        return size
                    except TimeoutError as error:
                        raise ImagesError("nothing came for a minute; send it again") from error
                    size += len(chunk)
                    if size > most:
                        raise TooLarge(most)
                    out.write(chunk)
        except OSError as error:
            raise NoSpace(f"the file cannot be kept: {error.strerror or error}") from error
