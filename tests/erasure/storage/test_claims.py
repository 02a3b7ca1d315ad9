"""Claims in the cache: several processes that want the same things make each of them once."""

import subprocess
import sys
import time
from pathlib import Path

from erasure.storage.claims import claim_in_turn, claim_path
from tests.lock_holders import dead_process, plant_lock

MAKE = """
import sys, time
from pathlib import Path
from erasure.storage.claims import claim_in_turn
root, name = Path(sys.argv[1]), sys.argv[2]
(root / f"{name} is there").touch()
while len(list(root.glob("* is there"))) < 2:
    time.sleep(0.01)
for item in claim_in_turn(range(8), lambda i: None if (root / str(i)).exists() else f"item-{i}"):
    if not (root / str(item)).exists():
        time.sleep(0.05)
        with (root / str(item)).open("x") as file:  # fails if somebody else has made it
            file.write(name)
assert len(list(root.glob("[0-9]"))) == 8  # all are there at the end, whoever made them
"""


HOLD = """
import sys, time
from erasure.storage.claims import claim_path
from erasure.storage.locks import lock_file
with lock_file(claim_path(sys.argv[1]), "a test"):
    print("in", flush=True)
    time.sleep(600)
"""


def hold_claim_in_child(key: str) -> "subprocess.Popen[str]":
    """A process that holds the claim of a key."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, key], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "in\n"
    return process


def test_two_processes_share_the_work_and_make_nothing_twice(tmp_path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", MAKE, str(tmp_path), name]) for name in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    makers = [(tmp_path / str(i)).read_text() for i in range(8)]
    assert sorted(set(makers)) == ["a", "b"]
    assert not list(claim_path("item-0").parent.iterdir())


def test_what_others_have_claimed_comes_last_and_a_dead_claim_does_not_count(tmp_path: Path) -> None:
    plant_lock(claim_path("1"), dead_process())
    holder = hold_claim_in_child("0")
    order = []
    for item in claim_in_turn([0, 1, 2], str, patience=0.5):
        order.append(item)
        assert item == 0 or claim_path(str(item)).exists()  # also after one that took longer than the patience
        time.sleep(0.7 if item == 1 else 0)
        if item == 2:
            holder.kill()
            holder.wait()
    assert order == [1, 2, 0]


def test_patience_ends(tmp_path: Path) -> None:
    holder = hold_claim_in_child("0")
    started = time.monotonic()
    assert list(claim_in_turn([0], str, patience=1.0)) == [0]
    assert time.monotonic() - started >= 1.0
    holder.kill()
    holder.wait()
