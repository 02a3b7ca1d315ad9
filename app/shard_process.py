"""The process that works on one shard of an audit; app.jobs.child_processes starts it."""

import sys

from app import cli
from app.jobs.child_processes import exit_with_parent
from erasure.storage.locks import ignore_lock_of


def main() -> int:
    """Run a command line. The arguments are the pid of the parent, then the line."""
    exit_with_parent(int(sys.argv[1]))
    ignore_lock_of(int(sys.argv[1]))
    return cli.main(sys.argv[2:])
