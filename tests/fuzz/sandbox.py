"""A directory that the code under test may write in, and a watch that sees it write anywhere else.

The watch is Python's audit hook: it sees every file that Python opens, makes, renames, links or removes, by whatever
path. C code of libraries is not seen; none of it that a surface reaches opens files.
"""

# ruff: noqa: PTH100, PTH115, PTH118, PTH208 -- this runs for every file of every input, and must not follow links

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PATHS = {  # which arguments of an audit event are paths that are changed, each with that of its directory's descriptor
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.link": ((0, 2), (1, 3)),
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.rmdir": ((0, 1),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "shutil.rmtree": ((0, None),),
}
DIRECTORY = "PHAUL_FUZZ_DIRECTORY"  # in the environment: where to make it; whoever sets this cleans up
FORBIDDEN = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen"}
DESCRIPTORS_MORE = 32  # than after the first inputs: what an input opens, its end closes
MEMORY_MORE_BYTES = 384 << 20  # likewise


class OutsideError(BaseException):
    """The code under test touched what it must not. No `except Exception` may swallow it."""


class Sandbox:
    """One directory in memory, with `images` four levels down, so that `..` has somewhere to go."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="phaul-fuzz-", dir=os.environ.get(DIRECTORY, "/dev/shm"))).resolve()
        self.work = self.root / "a" / "b" / "c"
        self.images = self.work / "images"
        self._allowed = [f"{self.work}"]
        self._beside: list[Path] = []
        self._seen: list[str] = []
        self._watching = False
        self._baseline: tuple[int, int] | None = None
        self._inputs = 0
        self.reset()
        sys.addaudithook(self._audit)

    def reset(self) -> None:
        """Empty it."""
        watching, self._watching = self._watching, False
        if any(self.root.iterdir()):
            shutil.rmtree(self.root / "a")
        self.images.mkdir(parents=True, mode=0o700)
        self._watching = watching

    def beside(self, name: str) -> Path:
        """A directory that lasts, for what a surface needs. It may be written in, too."""
        path = self.root.with_name(f"{self.root.name}-{name}")
        path.mkdir(mode=0o700)
        self._allowed.append(f"{path}")
        self._beside.append(path)
        return path

    def remove(self) -> None:
        """Nothing of it stays."""
        self._watching = False
        for path in (self.root, *self._beside):
            shutil.rmtree(path, ignore_errors=True)

    def begin(self) -> None:
        """An input begins: from now on every write is looked at."""
        self._seen.clear()
        self._watching = True

    def stop(self) -> None:
        """Nothing is looked at from now on."""
        self._watching = False

    def end(self) -> None:
        """It has ended. Raises `OutsideError` for what was touched outside of `work`, and for what it kept."""
        self._watching = False
        if self._seen:
            raise OutsideError(f"outside of its directory: {self._seen[0]}")
        above = [*self.root.iterdir(), *(self.root / "a").iterdir(), *(self.root / "a" / "b").iterdir()]
        if len(above) != 3:
            raise OutsideError(f"beside its directory: {above}")
        self._inputs += 1
        if self._inputs % 256 == 0:
            self._look_at_leaks()

    def used_bytes(self) -> int:
        """What the files below `work` take."""
        return sum(path.stat().st_blocks * 512 for path in self.work.rglob("*") if path.is_file())

    def _look_at_leaks(self) -> None:
        descriptors = len(os.listdir("/proc/self/fd"))
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        if self._baseline is None:
            self._baseline = (descriptors, resident)
        if descriptors > self._baseline[0] + DESCRIPTORS_MORE:
            raise OutsideError(f"{descriptors} descriptors are open, at first there were {self._baseline[0]}")
        if resident > self._baseline[1] + MEMORY_MORE_BYTES:
            raise OutsideError(f"{resident >> 20} MiB are resident, at first there were {self._baseline[1] >> 20}")

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching:
            return
        if event in FORBIDDEN:
            self._complain(f"{event} {arguments!r:.200}")
        elif event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITES:
                self._look(event, path)
        elif event in PATHS:
            for path, directory in PATHS[event]:
                within = arguments[directory] if directory is not None else -1
                above = os.readlink(f"/proc/self/fd/{within}") if within >= 0 else ""
                self._look(event, arguments[path], above)

    def _look(self, event: str, path: Any, above: str = "") -> None:
        if isinstance(path, int):
            return
        # Not `resolve`: a link that leads out is a finding when it is made, and this is called for every file.
        absolute = os.path.abspath(os.path.join(above, os.fsdecode(path)))
        if absolute != os.devnull and not any(absolute.startswith(each) for each in self._allowed):
            self._complain(f"{event} {absolute}")

    def _complain(self, what: str) -> None:
        self._seen.append(what)
        raise OutsideError(what)
