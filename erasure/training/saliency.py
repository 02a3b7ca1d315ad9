"""Saliency masks: which entries of the weights may move (Fan et al., SalUn, arXiv:2310.12508, equation 4)."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from erasure.errors import UserError
from erasure.storage.files import CHECKSUM_KEY, canonical_json, write_bytes
from erasure.storage.tensor_files import checksum_of_tensors

ThresholdMethod = Literal["kthvalue", "histogram"]
BINS = 1 << 16
METADATA_KEY = "mask"  # key of the metadata


def select_top(gradients: dict[str, Tensor], fraction: float, threshold: ThresholdMethod) -> dict[str, Tensor]:
    """Masks of the `fraction` of all entries whose summed gradient is largest in magnitude; one threshold for all tensors together.

    Args:
        threshold: "kthvalue" is exact and sorts everything; "histogram" needs no copy and is exact to one of 65,536 logarithmic bins.

    Raises:
        UserError: a fraction outside (0, 1], or gradients that are all zero.
    """
    check_fraction(fraction)
    magnitudes = {name: gradient.abs().float() for name, gradient in gradients.items()}
    if not any(magnitude.any() for magnitude in magnitudes.values()):
        raise UserError("the mask selects nothing: every gradient is zero; check that the concept's sentences reach the trained region.")
    if fraction == 1:
        return {name: torch.ones_like(magnitude, dtype=torch.bool) for name, magnitude in magnitudes.items()}
    cutoff = (_kth_threshold if threshold == "kthvalue" else _histogram_threshold)(magnitudes.values(), fraction)
    return {name: magnitude >= cutoff for name, magnitude in magnitudes.items()}


def check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise UserError(f"--mask-fraction must lie in (0, 1], got {fraction}.")


def _kth_threshold(magnitudes: Iterable[Tensor], fraction: float) -> float:
    values = torch.cat([magnitude.flatten() for magnitude in magnitudes])
    return values.kthvalue(max(1, round((1 - fraction) * len(values)) + 1)).values.item()


def _histogram_threshold(magnitudes: Iterable[Tensor], fraction: float) -> float:
    """Lower edge of the first bin from the top at which `fraction` of all entries is reached."""
    parts = list(magnitudes)
    largest, total = max(part.max().item() for part in parts), sum(part.numel() for part in parts)
    lowest = np.log(largest) - 40  # 17 orders of magnitude; what is smaller falls into the first bin
    counts = torch.zeros(BINS, dtype=torch.int64)
    for part in parts:
        counts += torch.histc(part.flatten().log().clamp(min=lowest), BINS, lowest, np.log(largest)).to("cpu", torch.int64)
    above = counts.flip(0).cumsum(0)
    index = BINS - 1 - int((above < fraction * total).sum())
    return float(np.exp(lowest + index * 40 / BINS))


def selected_fractions(masks: dict[str, Tensor]) -> dict[str, float]:
    """Selected share per block of the network, such as "unet.mid_block"."""
    counts: dict[str, list[int]] = {}
    for name, mask in masks.items():
        count = counts.setdefault(block_of(name), [0, 0])
        count[0] += int(mask.sum())
        count[1] += mask.numel()
    return {block: round(selected / total, 5) for block, (selected, total) in sorted(counts.items())}


def block_of(name: str) -> str:
    """ "unet.down_blocks.0.attentions.1..." -> "unet.down_blocks.0"; "text_encoder.encoder.layers.3..." -> "text_encoder.layers.3"."""
    parts = name.removesuffix(".weight").removesuffix(".bias").replace("encoder.layers", "layers").split(".")
    return ".".join(parts[:3] if len(parts) > 2 and parts[2].isdigit() else parts[:2])


def save_mask(masks: dict[str, Tensor], path: Path) -> None:
    """Save as packed bits, one for every entry, with shapes and checksum in the header.

    They share one key: safetensors writes several in an order of its own, which differs from run to run.
    """
    packed = {name: torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1))) for name, mask in sorted(masks.items())}
    shapes = {name: ",".join(map(str, mask.shape)) for name, mask in sorted(masks.items())}
    header = canonical_json({"shapes": shapes, CHECKSUM_KEY: checksum_of_tensors(packed, canonical_json(shapes))})
    write_bytes(path, save(packed, metadata={METADATA_KEY: header}))


def mask_digest(path: Path) -> str:
    """Content hash of a mask file.

    Raises:
        UserError: no such file.
    """
    if not path.is_file():
        raise UserError(f"no mask at {path}; SalUn writes one as mask.safetensors into its run folder.")
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def load_mask(path: Path, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """A saved mask for these parameters; what it does not name must not move, so it gets an empty mask.

    Raises:
        UserError: no mask file, another shape, or no entry of these parameters selected.
    """
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            shapes = header["shapes"]
            packed = {name: file.get_tensor(name) for name in shapes}
        if header[CHECKSUM_KEY] != checksum_of_tensors(packed, canonical_json(shapes)):
            raise ValueError("its checksum does not match")
        loaded = {name: _unpack(packed[name], shape) for name, shape in shapes.items()}
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is no saliency mask ({error}); SalUn writes one as mask.safetensors into its run folder.") from error
    masks = {}
    for name, p in parameters.items():
        mask = loaded.get(name, torch.zeros(p.shape, dtype=torch.bool))
        if mask.shape != p.shape:
            raise UserError(f"{path} was made for another model: {name} is {tuple(p.shape)} here and {tuple(mask.shape)} there.")
        masks[name] = mask.to(p.device)
    if not any(mask.any() for mask in masks.values()):
        raise UserError(f"{path} selects nothing of the {len(parameters)} tensors that would train; choose another --mask or --region.")
    return masks


def _unpack(bits: Tensor, shape: str) -> Tensor:
    sizes = [int(part) for part in shape.split(",") if part]
    return torch.from_numpy(np.unpackbits(bits.numpy())[: int(np.prod(sizes))].astype(bool)).reshape(sizes)
