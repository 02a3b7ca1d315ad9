"""Stable Diffusion 1.x and 2.x: one CLIP text encoder and a UNet that predicts noise or v."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from erasure.config.choices import Attention, Precision
from erasure.families.base import DiffusionModel
from erasure.families.clip_text import context_length_of, expand_embeddings, insert_soft_tokens, token_ids_of, tokenize_prompts
from erasure.families.conditioning import Conditioning, ConditioningPart
from erasure.families.cost import count_pass
from erasure.families.joint_attention import in_clip_region
from erasure.families.recognition import recognize_family
from erasure.families.sampling import own_network_call
from erasure.families.schedules import DiffusionSchedule
from erasure.families.supported_models import check_pipeline
from erasure.families.unet import in_unet_region, latent_size, set_unet_attention


class StableDiffusion(DiffusionModel):
    """A diffusers StableDiffusionPipeline.

    Raises:
        UserError: The pipeline is not a supported one, or its config has no usable latent size.
    """

    family = "sd"
    schedule: DiffusionSchedule

    def __init__(self, pipe: Any, source: str, precision: Precision = "auto", attention: Attention = "auto") -> None:
        check_pipeline(pipe, "StableDiffusionPipeline", source)
        self.family = recognize_family(pipe.unet.config, pipe.text_encoder.config.to_dict(), source)
        self.default_guidance = 4.0 if self.family == "pocket" else 7.5
        self.latent_shape = (pipe.unet.config.in_channels, *latent_size(pipe, source))
        self.schedule = DiffusionSchedule(pipe.scheduler.config, pipe._execution_device, source)
        super().__init__(pipe, source, precision, attention)

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"unet": self.pipe.unet, "text_encoder": self.pipe.text_encoder}

    def in_region(self, name: str, region: str) -> bool:
        return in_unet_region(name, region) or in_clip_region(name, region)

    def closed_form_layers(self) -> dict[str, ConditioningPart]:
        return dict.fromkeys(self.parameter_names("xattn-kv"), "sequence")

    def encode(self, prompts: Sequence[str], prefix: Tensor | None = None) -> Conditioning:
        encoder, tokenizer = self.pipe.text_encoder, self.pipe.tokenizer
        texts = [expand_embeddings(self.pipe, prompt, tokenizer) for prompt in prompts]
        ids, attention_mask = tokenize_prompts(tokenizer, texts, self.context_length, 0 if prefix is None else prefix.shape[-2])
        # SD 1.x was trained without an attention mask on the padding; the config of SD 2.x says whether it wants one
        mask = attention_mask.to(self.device) if getattr(encoder.config, "use_attention_mask", False) else None
        self.cost.text_forwards += len(prompts)
        with insert_soft_tokens(encoder.get_input_embeddings(), prefix), self.autocast():
            states: Tensor = encoder(ids.to(self.device), attention_mask=mask).last_hidden_state
        return Conditioning(states.float())

    @property
    def context_length(self) -> int:
        return context_length_of(self.pipe.tokenizer, self.pipe.text_encoder)

    @property
    def token_spans(self) -> tuple[tuple[int, int], ...]:
        return ((0, self.context_length),)

    def token_embeddings(self) -> Tensor:
        embeddings: Tensor = self.pipe.text_encoder.get_input_embeddings().weight
        return embeddings.detach().float()

    def tokenize(self, text: str) -> list[int]:
        return token_ids_of(self.pipe.tokenizer, expand_embeddings(self.pipe, text, self.pipe.tokenizer))

    def last_token_indices(self, text: str) -> tuple[int, ...]:
        return (min(len(self.tokenize(text)), self.context_length - 2),)

    def predict_native(self, x_t: Tensor, t: Tensor, cond: Conditioning, guidance: float) -> Tensor:
        with self.autocast(), own_network_call():
            prediction: Tensor = self.pipe.unet(x_t, t, encoder_hidden_states=cond.sequence).sample
        return count_pass(self.cost, prediction.float())

    def set_attention(self, training: bool) -> None:
        set_unet_attention(self.pipe.unet, self.attention, training, self.device)
