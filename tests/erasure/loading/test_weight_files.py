"""The size of a local model, from its headers alone."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from erasure.families.placement import components_of
from erasure.loading.weight_files import bytes_in_memory, count_values
from tests import tiny


def test_a_folder_takes_as_much_as_its_networks(tmp_path: Path) -> None:
    folder = tiny.save_pipeline(tmp_path / "model")
    values = sum(count_values(file) for file in folder.glob("*/*.safetensors"))
    parameters = sum(p.numel() for network in components_of(tiny.pipeline()).values() for p in network.parameters())
    assert parameters <= values <= 1.05 * parameters  # files may hold buffers, too
    assert bytes_in_memory(str(folder), on_gpu=False) == 4 * values
    assert bytes_in_memory(str(folder), on_gpu=True) == 2 * values


def test_variants_count_once_and_parts_all(tmp_path: Path) -> None:
    unet = tmp_path / "model" / "unet"
    unet.mkdir(parents=True)
    for name, count in (("m.safetensors", 10), ("m.fp16.safetensors", 10), ("part-1-of-2.safetensors", 3), ("part-2-of-2.safetensors", 4)):
        save_file({"a": torch.zeros(count)}, unet / name)
    (unet / "broken.safetensors").write_bytes(b"\xff" * 40)
    assert bytes_in_memory(str(tmp_path / "model"), on_gpu=False) == 4 * (10 + 3 + 4)


def test_a_hub_id_is_unknown() -> None:
    assert bytes_in_memory("org/name", on_gpu=True) is None
