"""One writer per folder: who is refused, what a dead holder leaves, and that of many that come at once only one gets in."""

import errno
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from erasure.errors import UserError
from erasure.storage import locks, processes
from erasure.storage.locks import FolderLocked, check_unlocked, holder_of, lock_folder
from erasure.storage.processes import Process, has_ended, start_time_of, this_process
from tests.lock_holders import dead_process, hold_lock_in_child, plant_lock


def test_a_second_writer_is_refused_in_one_line_that_names_the_first(tmp_path: Path) -> None:
    first = hold_lock_in_child(tmp_path / "run")
    try:
        with pytest.raises(FolderLocked) as caught, lock_folder(tmp_path / "run", "erasure erase"):
            pass
        assert re.fullmatch(rf".*run is being written by `a test`, process {first.pid} on .*, since .*; wait for it.*\.", str(caught.value))
        with pytest.raises(FolderLocked):
            check_unlocked(tmp_path / "run")
    finally:
        first.kill()  # SIGKILL
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
        assert holder_of(tmp_path / "run") is None  # a zombie: not even collected yet
        first.wait()
    with lock_folder(tmp_path / "run", "erasure erase"):
        holder = holder_of(tmp_path / "run")
        assert holder and holder.process == this_process()
    assert not list(tmp_path.rglob(".*"))


def test_a_folder_that_was_made_for_the_lock_alone_is_removed(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "a" / "b", "a test"):
        assert (tmp_path / "a" / "b" / ".lock").is_file()
    assert not list(tmp_path.iterdir())
    with lock_folder(tmp_path / "a" / "b", "a test"):
        (tmp_path / "a" / "b" / "x").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b", "x"]


def test_a_lock_is_reentrant_in_its_thread_alone(tmp_path: Path) -> None:
    messages: list[str] = []

    def second() -> None:
        with pytest.raises(FolderLocked) as caught, lock_folder(tmp_path, "a test"):
            pass
        messages.append(str(caught.value))

    with lock_folder(tmp_path, "a test"):
        with lock_folder(tmp_path, "a test"), lock_folder(tmp_path, "a test", (0, 2)):
            pass
        check_unlocked(tmp_path)
        assert holder_of(tmp_path)
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(messages) == 1 and f"process {os.getpid()}" in messages[0]


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ({"start_time": "1"}, True),  # the number belongs to another process now
        ({"boot_id": "0" * 8}, True),  # the machine was started again
        ({"pid": 2**22 + 1}, True),
        ({}, False),
        ({"machine_id": "0" * 8, "host": "elsewhere", "start_time": "1"}, False),  # cannot be checked
        ({"pid_namespace": "f00", "start_time": "1"}, False),  # another container with this one's name
    ],
)
def test_only_a_holder_that_has_certainly_ended_is_replaced(tmp_path: Path, change: dict[str, Any], stale: bool) -> None:
    plant_lock(tmp_path / ".lock", replace(this_process(), **change))
    assert has_ended(replace(this_process(), **change)) == stale
    if stale:
        with lock_folder(tmp_path, "a test"):
            pass
        assert not list(tmp_path.iterdir())
    else:
        with (
            pytest.raises(FolderLocked, match="delete .*lock if that machine" if change else "wait for it, then"),
            lock_folder(tmp_path, "a test"),
        ):
            pass


def test_a_lock_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "READ_ATTEMPTS", 1)
    for text in ("", "{", "[]", '{"process": {}, "token": "x", "command": "y", "since": "z"}'):
        (tmp_path / ".lock").write_text(text)
        with pytest.raises(FolderLocked, match=r"\.lock does not say whose it is; .* delete it"), lock_folder(tmp_path, "a test"):
            pass
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match=r"\.lock is a folder where a file belongs"), lock_folder(tmp_path, "a test"):
        pass


def test_shards_run_together_and_a_whole_run_is_alone(tmp_path: Path) -> None:
    plant_lock(tmp_path / ".lock-1of2", this_process())
    with lock_folder(tmp_path, "erasure audit", (1, 2)):
        pass
    for shard in ((0, 2), (0, 3), None):
        with pytest.raises(FolderLocked), lock_folder(tmp_path, "erasure audit", shard):
            pass
    with pytest.raises(FolderLocked):
        check_unlocked(tmp_path)
    plant_lock(tmp_path / ".lock-1of2", dead_process())
    for shard in ((0, 3), None):
        with lock_folder(tmp_path, "erasure audit", shard):
            pass


