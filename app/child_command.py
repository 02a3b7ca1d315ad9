"""Start another process of this program with the same code, whatever the current folder holds."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# For a checkout that is not installed. The folder comes last on the path, so that an installed package wins.
START_CODE = "import sys; sys.path.append({root!r}); from app.process import run_process; from {module} import main; run_process(main)"


def child_argv(module: str, *arguments: str) -> list[str]:
    """Return the argv that runs `main` of a module in a new process.

    `python -m` imports from the current folder first, so a user's own app.py or eval.py would run in place of ours. -P leaves that
    folder out (https://docs.python.org/3/using/cmdline.html#cmdoption-P).
    """
    return [sys.executable, "-P", "-c", START_CODE.format(root=str(ROOT), module=module), *arguments]
