"""Choices and ranges of options and fields, in marks that pydantic reads. Neither it nor torch is imported here, so that help is fast."""

from typing import Annotated, Literal

from annotated_types import Interval

Region = Literal["xattn", "xattn-kv", "text-proj", "noxattn", "selfattn", "ff-out", "full", "text-encoder"]
Attention = Literal["auto", "sdpa", "eager", "xformers"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Offload = Literal["auto", "none", "text", "all"]  # what waits in main memory: nothing, all but the denoiser, or all that does not compute
VaeMode = Literal["auto", "whole", "sliced", "tiled"]  # how latents become images: all at once, one image at a time, or in tiles
OptimizerName = Literal["adam", "adam8bit"]
LoraLayout = Literal["kohya", "diffusers"]  # names in a LoRA file
Tracker = Literal["none", "tensorboard", "wandb", "trackio", "mlflow"]
Removable = Literal["caches", "downloads", "incomplete"]

# erasure.config.validation checks values against these ranges. The upper ends are not recommendations; values beyond them are typos.
Seed = Annotated[int, Interval(ge=0, lt=2**63)]
Steps = Annotated[int, Interval(ge=1, le=1_000_000)]  # optimizer steps
StepsOrZero = Annotated[int, Interval(ge=0, le=1_000_000)]
Count = Annotated[int, Interval(ge=1, le=100_000)]  # of samples, images, prompts
ScheduleSteps = Annotated[int, Interval(ge=1, le=1000)]  # the noise schedule of Stable Diffusion has 1,000 timesteps
Weight = Annotated[float, Interval(ge=0, le=1e9)]  # of a term of a loss; 0 leaves it out
PositiveWeight = Annotated[float, Interval(gt=0, le=1e9)]  # of a term without which nothing is erased
Timestep = Annotated[int, Interval(ge=0, le=999)]
