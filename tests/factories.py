"""Builders that several test modules share: methods with fields small enough for a tiny model, a small suite, plans and edits of it."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from erasure.concept import Concept
from erasure.config.registry import list_modules, load_class
from erasure.edits import Edit
from erasure.erasing import erase
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.base import Method, Trained
from erasure.methods.esd import ESD
from eval.auditing.plan import AuditPlan
from eval.suites.formats import GridSuite, SuiteAttacks, parse_attacks
from eval.suites.suite import SUITES_FOLDER, load_suite
from tests import tiny

CAT = [Concept(name="cat", kind="object", prompts=("{}", "a {} at night | night"))]
RETAIN_PROMPTS = ("a dog", "a cat", "the sea")
TRAJECTORIES = {"trajectories": 4, "trajectory_steps": 3, "lr": 1e-3, "steps": 3, "batch": 2}
RETAIN = {"retain_prompts": RETAIN_PROMPTS, "retain_trajectories": 4, "retain_batch": 3}
SMALL_FIELDS: dict[str, dict[str, Any]] = {
    "esd": TRAJECTORIES,
    "salun": {**TRAJECTORIES, **RETAIN},
    "advunlearn": {**TRAJECTORIES, **RETAIN, "attack_steps": 2, "warmup": 2, "attack_tokens": 2, "steps": 4},
    "uce": {"retain_prompts": RETAIN_PROMPTS, "probe_prompts": RETAIN_PROMPTS},
    "fia": {"candidate_fraction": 0.1, "record_steps": 2, "trajectory_steps": 4},
    "sfd": {
        "steps": 2,
        "batch": 2,
        "lr": 1e-3,
        "fake_lr": 1e-3,
        "rank": 2,
        "retain_prompts": RETAIN_PROMPTS,
        "distill_regression_steps": 2,
        "distill_steps": 3,
        "distill_trajectories": 4,
        "trajectory_steps": 3,
    },
    "sfd_matching": {
        "steps": 3,
        "batch": 2,
        "retain_batch": 3,
        "lr": 1e-3,
        "retain_prompts": RETAIN_PROMPTS,
        "generated_images": 4,
        "retain_generated_images": 4,
        "noise_levels": 3,
    },
    "negative_prompt": {},
    "npo": {**TRAJECTORIES, **RETAIN},
    "duo": {**TRAJECTORIES, "levels": 2, "anchor_weight": 1.0},
    "projected": {},
    "ssd": {"retain_prompts": RETAIN_PROMPTS, "trajectories": 4, "retain_trajectories": 4, "trajectory_steps": 3},
    "sld": {"warmup": 0.3},
    "doco": {**TRAJECTORIES, **RETAIN, "warmup": 1, "critic_lr": 1e-3},
}
ESD_FIELDS = {"steps": 6, "batch": 2, "trajectories": 4, "trajectory_steps": 4, "lr": 1e-3}
PLAN_FIELDS = {"steps": 40, "batch": 2, "trajectories": 4, "trajectory_steps": 3, "lr": 1e-3}
METHODS = list_modules("erasure.methods")
TRAINED_METHODS = [name for name in METHODS if issubclass(load_class("erasure.methods", name, Method), Trained)]
GENERATORS_FOLDER = Path(tempfile.mkdtemp(prefix="erasure-generators-"))
ATTACKS: dict[str, dict[str, Any]] = {
    "seed_search": {},
    "random_prefix": {"tokens": 2},
    "soft_prefix": {"tokens": 2, "steps": 4, "batch": 2},
    "again": {"attack": "relearning", "data": "benign", "steps": 2, "checkpoints": 2, "batch": 2, "adapter": "full"},
}

ONE_STEP_SUITE: dict[str, Any] = {
    "styles": {"plain": "plain", "neon": "neon", "sketch": "sketch"},
    "objects": {"boat": "a boat", "tree": "a tree"},
    "aliases": {},
    "perturbations": [],
    "steps": 1,
    "tiers": {tier: [1, 1] for tier in ("smoke", "standard", "full")},
}


def small_method(name: str, **fields: Any) -> Method:
    """A method whose fields make it run for a moment."""
    return load_class("erasure.methods", name, Method)(**{**SMALL_FIELDS[name], **fields})


def ready_method(name: str, model: StableDiffusion, **fields: Any) -> Method:
    """`small_method`, with the generator that it needs on this model."""
    if name == "sfd_matching":
        fields["generator"] = str(GENERATORS_FOLDER / f"{model.fingerprint()[:12]}-{model.compute_dtype}")
        erase(model, CAT, small_method("sfd"), out=Path(fields["generator"]))
    return small_method(name, **fields)


def erase_on_small_latents(model: StableDiffusion, concepts: list[Concept], out: Path, seed: int = 0) -> Edit:
    """An ESD edit made on 8x8 latents, which is quicker; what moves does not depend on their size."""
    shape, model.latent_shape = model.latent_shape, (4, 8, 8)
    try:
        return erase(model, concepts, ESD(**ESD_FIELDS), out=out, seed=seed)  # type: ignore[arg-type]
    finally:
        model.latent_shape = shape


def pocket_suite() -> GridSuite:
    """The shipped suite of pocket."""
    suite = load_suite("pocket")
    assert isinstance(suite, GridSuite)
    return suite


def small_suite() -> GridSuite:
    """The pocket suite cut down to six cells of two steps, judged by pocket's judges on 64x64 images."""
    suite = pocket_suite()
    styles = {label: suite.styles[label] for label in ("plain", "neon", "sketch")}
    return replace(suite, steps=2, styles=styles, objects={label: suite.objects[label] for label in ("boat", "tree")})


