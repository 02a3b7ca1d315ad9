"""Where the files of a model or an erasure are: a local folder, or a repository of the hub with an optional subfolder."""

import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.errors import HTTPError
from safetensors.torch import load_file
from torch import Tensor

from erasure.errors import UserError
from erasure.loading.addresses import check_address, is_hub_id

WEIGHTS = re.compile(r"(?:model|diffusion_pytorch_model)(?:\.(?P<variant>[\w-]+?))?(?:-\d+-of-\d+)?\.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def folder_of(source: str, wanted: Iterable[str]) -> Path:
    """The folder behind a path or hub id; of a hub id only the wanted files are fetched, or taken from the local cache.

    Args:
        wanted: file names or patterns, relative to the folder.

    Raises:
        UserError: neither a folder nor a hub id, or a repository that cannot be reached and is not in the cache.
    """
    place = Path(source).expanduser()
    if place.is_dir():
        return place
    check_address(source)
    repo, under = _repo(source)
    try:
        root = snapshot_download(repo, allow_patterns=[under + name for name in wanted])
    except (HTTPError, OSError, ValueError) as error:
        raise unreachable(source) from error
    return Path(root) / under


def files_of(source: str) -> list[str]:
    """Names of the files right in a folder or hub id, without those in its subfolders."""
    if not is_hub_id(source):
        return sorted(path.name for path in folder_of(source, ()).iterdir() if path.is_file())
    repo, under = _repo(source)
    try:
        listed = list_repo_files(repo)
    except (HTTPError, OSError, ValueError):  # without network what is cached counts
        folder = folder_of(source, ())
        return sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    inside = [name.removeprefix(under) for name in listed if name.startswith(under)]
    return sorted(name for name in inside if "/" not in name)


def _repo(source: str) -> tuple[str, str]:
    """Repository and the prefix of everything in the subfolder."""
    org, name, *under = source.split("/")
    return f"{org}/{name}", "".join(f"{part}/" for part in under)


def unreachable(source: str) -> UserError:
    return UserError(
        f"{source} is not in the local cache, and the hub cannot be reached, does not have it, or asks for a login (hf auth login)."
    )


def patterns(part: str, variant: str = "") -> list[str]:
    """Names of the weights of a component, whole and in shards."""
    stems = [f"{part}{name}{'.' * bool(variant)}{variant}" for name in ("model", "diffusion_pytorch_model")]
    return [f"{stem}{shard}.safetensors" for stem in stems for shard in ("", "-*-of-*")]


def weights_of(source: str, part: str = "") -> tuple[list[Path], str | None]:
    """The weight files of a component ("unet/", or "" for the folder itself) and their variant; fp16 where there is no plain copy.

    Raises:
        UserError: no weights in safetensors, or variants between which nothing decides.
    """
    folder = folder_of(source, patterns(part)) / part
    found = _variants(folder)
    if not found and is_hub_id(source):
        folder_of(source, patterns(part, "fp16"))
        found = _variants(folder)
    chosen = next((name for name in (None, "fp16") if name in found), None if len(found) != 1 else next(iter(found)))
    if chosen in found:
        return found[chosen], chosen
    where = f"{source}, {part.rstrip('/')}," if part else source
    if found:
        raise UserError(f"{where} holds the variants {', '.join(sorted(filter(None, found)))}; keep one of them, or a plain copy.")
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    if pickles:
        raise UserError(
            f"{where} holds only pickled weights ({pickles[0]}), which are never loaded; convert them where you trust them: "
            "load the pipeline in diffusers and call save_pretrained(folder, safe_serialization=True)."
        )
    raise UserError(f"{where} holds no weights in safetensors (model.safetensors or diffusion_pytorch_model.safetensors).")


def _variants(folder: Path) -> dict[str | None, list[Path]]:
    found: dict[str | None, list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if match := WEIGHTS.fullmatch(path.name):
            found.setdefault(match["variant"], []).append(path)
    return found


def tensors_of(source: str, part: str = "") -> dict[str, Tensor]:
    """All tensors of a component, by their names in its files."""
    return {name: value for path in weights_of(source, part)[0] for name, value in load_file(path).items()}
