"""An edit for other programs: a diffusers folder that is already erased, or a LoRA file, each with a model card."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from erasure import forms
from erasure.concept import Concept
from erasure.edit import Edit
from erasure.errors import UserError, unknown
from erasure.families.base import DiffusionModel
from erasure.one_step import OneStepPipeline
from erasure.run import write_bytes

LAYER = ".weight"


FORMS = ("edit", "lora", "text-encoder", "folder")


def to_form(model: DiffusionModel, edit: Edit, out: Path, form: str, rank: int = 16, other_base: bool = False) -> float | None:
    """Save an edit in one of the forms, with its card.

    Returns:
        The relative error of a LoRA (`to_lora`), None for the exact forms.

    Raises:
        UserError: an unknown form, or one that this edit cannot take.
    """
    error = None
    match form:
        case "edit":
            to_edit(edit, out)
        case "lora":
            error = to_lora(model, edit, out, rank, other_base)
        case "text-encoder":
            to_text_encoder(model, edit, out, other_base)
        case "folder":
            to_folder(model, edit, out, other_base)
        case _:
            raise unknown("form", form, FORMS)
    write_card(out, edit, before_after(model, edit, other_base=other_base), form, error)
    return error


def to_folder(model: DiffusionModel, edit: Edit, out: Path, other_base: bool = False) -> None:
    """Save the edited pipeline as a diffusers folder; `model` is left as it was. A one-step generator becomes a OneStepPipeline.

    The safety checker is off in it, as in every measurement here; the card says so.
    """
    if edit.info.product == "guidance":
        raise UserError(f"{edit.name} is a guidance edit: a plain pipeline folder cannot hold how it samples. Keep the edit.")
    _empty(out)
    edit.apply(model.pipe, other_base=other_base)
    try:
        pipe = model.pipe
        if edit.info.product == "one-step":
            pipe = OneStepPipeline(**pipe.components, requires_safety_checker=False, start=edit.info.fields["start"])
        pipe.save_pretrained(out, safe_serialization=True)
    finally:
        edit.revert(model.pipe)


def to_lora(model: DiffusionModel, edit: Edit, out: Path, rank: int, other_base: bool = False) -> float:
    """Save the edit as pytorch_lora_weights.safetensors, which `pipe.load_lora_weights(out)` reads.

    Every moved weight matrix or convolution is replaced by its best rank-`rank` approximation (truncated SVD); edits that are low-rank
    factors already (UCE) are written as they are, whatever `rank` says.

    Returns:
        The relative error ||delta - lora||_F / ||delta||_F over all moved parameters, biases and norms included (a LoRA cannot hold them).

    Raises:
        UserError: an edit of the text encoder, a rank below 1, an edit without any weight matrix or made on top of another.
    """
    if rank < 1:
        raise UserError(f"--rank must be at least 1, got {rank}.")
    if any(name.startswith("text_encoder.") for name in edit.tensors):
        raise UserError("this edit moves the text encoder, which LoRA export does not cover; export a diffusers folder with --as folder.")
    if edit.info.product != "weights":
        raise UserError(f"{edit.name} is a {edit.info.product} edit; it has no weights that a LoRA could hold.")
    _empty(out)
    if edit.after:
        raise UserError(f"{edit.name} was made on top of other edits ({', '.join(edit.after)}); a LoRA of it alone would mean nothing.")
    edit.apply(model.pipe, other_base=other_base)
    edit.revert(model.pipe)
    factors: dict[str, Tensor] = {}
    missed, total = 0.0, 0.0
    base = model.parameters()
    for name in sorted(edit.moved()):
        original = base[name].detach().float().cpu()
        delta = forms.new(edit.tensors, name, original).float() - original
        total += delta.square().sum().item()
        if name.endswith(LAYER) and delta.ndim in (2, 4):
            up, down = forms.low_rank(edit.tensors, name) or low_rank(delta, rank)
            factors[f"{name.removeprefix('unet.').removesuffix(LAYER)}.lora_A.weight"] = down
            factors[f"{name.removeprefix('unet.').removesuffix(LAYER)}.lora_B.weight"] = up
            delta = delta - (up.flatten(1) @ down.flatten(1)).reshape(delta.shape)
        missed += delta.square().sum().item()
    if not factors:
        raise UserError("this edit moves no weight matrix, so there is nothing a LoRA could hold.")
    StableDiffusionPipeline.save_lora_weights(out, unet_lora_layers=factors, safe_serialization=True)
    return float((missed / max(total, 1e-30)) ** 0.5)


def to_edit(edit: Edit, out: Path) -> None:
    """Save the edit as it is, without the log and the job of its run."""
    _empty(out)
    edit.save(out)


def to_text_encoder(model: DiffusionModel, edit: Edit, out: Path, other_base: bool = False) -> None:
    """Save the edited text encoder alone, for `from_pretrained(base, text_encoder=CLIPTextModel.from_pretrained(out))`.

    Raises:
        UserError: an edit that does not move the text encoder, or moves more than it.
    """
    if not edit.moved() or not all(name.startswith("text_encoder.") for name in edit.moved()):
        raise UserError(f"{edit.name} does not live in the text encoder alone; export a diffusers folder with --as folder.")
    _empty(out)
    edit.apply(model.pipe, other_base=other_base)
    try:
        model.pipe.text_encoder.save_pretrained(out, safe_serialization=True)
    finally:
        edit.revert(model.pipe)


def low_rank(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Best rank-r factors (up, down) of a matrix (O, I) or convolution (O, I, k, k); their product is the approximation."""
    u, s, v = torch.linalg.svd(delta.flatten(1), full_matrices=False)
    rank = min(rank, len(s))
    root = s[:rank].sqrt()
    up, down = u[:, :rank] * root, root[:, None] * v[:rank]
    if delta.ndim == 4:
        up, down = up[..., None, None], down.reshape(rank, *delta.shape[1:])
    return up.contiguous(), down.contiguous()


