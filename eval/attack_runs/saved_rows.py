"""What attacks save as they go, so that an interrupted run continues: rows with the judge that scored them, and prepared tensors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from erasure.errors import UserError
from erasure.storage.files import (
    DamagedFile,
    canonical_json,
    is_path_taken,
    print_message,
    read_checksummed_json,
    write_checksummed_json,
)
from erasure.storage.run import describe_difference
from erasure.storage.tensor_files import load_or_make
from eval.attacks.base import Prepared
from eval.judges.base import Judge
from eval.records.convert import parse_record
from eval.records.rows import SavedFineTuning, SavedSearch

Saved = TypeVar("Saved", SavedSearch, SavedFineTuning)


def read_saved(path: Path, record_type: type[Saved], judge_digest: str) -> Saved | None:
    """Read rows that were saved with a checksum.

    Returns:
        None if the file is missing, or if it is damaged or another judge scored it, which is reported.
    """
    if not is_path_taken(path):
        return None
    try:
        saved = parse_record(read_checksummed_json(path), record_type, str(path))
        if saved.judge != judge_digest:
            raise DamagedFile(f"{path} was scored by another judge.")
        return saved
    except UserError as error:
        print_message(f"{error} It will be made again.")
        return None


def load_or_prepare(path: Path, make: Callable[[], Prepared]) -> Prepared:
    """Load tensors from disk, or make and save them; an attack without tensors leaves no file."""

    def prepare_with_bar() -> Prepared:
        with tqdm(desc=f"{path.parent.name}, preparing", total=1, unit="search") as bar:
            tensors = make()
            bar.update()
        return tensors

    return load_or_make(path, prepare_with_bar)


def require_same_judge(path: Path, judge: Judge) -> None:
    """Check that the rows on disk are of this judge: it decides when a search stops and scores fine-tuning, so rows of two never mix.

    Raises:
        UserError: another judge scored the attacks in this folder.
    """
    identity = json.loads(canonical_json(judge.identity()))
    recorded = None
    try:
        recorded = read_checksummed_json(path) if is_path_taken(path) else None
    except DamagedFile as error:
        print_message(f"{error} It will be made again.")
    if recorded is None:
        write_checksummed_json(path, identity)
    elif recorded != identity:
        message = f"the attacks in {path.parent} were scored by another judge ({describe_difference(recorded, identity)})"
        raise UserError(f"{message}; choose another --out, or --fresh to start over.")
