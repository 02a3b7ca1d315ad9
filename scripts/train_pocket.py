"""Train the pocket model and its judges from scratch, on a CPU or a GPU, in one resumable command.

    python scripts/train_pocket.py --work runs/pocket --out erasure/pocket/weights

Stages, each skipped if its result exists: images, vae, text (BPE tokenizer and contrastive text encoder), unet, judges,
open_clip. An interrupted stage continues from its last checkpoint. Logs and sample grids go to the work folder.
"""

import argparse
import json
import random
import shutil

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import compute_snr
from pocket_judges import train_judges, train_open_clip
from pocket_training import CELLS, CONTEXT, TrainingSetup, contrastive_loss, encode_latents, fit, render_training_images, tokenize
from safetensors.torch import load_file, save_file
from tokenizers import models, pre_tokenizers, trainers
from torch import Tensor, nn
from torchvision.utils import save_image
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig

from erasure.export.transformers_compat import make_shareable, rename_text_encoder_keys, write_vocabulary_files
from erasure.pocket.canvas import OBJECTS
from erasure.pocket.captions import NAMED_TEMPLATES, OBJECT_WORDS, STYLE_WORDS


def train_vae(setup: TrainingSetup, data: Tensor) -> AutoencoderKL:
    folder = setup.out / "vae"
    if (folder / "config.json").exists():
        return AutoencoderKL.from_pretrained(folder).float().to(setup.device)
    torch.manual_seed(setup.args.seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        norm_num_groups=16,
        sample_size=64,
    )
    vae = vae.to(setup.device, memory_format=torch.channels_last)

    def loss(step: int) -> Tensor:
        x = (data[setup.rows(step, 32)].to(setup.device).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        with setup.autocast():
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample.float()
        edge_loss = sum((y.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (2, 3))
        color_loss = F.mse_loss(F.avg_pool2d(y, 4), F.avg_pool2d(x, 4))  # with L1 alone, rare colors stay gray for long
        return F.l1_loss(y, x) + 0.5 * edge_loss + 5 * color_loss + 1e-6 * posterior.kl().float().mean()

    def preview(_: nn.Module, step: int) -> None:
        x = data[:90].to(setup.device).float() / 127.5 - 1
        with torch.no_grad(), setup.autocast():
            y = vae(x).sample.float()
        save_image(torch.stack((x, y), 1).flatten(0, 1) / 2 + 0.5, setup.work / f"vae-{step}.png", nrow=20)

    fit(setup, "vae", vae, loss, steps=setup.args.vae_steps, lr=2e-3, ema=0.995, preview=preview)
    with torch.no_grad(), setup.autocast():
        z = vae.encode(data[:900].to(setup.device).float() / 127.5 - 1).latent_dist.mean.float()
    vae.register_to_config(scaling_factor=round(1 / z.std().item(), 5))
    vae.half().save_pretrained(folder)
    return vae.float()


def train_tokenizer(setup: TrainingSetup) -> CLIPTokenizer:
    """Train a byte-pair vocabulary on the captions; the byte alphabet keeps every other string encodable."""
    folder = setup.out / "tokenizer"
    if (folder / "tokenizer_config.json").exists():
        return CLIPTokenizer.from_pretrained(folder)
    corpus = setup.captions(list(range(min(len(setup.canvas_images), 18 * len(CELLS)))), salt=0)
    backend = CLIPTokenizer().backend_tokenizer
    backend.model = models.BPE(end_of_word_suffix="</w>")
    backend.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=1200, end_of_word_suffix="</w>", show_progress=False))
    merges = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)
    tokenizer.save_pretrained(folder)
    return tokenizer


