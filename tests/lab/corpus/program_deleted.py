"""A program whose file was removed, as an upgrade does it: too big to be carried along."""
# answer: refused deleted_file_too_big

import os
import shutil

from .life import live

if not os.readlink("/proc/self/exe").startswith("/tmp/"):
    shutil.copyfile(os.readlink("/proc/self/exe"), "/tmp/program-deleted")
    os.chmod("/tmp/program-deleted", 0o755)
    os.execve("/tmp/program-deleted", ["python3", "-m", "corpus.program_deleted"], {**os.environ, "PYTHONHOME": "/usr"})
os.unlink("/tmp/program-deleted")
live()
