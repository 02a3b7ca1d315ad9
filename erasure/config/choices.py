"""Choices and ranges that the command line offers and the model takes. No torch here, so that help is quick."""

from typing import Annotated, Literal

from pydantic import Field

Region = Literal["xattn", "xattn-kv", "noxattn", "selfattn", "ff-out", "full", "text-encoder"]
Attention = Literal["auto", "sdpa", "eager", "xformers"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
LoraLayout = Literal["kohya", "diffusers"]  # names in a LoRA file
Removable = Literal["caches", "downloads", "incomplete"]

# erasure.config.validation holds a value against its range. The upper ends are not recommendations; beyond them lie typing mistakes.
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Steps = Annotated[int, Field(ge=1, le=1_000_000)]  # of a training
StepsOrZero = Annotated[int, Field(ge=0, le=1_000_000)]
Count = Annotated[int, Field(ge=1, le=100_000)]  # of samples, images, sentences
ScheduleSteps = Annotated[int, Field(ge=1, le=1000)]  # the noise schedule of Stable Diffusion has 1,000 timesteps
Timestep = Annotated[int, Field(ge=0, le=999)]


def family_of_width(width: int) -> str:
    """The recipe family, told by the width of the text conditioning: "pocket", "sd1" or "sd2"."""
    return {128: "pocket", 1024: "sd2"}.get(width, "sd1")
