"""Saliency masks: which entries of the weights may be trained (Fan et al., SalUn, arXiv:2310.12508, equation 4)."""

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
METADATA_KEY = "mask"  # safetensors metadata: shapes and checksum


def select_top(gradients: dict[str, Tensor], fraction: float, threshold: ThresholdMethod) -> dict[str, Tensor]:
    """Return bool masks of the `fraction` of all entries with the largest gradient magnitude; all tensors share one threshold.

    Args:
        gradients: summed gradients by parameter name.
        threshold: "kthvalue" is exact and sorts everything; "histogram" needs no copy and is exact to one of 65,536 logarithmic bins.

    Raises:
        UserError: The fraction is outside (0, 1], or all gradients are zero.
    """
    check_fraction(fraction)
    magnitudes = {name: gradient.abs().float() for name, gradient in gradients.items()}
    if not any(magnitude.any() for magnitude in magnitudes.values()):
        raise UserError("the mask selects nothing: every gradient is zero; check that the concept's prompts reach the trained region.")
    if fraction == 1:
        return {name: torch.ones_like(magnitude, dtype=torch.bool) for name, magnitude in magnitudes.items()}
    cutoff = (_kth_threshold if threshold == "kthvalue" else _histogram_threshold)(magnitudes.values(), fraction)
    return {name: magnitude >= cutoff for name, magnitude in magnitudes.items()}


def check_fraction(fraction: float) -> None:
    """Check the fraction of weights that a mask selects.

    Raises:
        UserError: It is outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise UserError(f"--mask-fraction must lie in (0, 1], got {fraction}.")


def _kth_threshold(magnitudes: Iterable[Tensor], fraction: float) -> float:
    values = torch.cat([magnitude.flatten() for magnitude in magnitudes])
    return values.kthvalue(max(1, round((1 - fraction) * len(values)) + 1)).values.item()


def _histogram_threshold(magnitudes: Iterable[Tensor], fraction: float) -> float:
    """Return the lower edge of the highest bin above which `fraction` of all entries lies."""
    parts = list(magnitudes)
    largest, total = max(part.max().item() for part in parts), sum(part.numel() for part in parts)
    lowest = np.log(largest) - 40  # 17 orders of magnitude; smaller values fall into the first bin
    counts = torch.zeros(BINS, dtype=torch.int64)
    for part in parts:
        counts += torch.histc(part.flatten().log().clamp(min=lowest), BINS, lowest, np.log(largest)).to("cpu", torch.int64)
    above = counts.flip(0).cumsum(0)
    index = BINS - 1 - int((above < fraction * total).sum())
    return float(np.exp(lowest + index * 40 / BINS))


def selected_fractions(masks: dict[str, Tensor]) -> dict[str, float]:
    """Return the selected fraction per block of the network, such as "unet.mid_block"."""
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
    """Save bool masks, in the shapes of their parameters, as packed bits with shapes and a checksum in the header.

    Shapes and checksum share one metadata key, because safetensors writes several keys in an order that differs from run to run.
    """
    packed = {name: torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1))) for name, mask in sorted(masks.items())}
    shapes = {name: ",".join(map(str, mask.shape)) for name, mask in sorted(masks.items())}
    header = canonical_json({"shapes": shapes, CHECKSUM_KEY: checksum_of_tensors(packed, canonical_json(shapes))})
    write_bytes(path, save(packed, metadata={METADATA_KEY: header}))


def mask_digest(path: Path) -> str:
    """Return the content hash of a mask file.

    Raises:
        UserError: There is no such file.
    """
    if not path.is_file():
        raise UserError(f"no mask at {path}; SalUn writes one as mask.safetensors into its run folder.")
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def load_mask(path: Path, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return a saved mask for these parameters, bool in their shapes; those it does not name get an empty one: they must not be trained.

    Raises:
        UserError: The file is not a valid mask, belongs to other shapes, or selects no entry of these parameters.
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
        raise UserError(f"{path} is not a saliency mask ({error}); SalUn writes one as mask.safetensors into its run folder.") from error
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