def small_suite_record() -> dict[str, Any]:
    """The same cells as a suite file holds them, with other wordings of neon alone."""
    suite = yaml.safe_load((SUITES_FOLDER / "pocket.yaml").read_text(encoding="utf-8"))
    suite |= {"steps": 2, "styles": {label: suite["styles"][label] for label in ("plain", "neon", "sketch")}}
    suite |= {"objects": {label: suite["objects"][label] for label in ("boat", "tree")}}
    suite["aliases"] = {"neon": suite["aliases"]["neon"]}
    return suite


def attack_plan(edit: Edit, attacks: dict[str, dict] = ATTACKS) -> AuditPlan:
    """The audit of an edit with `small_suite` and attacks on three prompts, in tier smoke."""
    suite = replace(small_suite(), attacks=SuiteAttacks(tiers=("smoke",), prompts=3, images=2, fresh_images=2, use=parse_attacks(attacks)))
    (plan,) = AuditPlan.for_edits([edit], suite, "smoke")
    return plan


def write_small_plan(folder: Path, methods: tuple[str, ...] = ("esd",), concepts: tuple[str, ...] = ("neon",), **more: object) -> Path:
    """A plan on a tiny model whose images have pocket's size, audited with a suite of six cells; its model and suite are beside it."""
    model = folder / "model"
    if not model.exists():
        tiny.save_pipeline(model, size=16, levels=3)
    # a gate that all pass that erase anything: `jobs run` ends with the verdict
    suite = {**small_suite_record(), "gates": {"any": {"rate": "UA", "at_least": 1e-6}}}
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))
    fields = {"esd": PLAN_FIELDS, "uce": {}}
    entries = [{"concept": list(concepts), "method": method, "fields": fields[method]} for method in methods]
    plan = {"model": str(model), "suite": str(folder / "suite.yaml"), "out": str(folder / "out"), "jobs": entries, **more}
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))
    return path


def write_one_step_suite(folder: Path, **change: Any) -> Path:
    """A suite file without attacks: one image of one step in each of six cells."""
    record = yaml.safe_load((SUITES_FOLDER / "pocket.yaml").read_text())
    del record["attacks"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "suite.yaml").write_text(yaml.safe_dump({**record, **ONE_STEP_SUITE, **change}))
    return folder / "suite.yaml"
