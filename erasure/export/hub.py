"""Upload exported edits to the Hugging Face Hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is that of its http client
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not marked as exported

from erasure.errors import UserError

UPLOADED_SUFFIXES = (".safetensors", ".json", ".md", ".png", ".txt")  # no pickle, no log, no cache


def list_uploads(folder: Path) -> list[tuple[str, int]]:
    """Return the names and sizes in bytes of the files that would be uploaded, sorted.

    Raises:
        UserError: no such file.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix in UPLOADED_SUFFIXES]
    if not files:
        raise UserError(f"{folder} holds nothing to send.")
    return [(str(path.relative_to(folder)), path.stat().st_size) for path in files]


def push_to_hub(folder: Path, repo: str, private: bool = False, endpoint: str | None = None) -> str:
    """Create the repository if it is missing, upload the folder in one commit, and return the commit's URL.

    Raises:
        UserError: an invalid name, nothing to upload, no login, no network, or a refused request.
    """
    check_repo_name(repo)
    api = HfApi(endpoint=endpoint)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=[name for name, _ in list_uploads(folder)],
            commit_message="Erasure Studio edit",
        )
    except LocalTokenNotFoundError as error:
        raise UserError(f"pushing to {repo} needs a login: run `hf auth login`, or set HF_TOKEN.") from error
    except (HTTPError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(f"{repo} could not be written: {str(error).splitlines()[0]}") from error
    return str(commit.commit_url)


def check_repo_name(repo: str) -> str:
    """Return the repository's name if it is valid.

    Raises:
        UserError: a name without an organization or user, or one that the hub does not allow.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--push-to-hub takes org/name: {str(error).rstrip('.')}.") from error
    if "/" not in repo:
        raise UserError(f"--push-to-hub takes org/name, got {repo!r}.")
    return repo
