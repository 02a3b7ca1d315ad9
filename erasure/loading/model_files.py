"""Locate the files of a model or an erasure: in a local folder, or in a repository of the hub with an optional subfolder."""

import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import model_info, snapshot_download
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # that of its http client
from safetensors.torch import load_file
from torch import Tensor

from erasure.errors import UserError
from erasure.loading.model_source import check_model_source, is_hub_id

WEIGHT_FILE_NAME = re.compile(r"(?:model|diffusion_pytorch_model)(?:\.(?P<variant>[\w-]+?))?(?:-\d+-of-\d+)?\.safetensors")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


def resolve_folder(source: str, file_patterns: Iterable[str]) -> Path:
    """Return the folder behind a path or hub id; from the hub, only the requested files are downloaded, or taken from the local cache.

    Args:
        file_patterns: file names or patterns, relative to the folder.

    Raises:
        UserError: neither a folder nor a hub id, or a repository that is not in the cache and cannot be downloaded.
    """
    local_folder = Path(source).expanduser()
    if local_folder.is_dir():
        return local_folder
    check_model_source(source)
    repo, subfolder = _split_repo(source)
    try:
        root = snapshot_download(repo, allow_patterns=[subfolder + name for name in file_patterns])
    except (HTTPError, OSError, ValueError) as error:
        raise unreachable_error(source) from error
    return Path(root) / subfolder


def list_model_files(source: str) -> list[str]:
    """Return the sorted names of the files in a folder or hub id, without subfolders.

    Raises:
        UserError: as `resolve_folder`.
    """
    if not is_hub_id(source):
        return sorted(path.name for path in resolve_folder(source, ()).iterdir() if path.is_file())
    repo, subfolder = _split_repo(source)
    try:
        siblings = model_info(repo).siblings or []  # list_repo_files would retry for 20 s without a network
    except (HTTPError, OSError, ValueError):  # without a network, list the cached files
        folder = resolve_folder(source, ())
        return sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    names = [file.rfilename.removeprefix(subfolder) for file in siblings if file.rfilename.startswith(subfolder)]
    return sorted(name for name in names if "/" not in name)


def _split_repo(source: str) -> tuple[str, str]:
    """Return the repository, and the prefix of all file names in the subfolder."""
    org, name, *subfolders = source.split("/")
    return f"{org}/{name}", "".join(f"{part}/" for part in subfolders)


def unreachable_error(source: str) -> UserError:
    """Return the error for a hub id that is not in the cache and cannot be downloaded."""
    return UserError(
        f"{source} is not a folder here. As a hub id it is not in the local cache, and the hub cannot be reached, does not have it, "
        "or asks for a login (hf auth login)."
    )


def weight_patterns(part: str, variant: str = "") -> list[str]:
    """Return patterns for the weight files of a component, in one file or in shards."""
    stems = [f"{part}{name}{'.' * bool(variant)}{variant}" for name in ("model", "diffusion_pytorch_model")]
    return [f"{stem}{shard}.safetensors" for stem in stems for shard in ("", "-*-of-*")]


def find_weights(source: str, part: str = "") -> tuple[list[Path], str | None]:
    """Return the weight files of a component ("unet/", or "" for the folder itself) and their variant.

    Files without a variant come first, then fp16, then any single other variant.

    Raises:
        UserError: no weights in safetensors, or several other variants.
    """
    folder = resolve_folder(source, weight_patterns(part)) / part
    variants = _find_variants(folder)
    if not variants and is_hub_id(source):
        resolve_folder(source, weight_patterns(part, "fp16"))
        variants = _find_variants(folder)
    variant = next((name for name in (None, "fp16") if name in variants), None if len(variants) != 1 else next(iter(variants)))
    if variant in variants:
        return variants[variant], variant
    location = f"{source}, {part.rstrip('/')}," if part else source
    if variants:
        raise UserError(f"{location} holds the variants {', '.join(sorted(filter(None, variants)))}; keep one of them, or a plain copy.")
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise UserError(
            f"{location} holds only pickled weights ({pickles[0]}), which are never loaded; if you trust them, convert them: "
            "load the pipeline in diffusers and call save_pretrained(folder, safe_serialization=True)."
        )
    raise UserError(f"{location} holds no weights in safetensors (model.safetensors or diffusion_pytorch_model.safetensors).")


def _find_variants(folder: Path) -> dict[str | None, list[Path]]:
    """Return the weight files in a folder by their variant."""
    variants: dict[str | None, list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if match := WEIGHT_FILE_NAME.fullmatch(path.name):
            variants.setdefault(match["variant"], []).append(path)
    return variants


def load_component(source: str, part: str = "") -> dict[str, Tensor]:
    """Return all tensors of a component on the CPU, by their names in its files. Raises as `find_weights`."""
    return {name: value for path in find_weights(source, part)[0] for name, value in load_file(path).items()}
