"""The model card of every export: its origin, how to load it, and images before and after."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image
from torch import Tensor

from erasure.concept import Concept
from erasure.edits import Edit, apply_edits
from erasure.export.lora import MAX_ERROR, LoraReport
from erasure.export.lora_file import LORA_FILE, short_name_of
from erasure.families.base import DiffusionModel
from erasure.families.batching import images_at_once
from erasure.families.original_names import TRANSFORMERS
from erasure.families.pipelines import FAMILY_PIPELINES, PIPELINES, SINGLE_FILE_PIPELINES
from erasure.loading.model_source import SHIPPED_MODELS, is_hub_id
from erasure.storage.run import write_bytes

# What CommonMark and GitHub's Markdown read as markup in text whose <, > and & are HTML entities. Within a word "_" is none, and without
# brackets neither are "(" and "!"; lists and headings begin a line; "://" and "www." make links, "@" a mention.
MARKDOWN_CHARS = re.compile(r"[\\`*\[\]|~$@]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=\bwww)\.|^[-+](?=[\s-]|$)|^#(?=#{0,5}(\s|$))", re.IGNORECASE)
PLACES = {  # what stands for the reader's own paths in the ways to load an export
    "FOLDER": "the folder that holds this card",
    "FILE": "the .safetensors file beside this card",
    "BASE": "the base model named below",
    "EDIT": "the edit's own folder",
}
IMAGE_STEPS = 25  # sampling steps of the images on a card
MAX_SHOWN = 5  # items of a list, or 40 times as many characters, that are shown; longer values are folded
OPENRAIL_M, OPENRAIL_PLUS_PLUS = "creativeml-openrail-m", "openrail++"
LICENSES = {  # as the hub lists them for these bases; for others the license is not certain
    "pocket": "apache-2.0",
    "pocket-flow": "apache-2.0",
    "CompVis/stable-diffusion-v1-4": OPENRAIL_M,
    "runwayml/stable-diffusion-v1-5": OPENRAIL_M,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": OPENRAIL_M,
    "stabilityai/stable-diffusion-2": OPENRAIL_PLUS_PLUS,
    "stabilityai/stable-diffusion-2-base": OPENRAIL_PLUS_PLUS,
    "stabilityai/stable-diffusion-2-1": OPENRAIL_PLUS_PLUS,
    "stabilityai/stable-diffusion-2-1-base": OPENRAIL_PLUS_PLUS,
    "stabilityai/stable-diffusion-xl-base-1.0": OPENRAIL_PLUS_PLUS,
    "black-forest-labs/FLUX.1-schnell": "apache-2.0",
}


class BeforeAfter(NamedTuple):
    """What the base and the edited model make of one prompt and the noise of one seed: images (3, H, W) in [0, 1] on the CPU."""

    prompt: str
    seed: int
    before: Tensor
    after: Tensor


def write_card(
    out: Path, edit: Edit, images: Sequence[BeforeAfter], format: str, lora: LoraReport | None = None, layout: str = "kohya"
) -> None:
    """Write README.md and before/after images.

    Args:
        images: shown in this order.
        format: one of erasure.export.EXPORT_FORMATS.
        lora: what a LoRA holds of the edit.
        layout: of a LoRA.
    """
    rows = []
    for i, pair in enumerate(images):
        save_pair(out / f"before-after-{i}.png", pair.before, pair.after)
        caption = f"Before (left) and after (right): {escape_markdown(pair.prompt)}, seed {pair.seed}"
        rows.append(f"![before and after](before-after-{i}.png)\n\n{caption}\n")
    names = [escape_markdown(c["name"]) for c in edit.info.concepts]
    title = "; ".join(names) if len(names) <= MAX_SHOWN else f"{len(names)} concepts"
    parts = [
        f"# {title}, erased with {escape_markdown(edit.info.method)}",
        *([fold_list(f"the {len(names)} concepts", names)] if len(names) > MAX_SHOWN else []),
        "## How to load it",
        *describe_loading(edit, format, layout),
        *([describe_fidelity(edit, lora)] if lora else []),
        *rows,
        "## Where it came from",
        f"Base: {escape_markdown(describe_base(edit))} (fingerprint {edit.info.base['fingerprint'][:12]}), seed {edit.info.seed}, "
        f"computed in {escape_markdown(edit.info.precision)}. It is a derivative of that base, and the base's license goes with it. "
        "The safety checker was off.",
        *format_fields(edit.info.fields),
        "Erasure is not removal: prompts found by an attack, or fine-tuning, can bring a concept back. Measure before you rely on it.",
    ]
    card = ModelCard(f"---\n{build_card_header(edit, format).to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")
    write_bytes(out / "README.md", str(card).encode())


def build_card_header(edit: Edit, format: str) -> ModelCardData:
    """Return the metadata that the hub reads: `base_model` only if the base is on the hub, a license only if it is certain."""
    base = edit.info.base["source"]
    license_ = LICENSES.get(base, "other")
    return ModelCardData(
        base_model=base if is_on_hub(base) else None,
        base_model_relation=("adapter" if format in ("lora", "edit") else "finetune") if is_on_hub(base) else None,
        library_name="diffusers",
        license=license_,
        license_name="license-of-the-base-model" if license_ == "other" else None,
        pipeline_tag="text-to-image",
        tags=["concept-erasure", edit.info.method, "text-to-image", "diffusers", *(["lora"] if format == "lora" else [])],
    )


def describe_loading(edit: Edit, format: str, layout: str) -> tuple[str, str]:
    """Return a list of programs with how each loads the export, and what the words in capitals in it stand for."""
    ways = "\n".join(f"- **{client}**: {how}" for client, how in describe_usage(edit, format, layout))
    named = [f"{word} is {meaning}" for word, meaning in PLACES.items() if re.search(rf"\b{word}\b", ways)]
    return ways, f"{'; '.join(named)}."


def describe_usage(edit: Edit, format: str, layout: str) -> list[tuple[str, str]]:
    """Return how each program loads a format, in words for someone who has only the export."""
    if format == "lora":
        return describe_lora_usage(edit, layout)
    pipeline = FAMILY_PIPELINES[edit.info.base["family"]]
    wanted = "checkpoint" if pipeline in SINGLE_FILE_PIPELINES else "lora"
    made = f"which `erasure export EDIT --format {wanted}` makes of the edit itself"
    convert = ("ComfyUI", f"it does not read this format; ask for a LoRA, {made}")
    if wanted == "checkpoint":
        convert = ("ComfyUI, A1111, stable-diffusion.cpp", f"they do not read this format; ask for a checkpoint, {made}")
    others = "`checkpoint`, `folder`" if wanted == "checkpoint" else "`folder`"
    own = "OneStepPipeline" if edit.info.product == "one-step" else pipeline
    return {
        "edit": [
            ("Erasure Studio", "`Edit.load(FOLDER).apply(pipe)`, or `erasure audit FOLDER`"),
            ("other programs", f"`erasure export FOLDER --format lora` (or {others}) makes a file or folder that they read"),
        ],
        "folder": [("diffusers", f"`{own}.from_pretrained(FOLDER)`"), convert],
        "text-encoder": [
            ("diffusers", describe_text_encoder_usage(edit, pipeline)),
            convert,
        ],
        "checkpoint": [
            ("Erasure Studio", "`--model FILE` in every command, or `erasure.load_model(FILE)`; no network is needed"),
            ("ComfyUI", "copy FILE to `models/checkpoints/`; Stable Diffusion and SDXL at their released sizes only"),
            ("A1111 and Forge", "copy FILE to `models/Stable-diffusion/`; the same sizes"),
            ("stable-diffusion.cpp", "`-m FILE`; the same sizes"),
        ],
    }[format]


def describe_text_encoder_usage(edit: Edit, pipeline: str) -> str:
    """Return how diffusers loads an exported text encoder, or several, each in its own folder."""
    classes, parts = PIPELINES[pipeline].networks, sorted({name.partition(".")[0] for name in edit.moved_parameters()})
    parts = [part for part in parts if part.startswith("text_encoder")] or ["text_encoder"]
    alone = sum(name.startswith("CLIP") for name in classes.values()) == 1
    arguments = [f"{part}={classes[part]}.from_pretrained({'FOLDER' if alone else f'FOLDER/{part}'})" for part in parts]
    return f"`{pipeline}.from_pretrained(BASE, {', '.join(arguments)})`"


def describe_lora_usage(edit: Edit, layout: str) -> list[tuple[str, str]]:
    """Return how each program loads the LoRA; those that look it up by name need a distinct file name."""
    name, family = short_name_of(edit), edit.info.base["family"]
    diffusers = ("diffusers", "`pipe.load_lora_weights(FOLDER)` on the base, at a scale of 1")
    comfyui = ("ComfyUI", f"copy `{LORA_FILE}` to `models/loras/{name}.safetensors`; node Load LoRA, strength_model and strength_clip 1.0")
    others = "they skip most or all of this layout in silence"
    if family == "pocket-flow":
        return [diffusers]
    if family in TRANSFORMERS:
        if layout == "diffusers":
            return [diffusers, comfyui, ("kohya's tools", f"{others}; ask for a LoRA in kohya's layout")]
        return [
            comfyui,
            ("diffusers", "it skips a part or all of this layout in silence; ask for a LoRA in diffusers' layout"),
            *describe_merging(family, name),
        ]
    if layout == "diffusers":
        return [diffusers, ("other programs", f"{others}; ask for a LoRA in kohya's layout, which they read")]
    if family == "sdxl":
        return [diffusers, comfyui, *describe_merging(family, name)]
    return [
        diffusers,
        comfyui,
        ("A1111 and Forge", f"copy it to `models/Lora/{name}.safetensors`; write `<lora:{name}:1>` in every prompt"),
        ("stable-diffusion.cpp", f"`--lora-model-dir` with that file in it; write `<lora:{name}:1>` in every prompt"),
        *describe_merging(family, name),
    ]


def describe_merging(family: str, name: str) -> list[tuple[str, str]]:
    """Return how kohya's sd-scripts merge the LoRA; nothing for families without a script."""
    arguments = f"--models {name}.safetensors --ratios 1 --save_to ERASED"
    scripts = {"flux": "flux_merge_lora.py --flux_model BASE", "sdxl": "sdxl_merge_lora.py --sd_model BASE"}
    script = scripts.get(family, "" if family in TRANSFORMERS else "merge_lora.py --sd_model BASE")
    return [("kohya's sd-scripts", f"`networks/{script} {arguments}`")] if script else []


