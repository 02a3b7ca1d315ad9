"""What programs make of exported files, and what a LoRA loses: docs/exports.md.

    python scripts/measure_exports.py                # layers applied of layers edited, by form and program; a few minutes
    python scripts/measure_exports.py --svd          # time and error of the SVD at Stable Diffusion 1.5's true widths
    python scripts/measure_exports.py --pocket       # what the error of a LoRA does to the predictions of pocket

The programs are the naming rules of tests/clients, and diffusers itself; the models are random, at SD 1.5's and 2.1's depth and a tenth
of their width.
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
from figures import fill
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel

from erasure.concept import Concept
from erasure.config.registry import load
from erasure.edits import Edit
from erasure.erasing import applied, configure, erase
from erasure.errors import UserError
from erasure.export import LoraReport, to_checkpoint, to_folder, to_lora, to_text_encoder
from erasure.export.lora import low_rank, moved_by
from erasure.export.lora_file import FILE
from erasure.families.base import DiffusionModel, canonical
from erasure.families.stable_diffusion import StableDiffusion
from erasure.loading.loader import load_model
from erasure.methods.base import Method

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the models and the programs' rules are the tests'
from tests import edits  # noqa: E402
from tests.clients import CLIENTS, original  # noqa: E402
from tests.sd_sized import pipeline  # noqa: E402
from tests.test_checkpoint import read_as_a_program_does  # noqa: E402

Reader = Callable[[DiffusionModel, Path], dict[str, Tensor]]
KINDS: dict[str, Callable[[DiffusionModel], Edit]] = {
    "UCE": edits.low_rank,
    "ESD xattn": lambda model: edits.trained(model, "xattn"),
    "ESD full": lambda model: edits.trained(model, "full"),
    "FIA": edits.pruned,
    "AdvUnlearn": lambda model: edits.trained(model, "text-encoder"),
}


@dataclass(frozen=True)
class Form:
    """A form of export and who reads it. To add one, write its line in FORMS."""

    name: str
    write: Callable[[DiffusionModel, Edit, Path], LoraReport | None]
    readers: dict[str, Reader]


def by_rule(client: str) -> Reader:
    """The change of every parameter by a program's naming rules."""
    return lambda model, out: CLIENTS[client](load_file(out / FILE), {name: p.shape for name, p in model.parameters().items()})


def lora_in_diffusers(model: DiffusionModel, out: Path) -> dict[str, Tensor]:
    pipe = copy.deepcopy(model.pipe)
    pipe.load_lora_weights(str(out))
    pipe.fuse_lora()
    return changes(model, pipe)


def folder_in_diffusers(model: DiffusionModel, out: Path) -> dict[str, Tensor]:
    return changes(model, StableDiffusionPipeline.from_pretrained(out, safety_checker=None))


def text_encoder_in_diffusers(model: DiffusionModel, out: Path) -> dict[str, Tensor]:
    pipe = copy.copy(model.pipe)
    pipe.text_encoder = CLIPTextModel.from_pretrained(out)
    return changes(model, pipe)


def checkpoint_by_rule(model: DiffusionModel, out: Path) -> dict[str, Tensor]:
    """The change of every parameter under the name where ComfyUI, A1111 and stable-diffusion.cpp look for it."""
    tensors = load_file(next(out.glob("*.safetensors")))
    return differing(model, {name: read_as_a_program_does(tensors, name, model) for name in model.parameters()})  # type: ignore[arg-type]


def checkpoint_in_diffusers(model: DiffusionModel, out: Path) -> dict[str, Tensor]:
    return differing(model, load_model(str(next(out.glob("*.safetensors"))), precision="fp32").parameters())


