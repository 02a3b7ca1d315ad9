"""The process that works on one shard of an audit; app.jobs.child_processes starts it."""

import json
import sys

from app import cli
from app.jobs.child_processes import exit_with_parent
from erasure.storage.locks import ignore_lock_of


def main() -> int:
    """Load what an audit needs, then run the command line that comes as JSON on standard input. The argument is the pid of the parent."""
    exit_with_parent(int(sys.argv[1]))
    ignore_lock_of(int(sys.argv[1]))
    import erasure.loading.loader  # noqa: F401
    import eval.library  # noqa: F401

    line = sys.stdin.readline()
    return cli.main(json.loads(line)) if line else 0
