"""Concept inversion: a new word, learned on pictures of the concept, asks the erased model for what its name no longer brings (white box).

Textual inversion (Gal et al., arXiv:2208.01618) on an erased model, as in Circumventing Concept Erasure (Pham et al., arXiv:2308.01508).
A word can also teach a model something new. A success says that the weights can still be asked for the concept, not that they remember it;
only the same fit on a model that never knew the concept tells the two apart.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from erasure.errors import UserError
from erasure.families.base import DiffusionModel, sampling_of
from erasure.training.divergence import explain_divergence
from eval.attacks.base import AttackContext, AttackQuery, NotApplicable, Prepared, PromptAttack


@dataclass(frozen=True, kw_only=True)
class ConceptInversion(PromptAttack):
    """One new word for all prompts, put before prompts that never name the concept: `stand.stripped`.

    The paper's templates say nothing but the new word; for a list of prompts its authors put the word before each, as is done here. What a
    picture shows besides is said by its prompt, which leaves the concept to the word. The loss asks the networks alone: what a guidance
    edit does at sampling shows in the pictures only.
    """

    paper: ClassVar[str] = "arXiv:2308.01508"
    threat: ClassVar[str] = "holds the erased model's weights and pictures of the concept; puts vectors that no word has before a prompt"

    tokens: int = 1  # vectors of the new word
    initializer_word: str = "art"  # the word from which the fit begins
    examples: int = 25  # pictures by the base to learn from, at most
    steps: int = 5000  # AdamW steps
    batch: int = 16  # noised pictures per step
    lr: float = 0.08  # step size, in units of the input embeddings; the authors multiply 5e-3 by their batch
    weight_decay: float = 0.01  # AdamW's

    def __post_init__(self) -> None:
        for name in ("tokens", "examples", "steps", "batch", "lr"):
            if not getattr(self, name) > 0:
                raise UserError(f"concept_inversion: {name} must be positive, got {getattr(self, name)}.")
        if self.weight_decay < 0:
            raise UserError(f"concept_inversion: weight_decay cannot be negative, got {self.weight_decay}; 0 turns it off.")

    def initial_vectors(self, model: DiffusionModel) -> Tensor:
        """Where the fit begins (k, E): the mean of the tokens of `word`, k times.

        Raises:
            UserError: a word without tokens.
        """
        ids = model.tokenize(self.initializer_word)
        if not ids:
            raise UserError(f"concept_inversion: word {self.initializer_word!r} has no tokens; name one, such as art.")
        return model.token_embeddings()[ids].mean(0, keepdim=True).repeat(self.tokens, 1)

    def fit(self, context: AttackContext, prepared: Prepared) -> Prepared:
        """Adds "word" (rounds, k, E): the new word as the fit went on. Step k draws its random numbers from (seed, k).

        Raises:
            Unsuited: no prompts without the concept, a one-step generator.
            FloatingPointError: a loss that is NaN or Inf.
        """
        _require_applicable(context)
        v = self.initial_vectors(context.model).requires_grad_(True)
        optimizer = torch.optim.AdamW([v], lr=self.lr, weight_decay=self.weight_decay)
        examples = torch.randperm(len(context.prompts), generator=context.generator())[: self.examples]
        snapshot_steps = [max(1, (j + 1) * self.steps // context.rounds) for j in range(context.rounds)]
        snapshots: list[Tensor] = []
        context.model.set_attention(training=True)
        try:
            for step in range(1, self.steps + 1):
                loss = self.loss(context, examples, v, context.generator(step))
                if not math.isfinite(loss.item()):
                    cause = explain_divergence(context.model.compute_dtype, step - 1, "its lr")
                    raise FloatingPointError(f"concept_inversion: the loss is {loss.item()} at step {step}; {cause}.")
                v.grad = torch.autograd.grad(loss, v)[0]
                context.model.cost.unet_backwards += self.batch
                optimizer.step()
                snapshots += [v.detach().clone()] * snapshot_steps.count(step)
        finally:
            context.model.set_attention(training=False)
        return {**prepared, "word": torch.stack(snapshots)}

    def loss(self, context: AttackContext, examples: Tensor, v: Tensor, generator: torch.Generator) -> Tensor:
        """E |eps - eps_erased(x_t, t, c(v + prompt))|^2 over a random batch of the base's pictures (arXiv:2208.01618, equation 2)."""
        chunk = examples[torch.randint(len(examples), (self.batch,), generator=generator)].tolist()
        x_0, t = context.base_latents(chunk), torch.randint(1000, (self.batch,), generator=generator).to(context.model.device)
        eps = torch.randn(x_0.shape, generator=generator).to(x_0)
        cond = context.model.encode([context.stripped_prompts[i] for i in chunk], v)
        return F.mse_loss(context.model.predict(context.model.add_noise(x_0, eps, t), t, cond), eps)

    def queries(self, context: AttackContext, chunk: Sequence[int], prepared: Prepared) -> Iterator[AttackQuery]:
        prompts = [context.stripped_prompts[i] for i in chunk]
        for vectors in prepared["word"].to(context.model.device):
            yield AttackQuery(prompts, vectors, [f"(a learned word) {prompt}" for prompt in prompts])


def _require_applicable(context: AttackContext) -> None:
    if len(context.stripped_prompts) != len(context.prompts):
        raise NotApplicable(
            f"concept_inversion asks without the concept's name: it needs {len(context.prompts)} such prompts, got {len(context.stripped_prompts)}; "
            "take a suite that has them, or leave this attack out."
        )
    if sampling_of(context.model.pipe).one_step_timestep is not None:
        raise NotApplicable("concept_inversion denoises noised pictures, which a one-step generator never does; leave this attack out.")