def differing(model: DiffusionModel, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What differs between fp16 values and the base's own rounded to fp16, by parameter; counted from the base as it is."""
    found = {}
    for name, p in model.parameters().items():
        value = values[name].detach().float().reshape(p.shape)
        if not torch.equal(value, p.detach().half().float()):
            found[name] = value - p.detach()
    return found


def changes(model: DiffusionModel, pipe: StableDiffusionPipeline) -> dict[str, Tensor]:
    """What differs between a pipeline and the base, by parameter."""
    found = {}
    for part, network in (("unet", pipe.unet), ("text_encoder", pipe.text_encoder)):
        for key, value in network.state_dict().items():
            name = f"{part}.{canonical(key).replace('.base_layer', '')}"
            if name in model.parameters() and not torch.equal(value, base := model.parameters()[name].detach()):
                found[name] = value - base
    return found


FORMS = [
    Form(
        "lora",
        lambda model, edit, out: to_lora(model, edit, out),
        {"diffusers": lora_in_diffusers, **{client: by_rule(client) for client in CLIENTS}},
    ),
    Form(
        "lora, layout diffusers",
        lambda model, edit, out: to_lora(model, edit, out, layout="diffusers"),
        {"diffusers": lora_in_diffusers, **{client: by_rule(client) for client in CLIENTS}},
    ),
    Form("folder", lambda model, edit, out: to_folder(model, edit, out), {"diffusers": folder_in_diffusers}),
    Form(
        "checkpoint",
        lambda model, edit, out: to_checkpoint(model, edit, out) and None,
        {"diffusers": checkpoint_in_diffusers, **{client: checkpoint_by_rule for client in CLIENTS if client != "kohya merge"}},
    ),
    Form("text-encoder", lambda model, edit, out: to_text_encoder(model, edit, out), {"diffusers": text_encoder_in_diffusers}),
]


def table(generation: str) -> list[str]:
    """Rows of one generation: by edit and form, what each program applies."""
    model = StableDiffusion(pipeline(generation, tenth=True), generation, "fp32")  # type: ignore[arg-type]
    model.family = generation  # otherwise told by the width
    readers = ["diffusers", *CLIENTS]
    lines = [f"| edit | form | error reported | {' | '.join(readers)} |", "|" + "---|" * (3 + len(readers))]
    for kind, make in KINDS.items():
        edit = make(model)
        layers = {f"{layer}.weight" for layer in original.layers({name: p.shape for name, p in model.parameters().items()})} & edit.moved()
        for form in FORMS:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "form"
                try:
                    report = form.write(model, edit, out)
                except UserError:
                    continue  # a form that this edit cannot take
                cells = [cell(model, edit, layers, form.readers.get(reader), out) for reader in readers]
            said = f"{report.error:.2g}" if report else "–"
            lines.append(f"| {kind}: {len(layers)} layers in {len(edit.moved())} tensors | {form.name} | {said} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return lines


def cell(model: DiffusionModel, edit: Edit, layers: set[str], reader: Reader | None, out: Path) -> str:
    """`64 of 64 (0.42)`: layers changed of layers edited, and the relative error of all changes over the whole edit."""
    if reader is None:
        return "–"
    found = reader(model, out)
    if strangers := found.keys() - edit.moved():
        raise RuntimeError(f"{len(strangers)} tensors changed that the edit does not move, such as {min(strangers)}")
    missed, total = 0.0, 0.0
    for name in edit.moved():
        delta = moved_by(model, edit, name)
        total += delta.double().square().sum().item()
        missed += (delta - found.get(name, torch.zeros(()))).double().square().sum().item()
    return f"{len(found.keys() & layers)} of {len(layers)} ({(missed / total) ** 0.5:.2g})"


def svd() -> list[str]:
    """The widest matrices of SD 1.5, with spectra that fall off like those of trained changes do."""
    lines = ["| matrix | where | exact, s | randomized, s | error exact | error randomized |", "|---|---|---|---|---|---|"]
    for (rows, columns), where in (
        ((320, 768), "to_k"),
        ((1280, 1280), "to_q"),
        ((10240, 1280), "ff.net.0"),
        ((1280, 23040), "conv1 of an up block"),
    ):
        generator = torch.Generator().manual_seed(0)
        scale = torch.arange(1, min(rows, columns) + 1).float() ** -0.5
        delta = (torch.randn(rows, len(scale), generator=generator) * scale) @ torch.randn(len(scale), columns, generator=generator)
        began = time.monotonic()
        _, s, _ = torch.linalg.svd(delta, full_matrices=False)
        exact, best = time.monotonic() - began, (s[16:].square().sum() / s.square().sum()).sqrt().item()
        began = time.monotonic()
        up, down = low_rank(delta, 16)
        quick = time.monotonic() - began
        found = ((delta - up @ down).norm() / delta.norm()).item()
        lines.append(f"| {rows} × {columns} | {where} | {exact:.2f} | {quick:.2f} | {best:.4f} | {found:.4f} |")
        print(lines[-1], flush=True)
    return [*lines, "", *whole()]


def whole() -> list[str]:
    """Seconds for all of SD 1.5."""
    model = StableDiffusion(pipeline("sd1", tenth=False), "sd1", "fp32")
    said = []
    for region in ("xattn", "full"):
        edit = edits.trained(model, region)
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            report = to_lora(model, edit, Path(folder) / "lora")
            size = (Path(folder) / "lora" / FILE).stat().st_size / 1e6
        seconds = time.monotonic() - began
        said.append(
            f"`{region}` of SD 1.5 at its true size, {report.carried} layers at rank {report.rank}: {seconds:.0f} s, {size:.0f} MB."
        )
        print(said[-1], flush=True)
    return [" ".join(said) + f" {torch.get_num_threads()} CPU thread(s), checks of the base included."]


def pocket() -> list[str]:
    """ESD on pocket as its recipe has it, exported at several ranks: the error of the weights beside that of the predictions."""
    model = load_model("pocket", precision="fp32")
    method, concepts, _ = configure(load("erasure.methods", "esd", Method), [Concept(name="watercolor")], model.family, {})
    lines = ["| rank | error of the LoRA | error of the predicted noise |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        edit = erase(model, concepts, method, out=Path(folder) / "run")
        before, wanted = predictions(model, concepts[0]), None
        with applied(model, [edit]):
            wanted = predictions(model, concepts[0])
        for rank in (4, 8, 16, 32, 64, 96, 128):
            out = Path(folder) / str(rank)
            report = to_lora(model, edit, out, rank)
            pipe = copy.deepcopy(model.pipe)
            pipe.load_lora_weights(str(out))
            pipe.fuse_lora()
            found = predictions(StableDiffusion(pipe, "pocket", "fp32"), concepts[0])
            loss = ((found - wanted).norm() / (wanted - before).norm()).item()
            lines.append(f"| {report.rank} | {report.error:.3f} | {loss:.3f} |")
            print(lines[-1], flush=True)
    return lines


@torch.no_grad()
def predictions(model: DiffusionModel, concept: Concept) -> Tensor:
    """eps for the concept's training sentences at 8 timesteps, from fixed noise."""
    sentences = [sentence for sentence, _ in concept.sentences()]
    cond = model.encode(sentences)
    noise = model.noise(range(len(sentences)))
    return torch.cat([model.predict(noise, torch.full((len(cond),), t), cond) for t in range(60, 1000, 120)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--svd", action="store_true")
    parser.add_argument("--pocket", action="store_true")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    document = args.docs / "exports.md"
    if args.svd:
        fill(document, "svd", svd())
    if args.pocket:
        fill(document, "pocket", pocket())
    if not args.svd and not args.pocket:
        fill(document, "sd1", table("sd1"))
        fill(document, "sd2", table("sd2"))


if __name__ == "__main__":
    main()
