"""Parts of scripts/train_pocket_flow.py: the untrained transformer, and joint attention that counts a token several times."""

import math

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from erasure.pocket.flow import NULL_WIDTH

TEXT_WIDTH = 128  # of pocket's text encoder
JOINT_WIDTH = POOLED_WIDTH = TEXT_WIDTH + NULL_WIDTH


def new_transformer(layers: int, heads: int, head_width: int) -> SD3Transformer2DModel:
    """Return an untrained transformer that starts as the identity (adaLN-zero; Peebles & Xie, arXiv:2212.09748, section 3.2)."""
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=head_width,
        num_attention_heads=heads,
        joint_attention_dim=JOINT_WIDTH,
        caption_projection_dim=heads * head_width,
        pooled_projection_dim=POOLED_WIDTH,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if name.endswith(("norm1.linear", "norm1_context.linear", "norm_out.linear")) or name == "proj_out":
                nn.init.zeros_(module.weight)
    with torch.no_grad():
        transformer.context_embedder.weight /= 3  # penultimate states of pocket's text encoder have a deviation of 3.3
    look_at_neighbors(transformer)
    return transformer


OFFSETS = sorted(((y, x) for y in range(-2, 3) for x in range(-2, 3)), key=lambda o: (o[0] ** 2 + o[1] ** 2, o))


@torch.no_grad()
def look_at_neighbors(transformer: SD3Transformer2DModel, sharpness: float = 1.25) -> None:
    """Start all but the last head of every layer with attention to the patch at one offset, as a convolution would.

    Keys read the fastest sines and cosines of the position; queries read them turned by the offset, so that their product is largest
    where the positions differ by it. Without this start the network needs thousands of steps to learn what is next to what.
    """
    config = transformer.config
    width, heads, head_width = transformer.inner_dim, config.num_attention_heads, config.attention_head_dim
    frequencies, half = head_width // 4, width // 4
    omega = 1 / 10000 ** (torch.arange(half, dtype=torch.float64) / half)
    offsets = iter(OFFSETS * 4)
    for block in transformer.transformer_blocks:
        for head in range(heads - 1):
            dy, dx = next(offsets)
            q, k = torch.zeros(head_width, width), torch.zeros(head_width, width)
            for axis, offset in enumerate((dx, dy)):  # the first half of the embedding is of x
                for i in range(frequencies):
                    row, sin = (axis * frequencies + i) * 2, axis * width // 2 + i
                    cos = sin + half
                    turn = float(omega[i]) * offset
                    k[row, sin] = k[row + 1, cos] = 1
                    q[row, sin], q[row, cos] = math.cos(turn), math.sin(turn)
                    q[row + 1, sin], q[row + 1, cos] = -math.sin(turn), math.cos(turn)
            rows = slice(head * head_width, (head + 1) * head_width)
            block.attn.to_q.weight[rows], block.attn.to_k.weight[rows] = q, k
        block.attn.norm_q.weight.fill_(sharpness)
        block.attn.norm_k.weight.fill_(sharpness)


class RepeatedTokenProcessor:
    """Joint attention written out, in which the last text token counts as `repeats` equal ones.

    A plain pipeline appends up to 256 zero rows for a missing T5. n equal tokens draw exactly as much attention as one whose logits
    are raised by log n, so training sees every number of them at the cost of one.
    """

    def __init__(self) -> None:
        self.bias = torch.zeros(())

    def set_repeats(self, repeats: int) -> None:
        self.bias.fill_(math.log(repeats))

    def __call__(self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask=None):
        image, text = hidden_states, encoder_hidden_states
        batch, length, _ = image.shape

        def heads(x: Tensor) -> Tensor:
            return x.reshape(batch, x.shape[1], attn.heads, -1).transpose(1, 2)

        q = torch.cat((attn.norm_q(heads(attn.to_q(image))), attn.norm_added_q(heads(attn.add_q_proj(text)))), 2)
        k = torch.cat((attn.norm_k(heads(attn.to_k(image))), attn.norm_added_k(heads(attn.add_k_proj(text)))), 2)
        v = torch.cat((heads(attn.to_v(image)), heads(attn.add_v_proj(text))), 2)
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        raised = torch.zeros(logits.shape[-1], device=logits.device, dtype=logits.dtype)
        raised[-1] = self.bias.to(logits)
        out = ((logits + raised).softmax(-1) @ v).transpose(1, 2).flatten(2)
        image, text = out[:, :length], out[:, length:]
        image = attn.to_out[1](attn.to_out[0](image))
        return image, (text if attn.context_pre_only else attn.to_add_out(text))
