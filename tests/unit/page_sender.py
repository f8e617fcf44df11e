"""The sending end of the page channel as CRIU's dump speaks it, for tests of the receiving one."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from hypothesis import strategies as st

from phaul.transfer.page_protocol import HEADER, Command, Header, ImageKind, PageFlag, encode

PAGE_BYTES = 512  # any number will do; small ones make many pages cheap


@dataclass(frozen=True)
class Run:
    """A run of pages of one image; `content` is empty where only the pagemap shall know of it."""

    image: int
    address: int
    pages: int
    flags: int
    content: bytes


@dataclass(frozen=True)
class Dump:
    """What one dump sends: an image is opened (an int) before runs of it come."""

    actions: tuple[int | Run, ...]
    close: Command = Command.CLOSE

    def stream(self, layout: struct.Struct = HEADER) -> bytes:
        """All of it as it stands on the wire."""
        return b"".join(self._messages(layout))

    def _messages(self, layout: struct.Struct) -> Iterator[bytes]:
        for action in self.actions:
            if isinstance(action, Run):
                header = Header(Command.ADD_F, action.flags, action.pages, action.address, action.image)
                yield encode(header, layout) + action.content
            else:
                yield encode(Header(Command.OPEN2, 0, 0, 0, action), layout)
        yield encode(Header(self.close, 0, 0, 0, 0), layout)

    @property
    def images(self) -> list[int]:
        """In the order in which they are opened."""
        return [action for action in self.actions if not isinstance(action, Run)]

    def runs(self, image: int) -> list[Run]:
        """The runs of one image in the order on the wire."""
        return [action for action in self.actions if isinstance(action, Run) and action.image == image]

    def pages(self, image: int) -> bytes:
        """What its pages file shall hold."""
        return b"".join(run.content for run in self.runs(image))

    @property
    def answer(self) -> bytes:
        """What a receiver says to it: no parent for each image, and status 0."""
        return b"\0" * (len(self.images) + 4)


IMAGES = st.builds(lambda kind, number: number << 8 | kind, st.sampled_from(ImageKind), st.integers(1, 2**22))
FLAGS = st.sampled_from([PageFlag.PRESENT, PageFlag.PRESENT | PageFlag.LAZY, PageFlag.LAZY])


@st.composite
def dumps(draw: st.DrawFn, most_pages: int = 20) -> Dump:
    """Any dump: several images whose runs alternate, with and without pages."""
    actions: list[int | Run] = []
    opened: list[int] = []
    passed: dict[int, int] = {}  # CRIU goes through each image by ascending address
    for image in draw(st.lists(IMAGES, min_size=1, max_size=3, unique=True)):
        opened.append(image)
        actions.append(image)
        for _ in range(draw(st.integers(0, 3))):
            pages, flags = draw(st.integers(1, most_pages)), draw(FLAGS)
            content = b""
            if flags & PageFlag.PRESENT:
                content = random.Random(draw(st.integers(0, 2**16))).randbytes(pages * PAGE_BYTES)
            target = draw(st.sampled_from(opened))
            address = passed.get(target, 0) + draw(st.sampled_from([0, 1, 2**20])) * PAGE_BYTES
            passed[target] = address + pages * PAGE_BYTES
            actions.append(Run(target, address, pages, int(flags), content))
    return Dump(tuple(actions), draw(st.sampled_from([Command.CLOSE, Command.FORCE_CLOSE])))