def describe_fidelity(edit: Edit, lora: LoraReport) -> str:
    """Return a paragraph on how much of the edit the LoRA holds."""
    loss = "" if lora.is_faithful else f", more than {MAX_ERROR}: a {lora.whole} of the same edit holds all of it"
    notes = "".join(f" {escape_markdown(note[0].upper() + note[1:])}." for note in lora.notes)
    return (
        f"This LoRA {escape_markdown(lora.summary)}{loss}. "
        f"The error is relative: the norm of what the file misses over that of the edit.{notes} "
        "A LoRA is only in effect while it is loaded: whoever has the base can leave it out."
    )


def format_fields(fields: dict[str, Any]) -> list[str]:
    """Return the method's fields as a Markdown table; long ones are folded below it."""
    long = {key: value for key, value in fields.items() if isinstance(value, list | tuple) and len(value) > MAX_SHOWN}
    long |= {key: [value] for key, value in fields.items() if isinstance(value, str) and len(value) > 40 * MAX_SHOWN}
    short = {key: value for key, value in fields.items() if key not in long}
    rows = "\n".join(f"| {escape_markdown(key)} | {escape_markdown(format_value(value))} |" for key, value in sorted(short.items()))
    lists = [fold_list(key, [escape_markdown(format_value(item)) for item in value]) for key, value in sorted(long.items())]
    return [f"| field | value |\n|---|---|\n{rows}", *lists]


