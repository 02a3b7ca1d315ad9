"""A plain version of the public ESD loop, to compare with the cached one: a fresh rollout per update and a copy of the teacher.

    python scripts/baselines/esd_plain.py --concept neon --kind style --gradients 1200 --out runs/plain-neon

Same network, dtype, threads, prompts, region, learning rate and number of student sample-gradients as `erasure erase` with its recipe
for this kind; only the source of (x_t, t) and of the teacher's predictions differs. Writes an edit that `erasure audit` reads.
"""

import argparse
import copy
import json
import random
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from erasure.concept import parse_concepts
from erasure.edits import Edit, EditInfo
from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model
from erasure.methods.esd import ESD
from erasure.recipes import configure_method


def rollout(teacher: DiffusionModel, prompt: str, steps: int, guidance: float, stop: int, seed: int) -> tuple[torch.Tensor, int]:
    """Sample from pure noise for `stop` guided steps and return x_t [1, 4, h, w] and t there."""
    cond, empty = teacher.encode([prompt]), teacher.encode([""])
    for i, step in enumerate(teacher.trajectory(teacher.sample_noise([seed]), cond, empty, steps, guidance)):
        if i == stop:
            return step.x_t, step.t
    raise AssertionError("stop must be below steps")


def train(
    student: DiffusionModel,
    teacher: DiffusionModel,
    method: ESD,
    pairs: list[tuple[str, str]],
    parameters: dict[str, torch.nn.Parameter],
    gradients: int,
    trajectory_steps: int,
    seed: int,
) -> None:
    """Run the ESD loop for as many sample-gradients, one rollout of the teacher for each."""
    optimizer, rng = torch.optim.Adam(parameters.values(), lr=method.lr), random.Random(seed)
    for _ in tqdm(range(gradients // method.batch), desc="plain"):
        optimizer.zero_grad()
        for _ in range(method.batch):
            prompt, neutral_prompt = rng.choice(pairs)
            stop, noise_seed = rng.randrange(trajectory_steps), rng.randrange(2**31)
            x_t, t = rollout(teacher, prompt, trajectory_steps, method.trajectory_guidance, stop, noise_seed)
            times = torch.tensor([t])
            with torch.no_grad():
                pred_cond, pred_neutral = (teacher.predict(x_t, times, teacher.encode([text])) for text in (prompt, neutral_prompt))
            target = pred_neutral - method.negative_guidance * (pred_cond - pred_neutral)
            loss = F.mse_loss(student.predict(x_t, times, student.encode([prompt])), target) / method.batch
            loss.backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concept", required=True)
    parser.add_argument("--kind", default="style")
    parser.add_argument("--gradients", type=int, default=0, help="student sample-gradients; default: as many as the recipe takes")
    parser.add_argument("--trajectory-steps", type=int, default=50, help="DDIM steps of a full rollout, as in the public code")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    student = load_model("pocket")
    base = student.fingerprint()
    teacher = copy.copy(student)
    teacher.pipe = copy.copy(student.pipe)
    teacher.pipe.unet = copy.deepcopy(student.pipe.unet)
    configured, concepts, _ = configure_method(ESD, parse_concepts(args.concept, kind=args.kind), student.family, {})
    method: ESD = configured  # type: ignore[assignment]
    pairs = [pair for concept in concepts for pair in method.prompt_pairs(concept)]
    parameters = {name: student.parameters()[name] for name in student.parameter_names(method.region)}
    for p in parameters.values():
        p.requires_grad_(True)
    student.set_attention(training=True)
    start, gradients = time.monotonic(), args.gradients or method.steps * method.batch
    train(student, teacher, method, pairs, parameters, gradients, args.trajectory_steps, args.seed)
    seconds = time.monotonic() - start
    cost = {"sample_gradients": gradients, "unet_forwards": student.cost.unet_forwards, "unet_backwards": gradients}
    info = EditInfo(
        method="esd-plain",
        product="weights",
        fields=asdict(method),
        concepts=[c.to_dict() for c in concepts],
        seed=args.seed,
        precision=str(student.compute_dtype).removeprefix("torch."),
        base={"source": "pocket", "fingerprint": base, "family": student.family},
        versions={},
        cost=cost,
        concept_checks=[],
        notes={},
    )
    Edit({name: p.detach().half() for name, p in parameters.items()}, info).save(args.out)
    (args.out / "timing.json").write_text(json.dumps({"train_seconds": round(seconds, 1)}) + "\n")
    print(json.dumps({**cost, "seconds": round(seconds, 1)}))


if __name__ == "__main__":
    main()
