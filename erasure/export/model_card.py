"""The card that goes with whatever is exported: where it came from, what it does, and pictures before and after."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from erasure.concept import Concept
from erasure.edit import Edit, applied
from erasure.families.base import DiffusionModel
from erasure.run import write_bytes


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
    with applied(model, [edit], other_base):
        after = shown()
    return [(prompt, b, a) for b, a in zip(before, after, strict=True)]
