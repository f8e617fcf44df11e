"""Logs as CRIU 4.2.1 wrote them at log level 2 (kernel 6.18, no CAP_SYS_RESOURCE), and what we make of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phaul.criu.log import CAUSES, SHOWN_ERRORS, excerpt, read_excerpt

PATH = Path("/var/lib/phaul/migrations/1/restore.log")
ALWAYS = "Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n"
DUMPING = "Error (criu/cr-dump.c:1975): Dumping FAILED.\n"
RESTORING = "Error (criu/cr-restore.c:2331): Restoring FAILED.\n"

# (log, first error shown, what the cause says, what the hint says)
SEEN = {
    "file removed": (
        " 10020: Error (criu/files-reg.c:2353): Can't open file c/mysleep on restore: No such file or directory\n"
        " 10020: Error (criu/files-reg.c:2267): Can't open file c/mysleep: No such file or directory\n"
        " 10020: Error (criu/mem.c:1467): `- Can't open vma\n"
        + RESTORING
        + "Error (criu/cr-restore.c:1269): 10020 killed by signal 9: Killed\n",
        "Can't open file c/mysleep on restore: No such file or directory",
        "the file /c/mysleep is not there",
        "Copy the file",
    ),
    "file of another size": (
        " 10020: Error (criu/files-reg.c:2175): File c/mysleep has bad size 43434 (expect 43432)\n"
        " 10020: Error (criu/mem.c:1467): `- Can't open vma\n" + RESTORING,
        "File c/mysleep has bad size 43434 (expect 43432)",
        "the file /c/mysleep has another size than on the source",
        "Copy the file",
    ),
    "file of another mode": (
        " 10020: Error (criu/files-reg.c:2294): File c/mysleep has bad mode 0100700 (expect 0100755)\n"
        "File r/w/x checks can be skipped with the --skip-file-rwx-check option\n"
        " 10020: Error (criu/mem.c:1467): `- Can't open vma\n" + RESTORING,
        "File c/mysleep has bad mode 0100700 (expect 0100755)",
        "the file /c/mysleep has another mode than on the source",
        "Copy the file",
    ),
    "PID taken": (
        "Error (criu/cr-restore.c:1237): Can't fork for 10041: File exists\n" + RESTORING,
        "Can't fork for 10041: File exists",
        "a PID that the workload needs is taken",
        "PID namespace",
    ),
    "no session of its own": (
        "Warn  (compel/arch/x86/src/lib/infect.c:419): Will restore 10062 with interrupted system call\n"
        "Error (criu/cr-dump.c:1528): A session leader of 10062(10062) is outside of its pid namespace\n" + DUMPING,
        "A session leader of 10062(10062) is outside of its pid namespace",
        "does not lead its session",
        "setsid",
    ),
    "Unix socket to outside": (
        "Error (criu/sk-unix.c:874): unix: External socket is used. Consider using --ext-unix-sk option.\n" + DUMPING,
        "unix: External socket is used. Consider using --ext-unix-sk option.",
        "connected to a process that does not move",
        "move both ends",
    ),
    "terminal": (
        "Error (criu/tty.c:410): tty: Found slave peer index 0 without correspond master peer\n" + DUMPING,
        "tty: Found slave peer index 0 without correspond master peer",
        "has a terminal open",
        "setsid",
    ),
    "connection since preflight": (
        "Error (criu/sk-inet.c:200): inet: Connected TCP socket, consider using --tcp-established option.\n"
        "Error (criu/cr-dump.c:1545): Dump files (pid: 10105) failed with -1\n" + DUMPING,
        "inet: Connected TCP socket, consider using --tcp-established option.",
        "opened a TCP connection since",
        "Try again",
    ),
    "connection not accepted": (
        "Error (criu/sk-inet.c:185): inet: In-flight connection (l) for 55646\n"
        "Error (criu/sk-inet.c:186): inet: In-flight connections can be ignored with the --skip-in-flight option.\n"
        "Error (criu/cr-dump.c:1545): Dump files (pid: 10122) failed with -1\n" + DUMPING,
        "inet: In-flight connection (l) for 55646",
        "have not been accepted",
        "--drop-unaccepted",
    ),
    "address not there": (
        " 10132: Error (criu/sk-inet.c:1059): inet: Can't bind inet socket (id 11): Cannot assign requested address\n"
        " 10132: Error (criu/files.c:1221): Unable to open fd=3 id=0xb\n" + RESTORING,
        "inet: Can't bind inet socket (id 11): Cannot assign requested address",
        "not local on this host",
        "--address",
    ),
    "image directory full": (
        "Error (criu/page-xfer.c:263): page-xfer: Unable to spice data: No space left on device\n"
        "Error (criu/bfd.c:131): bfd: Error flushing image: No space left on device\n"
        "Error (criu/mem.c:718): Can't dump page with parasite\n"
        "Error (criu/bfd.c:131): bfd: Error flushing image: No space left on device\n" + DUMPING,
        "page-xfer: Unable to spice data: No space left on device",
        "the image directory is full",
        "Free memory",
    ),
    "page channel broken": (
        "Error (criu/page-xfer.c:191): page-xfer: Can't write pages to socket: Broken pipe\n"
        "Error (criu/mem.c:718): Can't dump page with parasite\n"
        "Error (criu/page-xfer.c:150): page-xfer: Can't send PSI 4131 to server: Broken pipe\n" + DUMPING,
        "page-xfer: Can't write pages to socket: Broken pipe",
        "the page channel broke",
        "network between the two hosts",
    ),
    "process of another user": (
        "Error (criu/cr-dump.c:389): Can't get rlimit 0: Operation not permitted\n"
        "Error (criu/cr-dump.c:1584): Dump core (pid: 10181) failed with -1\n" + DUMPING,
        "Can't get rlimit 0: Operation not permitted",
        "CAP_SYS_RESOURCE",
        "capability",
    ),
    "image missing": (
        "Error (criu/protobuf.c:72): Unexpected EOF on (empty-image)\n" + RESTORING,
        "Unexpected EOF on (empty-image)",
        "an image is missing",
        "",
    ),
}


@pytest.mark.parametrize(("log", "first", "cause", "hint"), SEEN.values(), ids=SEEN.keys())
def test_a_log_is_told_in_words(log: str, first: str, cause: str, hint: str) -> None:
    found = excerpt(ALWAYS + log, PATH)
    assert found.errors[0] == first
    assert cause in found.cause
    assert hint in found.hint
    assert found.detail().endswith(f"log: {PATH}")
    assert not any("FAILED" in error or "RLIMIT" in error for error in found.errors)


def test_time_and_task_before_the_error_are_left_out() -> None:
    found = excerpt("(00.012345)  1234: Error (criu/files.c:1221): Unable to open fd=3 id=0xb\n", PATH)
    assert found.errors == ("Unable to open fd=3 id=0xb",)


def test_what_is_no_error_is_left_out() -> None:
    log = "Warn  (compel/src/lib/infect.c:132): Unable to interrupt task: 99999 (No such process)\nplain\n"
    found = excerpt(ALWAYS + log + DUMPING, PATH)
    assert (found.errors, found.cause, found.hint) == ((), "", "")


def test_only_the_first_errors_are_shown_and_each_once() -> None:
    lines = [f"Error (criu/a.c:{number}): broken {number // 2}\n" for number in range(40)]
    assert excerpt("".join(lines), PATH).errors == tuple(f"broken {number}" for number in range(SHOWN_ERRORS))


def test_a_log_that_is_not_there_gives_an_empty_excerpt(tmp_path: Path) -> None:
    assert read_excerpt(tmp_path / "dump.log").errors == ()


def test_a_log_that_is_not_text_is_read(tmp_path: Path) -> None:
    (tmp_path / "dump.log").write_bytes(b"Error (criu/a.c:1): \xff\xfe broken\n")
    assert len(read_excerpt(tmp_path / "dump.log").errors) == 1


@given(st.text())
def test_any_text_is_survived(text: str) -> None:
    excerpt(text, PATH)
    excerpt(f"Error (criu/x.c:1): {text}", PATH)


def test_every_cause_can_be_put_into_words() -> None:
    for known in CAUSES:
        values = dict.fromkeys(known.pattern.groupindex, "it")
        assert "{" not in known.cause.format(**values)
