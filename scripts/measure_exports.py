"""Measure how programs apply exported files, and what a LoRA loses: docs/results/exports.md.

    python scripts/measure_exports.py                # layers applied of layers edited, by format and program; a few minutes
    python scripts/measure_exports.py --svd          # time and error of the SVD at Stable Diffusion 1.5's true widths
    python scripts/measure_exports.py --pocket       # the effect of a LoRA's error on the predictions of pocket

The programs are the naming rules of tests/clients, and diffusers itself. The models have random weights, the depth of SD 1.5 and 2.1
and a tenth of their width.
"""

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from fill_docs import fill_section
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel

from erasure.concept import Concept
from erasure.config.registry import load_class
from erasure.edits import Edit, apply_edits
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.export import LoraReport, to_checkpoint, to_folder, to_lora, to_text_encoder
from erasure.export.lora import delta_of, truncated_svd
from erasure.export.lora_file import LORA_FILE
from erasure.families.base import DiffusionModel
from erasure.families.parameters import canonical_name
from erasure.families.stable_diffusion import StableDiffusion
from erasure.loading.loader import load_model
from erasure.methods.base import Method
from erasure.recipes import configure_method

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the models and the programs' rules are part of the tests
from tests import synthetic_edits as edits  # noqa: E402
from tests.clients import CLIENTS  # noqa: E402
from tests.clients import original_layout as original  # noqa: E402
from tests.clients.checkpoint import read_as_a_program_does  # noqa: E402
from tests.sd_architecture import pipeline  # noqa: E402

Reader = Callable[[DiffusionModel, Path], dict[str, Tensor]]
EDITS: dict[str, Callable[[DiffusionModel], Edit]] = {
    "UCE": edits.low_rank_edit,
    "ESD xattn": lambda model: edits.trained_edit(model, "xattn"),
    "ESD full": lambda model: edits.trained_edit(model, "full"),
    "FIA": edits.pruned_edit,
    "AdvUnlearn": lambda model: edits.trained_edit(model, "text-encoder"),
}


@dataclass(frozen=True)
class ExportFormat:
    """An export format and its readers. To add one, extend EXPORT_FORMATS."""

    name: str
    write: Callable[[DiffusionModel, Edit, Path], LoraReport | None]
    readers: dict[str, Reader]


def read_by_rule(client: str) -> Reader:
    """Return a reader for the change of every parameter under a program's naming rules."""
    return lambda model, out: CLIENTS[client](load_file(out / LORA_FILE), {name: p.shape for name, p in model.parameters().items()})


def read_lora_in_diffusers(model: DiffusionModel, out: Path) -> dict[str, Tensor]:
    pipe = copy.deepcopy(model.pipe)
    pipe.load_lora_weights(str(out))
    pipe.fuse_lora()
    return pipeline_changes(model, pipe)


def read_folder_in_diffusers(model: DiffusionModel, out: Path) -> dict[str, Tensor]:
    return pipeline_changes(model, StableDiffusionPipeline.from_pretrained(out, safety_checker=None))


def read_text_encoder_in_diffusers(model: DiffusionModel, out: Path) -> dict[str, Tensor]:
    pipe = copy.copy(model.pipe)
    pipe.text_encoder = CLIPTextModel.from_pretrained(out)
    return pipeline_changes(model, pipe)


def read_checkpoint_by_rule(model: DiffusionModel, out: Path) -> dict[str, Tensor]:
    """Return the change of every parameter under the name that ComfyUI, A1111 and stable-diffusion.cpp use."""
    tensors = load_file(next(out.glob("*.safetensors")))
    values = {name: read_as_a_program_does(tensors, name, model) for name in model.parameters()}  # type: ignore[arg-type]
    return fp16_changes(model, values)


def read_checkpoint_in_diffusers(model: DiffusionModel, out: Path) -> dict[str, Tensor]:
    return fp16_changes(model, load_model(str(next(out.glob("*.safetensors"))), dtype="fp32").parameters())


