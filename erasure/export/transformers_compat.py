"""Write files that every version of transformers reads.

transformers 5.6 dropped the `text_model.` level of CLIP's text encoder and saves without it; earlier versions miss every weight in such
a file and initialize it at random. All versions read the old names. Version 5 saves tokenizers as tokenizer.json alone; version 4 reads
CLIP's from vocab.json and merges.txt. docs/results/versions.md lists the versions that were tested.
"""

import json
import uuid
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from erasure.families.parameters import canonical_name
from erasure.loading.clip_tokenizer import merges_of
from erasure.storage.run import read_json, write_json

TEXT_MODEL = "text_model."


def rename_text_encoder_keys(folder: Path) -> None:
    """Put the `text_model.` level into the names of a saved text encoder."""
    for path in folder.glob("*.safetensors"):
        write_tensors(path, {TEXT_MODEL + canonical_name(name): value for name, value in load_file(path).items()}, {"format": "pt"})


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically, with the mode of any other file; safetensors itself lets only the owner read it."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    part.touch()
    mode = part.stat().st_mode
    try:
        save_file(tensors, part, metadata)
        part.chmod(mode)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_vocabulary_files(tokenizer: Any, folder: Path) -> None:
    """Write beside a saved tokenizer the files that version 4 reads: vocab.json, merges.txt and special_tokens_map.json."""
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    merges = [" ".join(pair) for pair in merges_of(tokenizer)]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    write_json(
        folder / "special_tokens_map.json", {f"{kind}_token": getattr(tokenizer, f"{kind}_token") for kind in ("bos", "eos", "unk", "pad")}
    )


def make_shareable(folder: Path) -> None:
    """Make a saved folder fit to share: remove the local path of the model from its configurations, and give all files one mode."""
    for path in folder.rglob("*.json"):
        record = read_json(path)
        if isinstance(record, dict) and record.pop("_name_or_path", None) is not None:
            write_json(path, record)
    mode = next(folder.rglob("*config.json")).stat().st_mode
    for path in folder.rglob("*.safetensors"):
        path.chmod(mode)