def test_a_shard_passes_the_lock_of_its_parent_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = plant_lock(tmp_path / ".lock", replace(this_process(), pid=1, start_time=start_time_of(1) or ""))
    if has_ended(whole.process):
        pytest.skip("process 1 cannot be looked at here")
    with pytest.raises(FolderLocked), lock_folder(tmp_path, "erasure audit", (0, 2)):
        pass
    monkeypatch.setattr(locks, "_parent_pids", [1])
    with lock_folder(tmp_path, "erasure audit", (0, 2)):
        pass
    with pytest.raises(FolderLocked), lock_folder(tmp_path, "erasure audit"):
        pass


def test_waiting_ends_when_the_holder_does(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = hold_lock_in_child(tmp_path)
    threading.Timer(0.5, first.kill).start()
    with lock_folder(tmp_path, "a test", wait=True):
        holder = holder_of(tmp_path)
        assert holder and holder.process.pid == os.getpid()
    first.wait()
    assert capfd.readouterr().err.count("waiting:") == 1


def test_a_link_whose_response_was_lost_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On network disks a repeated request finds the link that the first one made."""
    real_link = os.link

    def link(own: Path, place: Path) -> None:
        real_link(own, place)
        raise FileExistsError

    monkeypatch.setattr(os, "link", link)
    for stale in (False, True):
        if stale:
            plant_lock(tmp_path / ".lock", dead_process())
        with lock_folder(tmp_path, "a test"):
            assert holder_of(tmp_path)
            assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        assert not list(tmp_path.iterdir())


ROUNDS, PROCESSES = 60, 6


def contend(folder: Path, number: int, barrier: Any, won: Any) -> None:
    """In every round all try at once to succeed a holder that is dead; some rounds begin with a chain, or with no lock at all."""
    for turn in range(ROUNDS):
        if number == 0:
            kind = turn % 4
            if kind:
                first = plant_lock(folder / ".lock", dead_process())
            if kind > 1:
                second = plant_lock(folder / f".lock.{first.token}", dead_process())
            if kind > 2:
                plant_lock(folder / f".lock.{second.token}", dead_process())
        barrier.wait(60)
        try:
            with lock_folder(folder, "a test"):
                won[turn * PROCESSES + number] = 1
                barrier.wait(60)  # all others have been refused
        except FolderLocked:
            barrier.wait(60)
        barrier.wait(60)


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_find_a_dead_holder_one_takes_the_lock(tmp_path: Path, links: bool) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, won = context.Barrier(PROCESSES), context.Array("i", ROUNDS * PROCESSES)
    target = contend if links else contend_without_links
    children = [context.Process(target=target, args=(tmp_path, number, barrier, won)) for number in range(PROCESSES)]
    for child in children:
        child.start()
    for child in children:
        child.join(300)
    assert [child.exitcode for child in children] == [0] * PROCESSES
    assert [sum(won[turn * PROCESSES : (turn + 1) * PROCESSES]) for turn in range(ROUNDS)] == [1] * ROUNDS
    assert not list(tmp_path.iterdir())


def contend_without_links(folder: Path, number: int, barrier: Any, won: Any) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    os.link = link  # type: ignore[assignment]
    contend(folder, number, barrier, won)


def work_and_die(folder: Path, number: int) -> None:
    """Take the lock again and again, count what is done under it, and be killed in the middle of it."""
    done = 0
    while done < 15:
        try:
            with lock_folder(folder, "a test"):
                inside = folder / "inside"
                try:
                    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    if json.loads((folder / "who").read_text()) != "died":
                        (folder / "two").touch()
                (folder / "who").write_text(json.dumps(number))
                time.sleep(0.001)
                if number % 2 and done == 7:
                    (folder / "who").write_text(json.dumps("died"))
                    os.kill(os.getpid(), signal.SIGKILL)
                inside.unlink()
                done += 1
        except FolderLocked:
            time.sleep(0.001)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_two_never_hold_a_lock_though_holders_are_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=work_and_die, args=(tmp_path, number)) for number in range(8)]
    for child in children:
        child.start()
    for child in children:
        child.join(300)
    assert [child.exitcode for child in children] == [0, -signal.SIGKILL] * 4
    assert not (tmp_path / "two").exists()
    with lock_folder(tmp_path, "a test"):  # whoever was killed last left its lock, which is taken over like the others
        (tmp_path / "inside").unlink(missing_ok=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["who"]


def test_marks_name_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    me = this_process()
    assert Process.from_mark(me.mark) == replace(me, host="")
    for wrong in ("", "a-b-c", "a-b-c-x-1"):
        with pytest.raises(ValueError):
            Process.from_mark(wrong)
    monkeypatch.setattr(sys, "platform", "darwin")  # the branch that uses psutil
    assert processes.start_time_of(os.getpid()) == processes.start_time_of(os.getpid()) is not None
    assert processes.start_time_of(2**22 + 1) is None