def train_text_encoder(setup: TrainingSetup, data: Tensor, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    folder = setup.out / "text_encoder"
    if (folder / "config.json").exists():
        return CLIPTextModel.from_pretrained(folder).float().to(setup.device)
    torch.manual_seed(setup.args.seed)
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        projection_dim=128,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    vision_config = CLIPVisionConfig(
        image_size=64, patch_size=8, hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4, projection_dim=128
    )
    clip = CLIPModel(CLIPConfig(text_config=text_config.to_dict(), vision_config=vision_config.to_dict(), projection_dim=128))
    clip.set_attn_implementation("eager")  # the backward pass of fused attention is slow on a CPU at this size
    clip = clip.to(setup.device)

    def loss(step: int) -> Tensor:
        rows = setup.rows(step, 128)
        x = data[rows].to(setup.device).float() / 127.5 - 1
        ids = tokenize(tokenizer, setup.captions(rows, salt=step)).to(setup.device)
        with setup.autocast():
            out = clip(input_ids=ids, pixel_values=x)
        return contrastive_loss(out.image_embeds, out.text_embeds, clip.logit_scale)

    fit(setup, "text", clip, loss, steps=setup.args.text_steps, lr=1e-3)
    clip.text_model.half().save_pretrained(folder)
    return CLIPTextModel.from_pretrained(folder).float().to(setup.device)


def noise_schedule() -> DDIMScheduler:
    """Return the noise schedule of Stable Diffusion 1.x."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def new_unet() -> UNet2DConditionModel:
    """Return an untrained UNet with 5.9 M parameters and cross-attention at 16x16 and 8x8."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )


def train_unet(setup: TrainingSetup, data: Tensor, vae: AutoencoderKL, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
    folder = setup.out / "unet"
    if (folder / "config.json").exists():
        return
    pipeline = build_pipeline(vae, tokenizer, text_encoder, fit_unet(setup, data, vae, tokenizer, text_encoder), noise_schedule())
    pipeline.to(dtype=torch.float16).save_pretrained(setup.out)
    # transformers loads in the dtype of this file, diffusers in fp32; without a requested dtype they must agree
    config = setup.out / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    rename_text_encoder_keys(setup.out / "text_encoder")
    write_vocabulary_files(tokenizer, setup.out / "tokenizer")
    make_shareable(setup.out)


def fit_unet(
    setup: TrainingSetup, data: Tensor, vae: AutoencoderKL, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel
) -> UNet2DConditionModel:
    """Train a UNet from scratch on the training images: uint8 [N, 3, 64, 64]."""
    latents_path = setup.work / f"latents-{len(data)}.safetensors"
    if not latents_path.exists():
        save_file({"latents": encode_latents(setup, data, vae)}, latents_path)
    latents = load_file(latents_path)["latents"]
    scheduler = noise_schedule()
    torch.manual_seed(setup.args.seed)
    unet = new_unet().to(setup.device, memory_format=torch.channels_last)
    unet.set_attn_processor(AttnProcessor())  # the backward pass of fused attention is slow on a CPU at this size

    def loss(step: int) -> Tensor:
        rows = setup.rows(step, setup.args.batch)
        x_0 = latents[rows].to(setup.device).float()
        captions = [t if random.Random(f"{step}|{i}").random() > 0.1 else "" for i, t in enumerate(setup.captions(rows, salt=step))]
        t = torch.randint(0, 1000, (len(rows),)).to(setup.device)
        noise = torch.randn(x_0.shape).to(setup.device)
        x_t = scheduler.add_noise(x_0, noise, t).contiguous(memory_format=torch.channels_last)
        with setup.autocast():
            with torch.no_grad():
                condition = text_encoder(tokenize(tokenizer, captions).to(setup.device)).last_hidden_state
            eps = unet(x_t, t, condition).sample.float()
        # min-SNR weights (Hang et al., arXiv:2303.09556), gamma = 5
        snr = compute_snr(scheduler, t)
        weight = snr.clamp(max=5) / snr
        return (weight * (eps - noise).square().mean((1, 2, 3))).mean()

    pipeline = build_pipeline(vae, tokenizer, text_encoder, unet, scheduler)

    def preview(model: nn.Module, step: int) -> None:
        model.eval()
        prompts = [NAMED_TEMPLATES[0].format(o="a " + OBJECT_WORDS[o].names[0], s=STYLE_WORDS[s].names[0]) for o, s in CELLS]
        with setup.autocast():
            images = pipeline(
                prompts,
                num_inference_steps=20,
                guidance_scale=4.0,
                height=64,
                width=64,
                output_type="pt",
                generator=torch.Generator().manual_seed(0),
            ).images
        save_image(images.float(), setup.work / f"unet-{step}.png", nrow=len(OBJECTS))
        model.train()

    fit(setup, "unet", unet, loss, steps=setup.args.unet_steps, lr=setup.args.unet_lr, ema=0.9995, preview=preview)
    unet.set_default_attn_processor()
    return unet


def build_pipeline(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, unet: UNet2DConditionModel, scheduler: DDIMScheduler
) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline(vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="runs/pocket", help="checkpoints, logs, grids")
    parser.add_argument("--out", default="runs/pocket/weights", help="the finished pipeline")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=27_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--vae-steps", type=int, default=1_900)
    parser.add_argument("--text-steps", type=int, default=1_500)
    parser.add_argument("--unet-steps", type=int, default=3_400)
    parser.add_argument("--judge-steps", type=int, default=900)
    parser.add_argument("--clip-steps", type=int, default=800)
    parser.add_argument("--broken", type=int, default=2_500)
    parser.add_argument("--unet-lr", type=float, default=8e-4)
    parser.add_argument("--only", choices=("vae", "text", "unet", "judges", "open_clip"), help="run this stage only")
    parser.add_argument("--fresh", action="store_true", help="delete checkpoints and results first")
    args = parser.parse_args()
    if args.fresh:
        shutil.rmtree(args.work, ignore_errors=True)
    setup = TrainingSetup(args)
    data, tokenizer = render_training_images(setup), train_tokenizer(setup)
    if args.only in (None, "unet", "vae"):
        vae = train_vae(setup, data)
    if args.only in (None, "unet", "text"):
        text_encoder = train_text_encoder(setup, data, tokenizer)
    if args.only in (None, "unet"):
        train_unet(setup, data, vae, tokenizer, text_encoder)
    if args.only in (None, "judges"):
        train_judges(setup, data)
    if args.only in (None, "open_clip"):
        train_open_clip(setup, data, tokenizer)


if __name__ == "__main__":
    main()
