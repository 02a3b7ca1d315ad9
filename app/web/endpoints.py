"""The page's functions for programs: gradio_client calls them by name."""

import base64
from typing import Any

import gradio as gr

from app.web import images
from app.web.comparison import CompareRequest, EditChoice
from app.web.messages import page_error
from app.web.studio import Studio
from erasure.errors import UserError


def add_endpoints(studio: Studio) -> None:
    """Add what programs may call to the page that is being built."""

    def compare(
        prompt: str, edits: list[str], seed: int, images_count: int, steps: int, guidance: float, strength: float, model: str = ""
    ) -> list[dict[str, Any]]:
        """Generate a prompt with a model and with edits applied, from the same noise: one record a seed, with PNG images as base64."""
        try:
            request = CompareRequest(
                model=model or studio.first_source,
                prompt=prompt,
                edits=tuple(EditChoice(name, strength) for name in edits),
                seed=seed,
                count=images_count,
                steps=steps,
                guidance=guidance,
            )
            *_, comparison = studio.sampler.compare(request)
            pairs = enumerate(zip(comparison.seeds, comparison.base, comparison.erased, strict=True))
            return [
                {"seed": str(seed), "before": encode(before, comparison.is_blurred(i)), "after": encode(after, comparison.is_blurred(i))}
                for i, (seed, before, after) in pairs
            ]
        except UserError as error:
            raise page_error(error) from None

    gr.api(compare, api_name="compare", concurrency_id="model", concurrency_limit=1)


def encode(pixels: Any, blurred: bool) -> str:
    return base64.b64encode(images.to_png(images.to_image(pixels, blurred))).decode()