def fp16_changes(model: DiffusionModel, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return, by parameter, values that differ from the base rounded to fp16, minus the base itself."""
    changed = {}
    for name, p in model.parameters().items():
        value = values[name].detach().float().reshape(p.shape)
        if not torch.equal(value, p.detach().half().float()):
            changed[name] = value - p.detach()
    return changed


def pipeline_changes(model: DiffusionModel, pipe: StableDiffusionPipeline) -> dict[str, Tensor]:
    """Return the difference between a pipeline and the base, by changed parameter."""
    changed, parameters = {}, model.parameters()
    for part, network in (("unet", pipe.unet), ("text_encoder", pipe.text_encoder)):
        for key, value in network.state_dict().items():
            name = f"{part}.{canonical_name(key).replace('.base_layer', '')}"
            if name in parameters and not torch.equal(value, base := parameters[name].detach()):
                changed[name] = value - base
    return changed


EXPORT_FORMATS = [
    ExportFormat(
        "lora",
        lambda model, edit, out: to_lora(model, edit, out),
        {"diffusers": read_lora_in_diffusers, **{client: read_by_rule(client) for client in CLIENTS}},
    ),
    ExportFormat(
        "lora, layout diffusers",
        lambda model, edit, out: to_lora(model, edit, out, layout="diffusers"),
        {"diffusers": read_lora_in_diffusers, **{client: read_by_rule(client) for client in CLIENTS}},
    ),
    ExportFormat("folder", lambda model, edit, out: to_folder(model, edit, out), {"diffusers": read_folder_in_diffusers}),
    ExportFormat(
        "checkpoint",
        lambda model, edit, out: to_checkpoint(model, edit, out) and None,
        {"diffusers": read_checkpoint_in_diffusers, **{client: read_checkpoint_by_rule for client in CLIENTS if client != "kohya merge"}},
    ),
    ExportFormat("text-encoder", lambda model, edit, out: to_text_encoder(model, edit, out), {"diffusers": read_text_encoder_in_diffusers}),
]


def format_table(generation: str) -> list[str]:
    """Return the rows of one generation: by edit and format, the layers that each program applies."""
    model = StableDiffusion(pipeline(generation, small=True), generation, "fp32")  # type: ignore[arg-type]
    model.family = generation  # otherwise derived from the width
    readers = ["diffusers", *CLIENTS]
    lines = [f"| edit | format | error reported | {' | '.join(readers)} |", "|" + "---|" * (3 + len(readers))]
    for kind, make_edit in EDITS.items():
        edit = make_edit(model)
        layers = {
            f"{layer}.weight" for layer in original.weight_layers({name: p.shape for name, p in model.parameters().items()})
        } & edit.moved_parameters()
        for export_format in EXPORT_FORMATS:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "export"
                try:
                    report = export_format.write(model, edit, out)
                except UserError:
                    continue  # the format does not fit this edit
                cells = [format_cell(model, edit, layers, export_format.readers.get(reader), out) for reader in readers]
            error_text = f"{report.error:.2g}" if report else "–"
            edit_text = f"{kind}: {len(layers)} layers in {len(edit.moved_parameters())} tensors"
            lines.append(f"| {edit_text} | {export_format.name} | {error_text} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return lines


def format_cell(model: DiffusionModel, edit: Edit, layers: set[str], reader: Reader | None, out: Path) -> str:
    """Format `64 of 64 (0.42)`: layers changed of layers edited, and the relative error of all changes over the whole edit."""
    if reader is None:
        return "–"
    predicted = reader(model, out)
    if unexpected := predicted.keys() - edit.moved_parameters():
        raise RuntimeError(f"{len(unexpected)} tensors changed that the edit does not move, such as {min(unexpected)}")
    squared_error, total, base = 0.0, 0.0, model.parameters()
    for name in edit.moved_parameters():
        delta = delta_of(edit, name, base[name])
        total += delta.double().square().sum().item()
        squared_error += (delta - predicted.get(name, torch.zeros(()))).double().square().sum().item()
    return f"{len(predicted.keys() & layers)} of {len(layers)} ({(squared_error / total) ** 0.5:.2g})"


def measure_svd() -> list[str]:
    """Measure the SVD of the widest matrices of SD 1.5, with spectra that decay like those of trained changes."""
    lines = ["| matrix | where | exact, s | randomized, s | error exact | error randomized |", "|---|---|---|---|---|---|"]
    for (rows, columns), layer in (
        ((320, 768), "to_k"),
        ((1280, 1280), "to_q"),
        ((10240, 1280), "ff.net.0"),
        ((1280, 23040), "conv1 of an up block"),
    ):
        generator = torch.Generator().manual_seed(0)
        scale = torch.arange(1, min(rows, columns) + 1).float() ** -0.5
        delta = (torch.randn(rows, len(scale), generator=generator) * scale) @ torch.randn(len(scale), columns, generator=generator)
        start = time.monotonic()
        _, s, _ = torch.linalg.svd(delta, full_matrices=False)
        exact_seconds, exact_error = time.monotonic() - start, (s[16:].square().sum() / s.square().sum()).sqrt().item()
        start = time.monotonic()
        up, down = truncated_svd(delta, 16)
        randomized_seconds = time.monotonic() - start
        randomized_error = ((delta - up @ down).norm() / delta.norm()).item()
        figures = f"{exact_seconds:.2f} | {randomized_seconds:.2f} | {exact_error:.4f} | {randomized_error:.4f}"
        lines.append(f"| {rows} × {columns} | {layer} | {figures} |")
        print(lines[-1], flush=True)
    return [*lines, "", *measure_full_size()]


def measure_full_size() -> list[str]:
    """Measure the seconds of exporting all of SD 1.5."""
    model = StableDiffusion(pipeline("sd1", small=False), "sd1", "fp32")
    lines = []
    for region in ("xattn", "full"):
        edit = edits.trained_edit(model, region)
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            report = to_lora(model, edit, Path(folder) / "lora")
            size = (Path(folder) / "lora" / LORA_FILE).stat().st_size / 1e6
        seconds = time.monotonic() - start
        lines.append(
            f"`{region}` of SD 1.5 at its true size, {report.included} layers at rank {report.rank}: {seconds:.0f} s, {size:.0f} MB."
        )
        print(lines[-1], flush=True)
    return [" ".join(lines) + f" {torch.get_num_threads()} CPU thread(s), checks of the base included."]


def measure_prediction_error() -> list[str]:
    """Export an ESD edit of pocket at several ranks, and compare the error of the weights with that of the predictions."""
    model = load_model("pocket", dtype="fp32")
    method, concepts, _ = configure_method(load_class("erasure.methods", "esd", Method), [Concept(name="watercolor")], model.family, {})
    lines = ["| rank | error of the LoRA | error of the predicted noise |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        edit = erase(model, concepts, method, out=Path(folder) / "run")
        base_predictions, edited_predictions = predict_noise(model, concepts[0]), None
        with apply_edits(model, [edit]):
            edited_predictions = predict_noise(model, concepts[0])
        for rank in (4, 8, 16, 32, 64, 96, 128):
            out = Path(folder) / str(rank)
            report = to_lora(model, edit, out, rank)
            pipe = copy.deepcopy(model.pipe)
            pipe.load_lora_weights(str(out))
            pipe.fuse_lora()
            lora_predictions = predict_noise(StableDiffusion(pipe, "pocket", "fp32"), concepts[0])
            loss = ((lora_predictions - edited_predictions).norm() / (edited_predictions - base_predictions).norm()).item()
            lines.append(f"| {report.rank} | {report.error:.3f} | {loss:.3f} |")
            print(lines[-1], flush=True)
    return lines


@torch.no_grad()
def predict_noise(model: DiffusionModel, concept: Concept) -> Tensor:
    """Return eps [8 * B, 4, h, w] for the concept's B training prompts at 8 timesteps, from fixed noise."""
    prompts = [prompt for prompt, _ in concept.prompt_pairs()]
    cond = model.encode(prompts)
    noise = model.sample_noise(range(len(prompts)))
    return torch.cat([model.predict(noise, torch.full((len(cond),), t), cond) for t in range(60, 1000, 120)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--svd", action="store_true")
    parser.add_argument("--pocket", action="store_true")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    document = args.docs / "results" / "exports.md"
    if args.svd:
        fill_section(document, "svd", measure_svd())
    if args.pocket:
        fill_section(document, "pocket", measure_prediction_error())
    if not args.svd and not args.pocket:
        fill_section(document, "sd1", format_table("sd1"))
        fill_section(document, "sd2", format_table("sd2"))


if __name__ == "__main__":
    main()
