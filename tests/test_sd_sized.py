"""Stable Diffusion's own depth, block types and tokenizer, at a tenth of its width: every method runs on both generations."""

import gzip
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from erasure.concept import Concept
from erasure.edit import Edit
from erasure.erase import applied, configure, erase
from erasure.families.stable_diffusion import StableDiffusion
from tests.test_methods import METHODS, small

SD1: dict[str, Any] = {"attention_head_dim": 8, "cross_attention_dim": 80}
SD2: dict[str, Any] = {"attention_head_dim": (1, 2, 4, 4), "cross_attention_dim": 96, "use_linear_projection": True}
CONCEPT = [Concept(name="Van Gogh", kind="style", prompts=("a painting by {} | a painting", "{}"))]


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer from the byte-pair merges that open_clip carries; 49,408 tokens, context 77."""
    packed = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(packed.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [tuple(line.split()) for line in lines]
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    words = [*letters, *(c + "</w>" for c in letters), *("".join(m) for m in merges), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=merges, model_max_length=77)


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def model(request: pytest.FixtureRequest) -> StableDiffusion:
    torch.manual_seed(0)
    shape, layers = (SD1, 12) if request.param == "sd1" else (SD2, 23)
    width, tokens = shape["cross_attention_dim"], clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
    )
    unet = UNet2DConditionModel(sample_size=8, block_out_channels=(32, 64, 128, 128), layers_per_block=2, **shape)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
    )
    prediction = "epsilon" if request.param == "sd1" else "v_prediction"
    schedule = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1, prediction_type=prediction
    )
    pipe = StableDiffusionPipeline(vae, CLIPTextModel(config), tokens, unet, schedule, None, None, requires_safety_checker=False)
    return StableDiffusion(pipe, request.param, "fp32")


def test_the_tokenizer_is_clips() -> None:
    tokens = clip_tokenizer()
    assert len(tokens) == 49408
    assert tokens("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokens("a photo of a cat").input_ids == [i for i in open_clip.tokenize("a photo of a cat")[0].tolist() if i]


def test_the_depth_is_stable_diffusions(model: StableDiffusion) -> None:
    assert len(model.region("xattn-kv")) == 32
    assert len(model.linears("ff-out")) == 16
    assert model.encode(["x"]).shape[1] == 77


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs(name: str, model: StableDiffusion, tmp_path: Path) -> None:
    quick = {"steps": 2} if name in ("esd", "salun", "advunlearn", "sfd") else {}
    extra = {"warmup": 1} if name == "advunlearn" else {"distil_steps": 3, "distil_regression": 2} if name == "sfd" else {}
    before = model.fingerprint()
    edit = erase(model, CONCEPT, small(name, **quick, **extra), out=tmp_path / "run")
    assert model.fingerprint() == before
    with applied(model, [Edit.load(tmp_path / "run")]):
        assert torch.isfinite(model.sample(["a painting by Van Gogh"], [0], steps=3)).all()
    assert edit.info.cost["text_forwards"] >= 0


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["style", "object", "person", "nsfw"])
def test_recipes_for_real_models_can_be_planned(name: str, kind: Any, model: StableDiffusion) -> None:
    from erasure.discover import load
    from erasure.methods.base import Method

    for family in ("sd1", "sd2"):
        method, concepts, _ = configure(load("erasure.methods", name, Method), [Concept(name="Van Gogh", kind=kind)], family, {})
        assert method.forecast(model, concepts).unet_forwards >= 0
