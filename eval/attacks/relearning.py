"""Relearning: fine-tuning after the erasure, on the concept or on something else, and how soon the concept is drawn again.

On unrelated pictures this is concept resurgence (Suriyakumar et al., arXiv:2410.08074): nobody attacks, and the concept may return.
On a few pictures of the concept it is the plainest attack of whoever holds the weights. Loss and optimiser are those of ordinary scripts.
"""

import math
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from torch import Tensor, nn

from erasure.errors import UserError, unknown_value_error
from erasure.families.base import DiffusionModel, sampling_of
from erasure.methods.base import unfreeze
from erasure.training.divergence import explain_divergence
from erasure.training.teacher_cache import LatentBatch
from eval.attacks.base import AttackContext, NotApplicable, WeightAttack

TrainingData = Literal["benign", "targeted"]
Adapter = Literal["lora", "full"]
Networks = Literal["unet", "text_encoder", "both"]


@dataclass(frozen=True, kw_only=True)
class Relearning(WeightAttack):
    """AdamW on the noise prediction of pictures that the base drew.

    Both networks train unless told otherwise. Common scripts train the UNet, and the text encoder on request; whoever wants a concept back
    requests it, since an edit may have moved either. They use learning rates near 1e-5 for all weights and 1e-4 for adapters.
    """

    paper: ClassVar[str] = "arXiv:2410.08074"
    threat: ClassVar[str] = "holds the erased model's weights and trains them"

    data: TrainingData = "targeted"  # pictures of the concept, or benign ones that have nothing to do with it
    adapter: Adapter = "lora"  # low-rank factors beside all linear and convolution layers, or full: every weight
    networks: Networks = "both"  # which networks train
    examples: int = 10  # pictures by the base to learn from, at most
    rank: int = 4  # of the adapters
    steps: int = 1000  # AdamW steps
    lr: float = 1e-4  # learning rate
    batch: int = 4  # noised pictures per step
    checkpoints: int = 5  # looks at the model after equal parts of the steps; another one before the first step

    def __post_init__(self) -> None:
        for name, allowed in (("data", TrainingData), ("adapter", Adapter), ("part", Networks)):
            if getattr(self, name) not in get_args(allowed):
                raise unknown_value_error(f"{name} of relearning", getattr(self, name), get_args(allowed))
        for name in ("examples", "rank", "steps", "lr", "batch", "checkpoints"):
            if not getattr(self, name) > 0:
                raise UserError(f"relearning: {name} must be positive, got {getattr(self, name)}.")
        if self.checkpoints > self.steps:
            raise UserError(f"relearning: {self.steps} steps cannot be looked at {self.checkpoints} times; raise its steps.")

    def fine_tune(self, context: AttackContext) -> Generator[int]:
        """Steps done, first 0: the erased model as it is. Step k draws its random numbers from (seed, k).

        Raises:
            Unsuited: no pictures to learn from, a one-step generator.
            FloatingPointError: a loss that is NaN or Inf.
        """
        model, latents = context.model, self.training_latents(context)
        yield 0
        checkpoint_steps = [(j + 1) * self.steps // self.checkpoints for j in range(self.checkpoints)]
        with ExitStack() as exit_stack:
            parameters = self.trainable_parameters(context, exit_stack)
            exit_stack.callback(model.set_attention, training=False)
            model.set_attention(training=True)
            optimizer = torch.optim.AdamW(parameters, lr=self.lr)
            for step in range(1, self.steps + 1):
                loss = self.loss(model, latents, context.generator(step))
                if not math.isfinite(loss.item()):
                    cause = explain_divergence(model.compute_dtype, step - 1, "its lr")
                    raise FloatingPointError(f"relearning: the loss is {loss.item()} at step {step}; {cause}.")
                optimizer.zero_grad()
                loss.backward(inputs=parameters)
                model.cost.unet_backwards += self.batch
                model.cost.sample_gradients += self.batch
                optimizer.step()
                if step in checkpoint_steps:
                    model.set_attention(training=False)
                    yield step
                    model.set_attention(training=True)

    def training_latents(self, context: AttackContext) -> LatentBatch:
        """The pictures it learns from, with the prompts for which the base drew them."""
        if sampling_of(context.model.pipe).one_step_timestep is not None:
            raise NotApplicable("relearning denoises noised pictures, which a one-step generator never does; leave this attack out.")
        rows = context.cache.latent_rows("erase" if self.data == "targeted" else "retain")
        if not len(rows):
            raise NotApplicable(f"relearning: no pictures were recorded for {self.data} data; give the suite prompts of that kind.")
        chosen = torch.randperm(len(rows), generator=context.generator())[: self.examples]
        return context.cache.gather_latents(rows[chosen], context.model.device)

    def loss(self, model: DiffusionModel, latents: LatentBatch, generator: torch.Generator) -> Tensor:
        """E |eps - eps_theta(x_t, t, c)|^2 over a random batch (DDPM, arXiv:2006.11239, equation 14)."""
        chosen = torch.randint(len(latents.prompts), (self.batch,), generator=generator).tolist()
        x_0, t = latents.x_0[chosen], torch.randint(1000, (self.batch,), generator=generator).to(model.device)
        eps = torch.randn(x_0.shape, generator=generator).to(x_0)
        cond = model.encode([latents.prompts[i] for i in chosen])
        return F.mse_loss(model.predict(model.add_noise(x_0, eps, t), t, cond), eps)

    def trainable_parameters(self, context: AttackContext, exit_stack: ExitStack) -> list[nn.Parameter]:
        """What trains, in fp32; once `undo` unwinds, the model is what it was, bit for bit."""
        model = context.model
        network_names = [network_name for network_name in model.networks if self.networks in (network_name, "both")]
        if self.adapter == "full":
            names = [name for name in model.parameters() if name.partition(".")[0] in network_names]
            return list(exit_stack.enter_context(unfreeze(model, names)).values())
        with torch.random.fork_rng():
            torch.manual_seed(context.seed)
            return [
                p
                for network_name in network_names
                for p in exit_stack.enter_context(lora_adapters(model.networks[network_name], self.rank))
            ]


@contextmanager
def lora_adapters(network: nn.Module, rank: int) -> Iterator[list[nn.Parameter]]:
    """Factors beside the linear and convolution layers of a network (LoRA, arXiv:2106.09685), in fp32 and on; out again on exit.

    Ups start at zero, so that at first nothing changes. The sets of erasure.training.adapters are for the UNet alone.
    """
    layer_names = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    lora = LoraModel(network, LoraConfig(r=rank, lora_alpha=rank, target_modules=layer_names), "relearned")
    try:
        network.eval()  # the new layers come in training mode
        lora_parameters = [p for p in network.parameters() if p.requires_grad]
        for p in lora_parameters:
            p.data = p.data.float()
        yield lora_parameters
    finally:
        lora.unload()
        vars(network).pop("peft_config", None)  # older peft leaves it behind
        network.requires_grad_(False)
