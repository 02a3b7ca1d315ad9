"""A process that has loaded its libraries and waits for a job; app.jobs.spare_process starts it."""

import os
import sys
from pathlib import Path

from app import cli
from app.jobs.child_processes import exit_with_parent


def main() -> int:
    """Load what jobs need, then run the job whose specification is named on standard input, with its log as output.

    The argument is the pid of the parent, with which this process ends.
    """
    exit_with_parent(int(sys.argv[1]))
    import app.jobs.execution  # noqa: F401
    import erasure.families.pipelines  # noqa: F401

    spec = sys.stdin.readline().rstrip("\n")
    if not spec:
        return 0  # nobody needs it any more
    log = os.open(Path(spec).with_name("log.txt"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    return cli.main(["jobs", "run-one", spec, "--parent-pid", sys.argv[1]])