def fold_list(title: str, items: Iterable[str]) -> str:
    """Return a list that opens on a click, as HTML in Markdown."""
    return f"<details><summary>{escape(title)}</summary>\n\n" + "\n".join(f"- {item}" for item in items) + "\n\n</details>"


def format_value(value: Any) -> str:
    """Format a value without this machine's folders: of a path, only its last part."""
    if isinstance(value, list | tuple):
        return "; ".join(format_value(item) for item in value)
    return re.split(r"[\\/]", value.rstrip("\\/"))[-1] if isinstance(value, str) and is_path_like(value) else str(value)


def is_path_like(text: str) -> bool:
    """Return whether a text is, or looks like, a path on some machine."""
    if "\0" in text or len(text) > 1000:
        return False
    return (
        text.startswith(("/", "~", "./", "../", "\\\\")) or bool(re.match(r"[A-Za-z]:[\\/]", text)) or ("/" in text and Path(text).exists())
    )


def is_on_hub(base: str) -> bool:
    """Return whether a base is a hub id; not if a folder or file of that name exists here."""
    return is_hub_id(base) and base.count("/") == 1 and not base.endswith(".safetensors")


def describe_base(edit: Edit) -> str:
    """Return the base in words that mean something on another machine."""
    base = edit.info.base["source"]
    return base if base in SHIPPED_MODELS or is_on_hub(base) else f"a local {edit.info.base['family']} model"


def escape_markdown(text: str) -> str:
    """Return text as one line in which nothing is Markdown or HTML markup."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return re.sub(r"^(\d{1,9})([.)])(?=\s|$)", r"\1\\\2", MARKDOWN_CHARS.sub(r"\\\g<0>", escape(line, quote=False)))


def save_pair(path: Path, before: Tensor, after: Tensor) -> None:
    """Save two images (3, H, W) in [0, 1] side by side as PNG, each enlarged to about 256 pixels."""
    strip = torch.cat((before, after), 2).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
    scale = max(1, 256 // before.shape[-1])
    image = Image.fromarray(strip.numpy())
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(path)


def sample_before_after(model: DiffusionModel, edit: Edit, seeds: Sequence[int] = (0, 1), other_base: bool = False) -> list[BeforeAfter]:
    """Generate images with the base and the edited model from the same noise, for a training prompt of the edit's first concept."""
    concept = Concept.from_dict(edit.info.concepts[0])
    prompt = concept.prompt_pairs()[-1][0]

    def generate() -> Tensor:
        count = images_at_once(model, len(seeds))
        parts = [seeds[i : i + count] for i in range(0, len(seeds), count)]
        return torch.cat([model.decode(model.sample([prompt] * len(part), part, IMAGE_STEPS)).cpu() for part in parts])

    before = generate()
    with apply_edits(model, [edit], other_base):
        after = generate()
    return [BeforeAfter(prompt, seed, b, a) for seed, b, a in zip(seeds, before, after, strict=True)]