def write_card(out: Path, edit: Edit, pictures: Sequence[tuple[str, Tensor, Tensor]], form: str, error: float | None = None) -> None:
    """README.md with before/after pictures (prompt, before, after), each (3, H, W) in [0, 1]."""
    info = edit.info
    names = "; ".join(c["name"] for c in info.concepts)
    rows = []
    for i, (prompt, before, after) in enumerate(pictures):
        strip = torch.cat((before, after), 2).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
        scale = max(1, 256 // before.shape[-1])
        image = Image.fromarray(strip.numpy())
        image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(out / f"before-after-{i}.png")
        rows.append(f"![before and after](before-after-{i}.png)\n\n{prompt}\n")
    usage = {
        "text-encoder": "StableDiffusionPipeline.from_pretrained(BASE, text_encoder=CLIPTextModel.from_pretrained(FOLDER))",
        "folder": f"{'OneStepPipeline' if info.product == 'one-step' else 'StableDiffusionPipeline'}.from_pretrained(FOLDER)",
        "lora": "pipe.load_lora_weights(FOLDER)",
        "edit": "Edit.load(FOLDER).apply(pipe)",
    }
    lines = [
        "---",
        f"base_model: {info.base['source']}",
        f"base_model_relation: {'adapter' if form == 'lora' else 'finetune'}",
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        f"tags: [concept-erasure, {info.method}, text-to-image, diffusers{', lora' if form == 'lora' else ''}]",
        "---",
        "",
        f"# {names}, erased with {info.method}",
        "",
        f"Load with `{usage[form]}`. The safety checker is off.",
        "",
        *rows,
        f"Base `{info.base['source']}` ({info.base['fingerprint'][:12]}), seed {info.seed}, computed in {info.precision}.",
        "",
        "| field | value |",
        "|---|---|",
        *(f"| {k} | {v} |" for k, v in sorted(info.fields.items())),
        "",
        *([f"Relative error of the low-rank approximation: {error:.3f} of the edit's Frobenius norm.", ""] if error is not None else []),
        "Erasure is not removal: prompts found by an attack, or fine-tuning, can bring a concept back. Measure before you rely on it.",
        "",
    ]
    write_bytes(out / "README.md", "\n".join(lines).encode())


def before_after(
    model: DiffusionModel, edit: Edit, seeds: Sequence[int] = (0, 1), other_base: bool = False
) -> list[tuple[str, Tensor, Tensor]]:
    """Pictures of the edit's first training sentence, of base and edited model from the same noise."""
    concept = Concept.from_record(edit.info.concepts[0])
    prompt = concept.sentences()[-1][0]

    def shown() -> Tensor:
        return model.decode(model.sample([prompt] * len(seeds), seeds)).cpu()

    before = shown()
    edit.apply(model.pipe, other_base=other_base)
    try:
        after = shown()
    finally:
        edit.revert(model.pipe)
    return [(prompt, b, a) for b, a in zip(before, after, strict=True)]


def _empty(out: Path) -> None:
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
