"""Open a pipeline folder or a text encoder in plain diffusers and transformers of any version, without this project, and save outputs.

python scripts/open_in_diffusers.py FOLDER OUT.npz [--base PIPELINE]
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel

PROMPTS = ["a house in stained glass style", "Two BOATS, it's 3 o'clock!", ""]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a pipeline, or with --base a text encoder")
    parser.add_argument("out", type=Path, help="token ids, embeddings and images")
    parser.add_argument("--base", type=Path, help="the pipeline around a text encoder")
    args = parser.parse_args()
    encoder_path = args.folder if args.base else args.folder / "text_encoder"
    encoder, loading_info = CLIPTextModel.from_pretrained(encoder_path, output_loading_info=True)
    options = {"text_encoder": encoder} if args.base else {}
    pipe = StableDiffusionPipeline.from_pretrained(args.base or args.folder, safety_checker=None, **options)
    pipe.set_progress_bar_config(disable=True)
    ids = pipe.tokenizer(
        PROMPTS, padding="max_length", max_length=pipe.tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
    sample_size, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
    latents = torch.randn(len(PROMPTS), channels, sample_size, sample_size, generator=torch.Generator().manual_seed(0))
    images = pipe(PROMPTS, latents=latents, num_inference_steps=4, guidance_scale=4.0, output_type="np").images
    np.savez(args.out, ids=ids.numpy(), text=pipe.text_encoder(ids)[0].numpy(), images=images)
    keys = {kind: sorted(map(str, loading_info[f"{kind}_keys"])) for kind in ("missing", "unexpected")}
    print(json.dumps({**keys, **{name: version(name) for name in ("torch", "diffusers", "transformers")}}))


if __name__ == "__main__":
    main()
