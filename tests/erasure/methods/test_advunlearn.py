"""AdvUnlearn: the attack lowers its loss, the losses are the paper's, the embedding table stays."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from erasure.concept import Concept
from erasure.erasing import erase
from erasure.families.clip_text import tokenize_prompts
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.advunlearn import AdvUnlearn, predict_with_prefix
from erasure.methods.base import TrainingContext, unfreeze
from erasure.training import fill_cache

CAT = [Concept(name="cat", kind="object", prompts=("{}",))]
SMALL = {
    "trajectories": 2,
    "trajectory_steps": 3,
    "retain_prompts": ("the sea",),
    "retain_trajectories": 2,
    "batch": 2,
    "retain_batch": 3,
    "warmup": 0,
    "attack_tokens": 2,
}


def context_of(model: StableDiffusion, method: AdvUnlearn) -> TrainingContext:
    cache = fill_cache.load_or_fill(model, method.query(CAT, 0))
    return TrainingContext(model, cache, model.encode)


def disturb_text_encoder(model: StableDiffusion) -> None:
    """Change every embedding, so that there is something for the attack to find."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.pipe.text_encoder.parameters():
            p.add_(0.3 * torch.randn_like(p))


@pytest.mark.parametrize(("attack", "lr"), [("pgd", 0.1), ("fast_at", 0.02)])
def test_the_attack_lowers_its_loss(model: StableDiffusion, attack: str, lr: float) -> None:
    method = AdvUnlearn(**SMALL, attack=attack, attack_steps=20, attack_lr=lr)  # type: ignore[arg-type]
    context = context_of(model, method)
    disturb_text_encoder(model)
    rows = context.sample_rows("erase", 2)
    torch.manual_seed(0)
    vocabulary = model.token_embeddings()
    start = vocabulary[torch.randint(len(vocabulary), (2, 2))]
    torch.manual_seed(0)
    prefix = method.find_adversarial_prefix(context, rows)
    with torch.no_grad():
        before, after = (F.mse_loss(predict_with_prefix(context, rows, delta), rows.pred_cond) for delta in (start, prefix))
    assert after < 0.9 * before
    assert prefix.shape == start.shape


def test_a_prefix_goes_before_the_words(model: StableDiffusion) -> None:
    """The embeddings of real tokens as a prefix give what these tokens in the prompt give."""
    tokenizer, table = model.pipe.tokenizer, model.token_embeddings()
    prefix = table[tokenizer("a b", add_special_tokens=False).input_ids]
    assert torch.allclose(model.encode(["c d"], prefix).sequence, model.encode(["a b c d"]).sequence, atol=1e-5)
    batch = model.encode(["c d", "e"], torch.stack((prefix, prefix.flip(0)))).sequence
    assert torch.allclose(batch, torch.cat((model.encode(["a b c d"]).sequence, model.encode(["b a e"]).sequence)), atol=1e-5)


def test_a_prefix_cuts_words_but_not_the_end(model: StableDiffusion) -> None:
    prefix = torch.zeros(3, model.token_embeddings().shape[1])
    ids, _ = tokenize_prompts(model.pipe.tokenizer, ["x " * 50], model.context_length, 3)
    assert ids.shape[1] == model.pipe.tokenizer.model_max_length
    assert ids[0, -1] == model.pipe.tokenizer.eos_token_id
    assert torch.isfinite(model.encode(["x " * 50], prefix).sequence).all()


@pytest.mark.parametrize("kind", ["joint", "alternating"])
def test_the_losses_are_the_papers(model: StableDiffusion, kind: str) -> None:
    method = AdvUnlearn(**{**SMALL, "warmup": 5}, retain_loss=kind, retain_weight=0.3)  # type: ignore[arg-type]
    context = context_of(model, method)
    torch.manual_seed(2)
    with unfreeze(model, model.parameter_names(method.region)) as parameters:
        steps = list(method.step(context))
        before = model.cost.unet_backwards
        counts = []
        for step in steps:
            step.loss.backward(inputs=list(parameters.values()))
            counts.append(model.cost.unet_backwards - before)
    assert counts == ([5] if kind == "joint" else [2, 5])
    torch.manual_seed(2)
    rows, retain_rows = context.sample_rows("erase", 2), context.sample_rows("retain", 3)
    erase_loss = F.mse_loss(model.predict(rows.x_t, rows.t, model.encode(rows.prompts)), 2 * rows.pred_neutral - rows.pred_cond)
    retain_loss = 0.3 * F.mse_loss(model.predict(retain_rows.x_t, retain_rows.t, model.encode(retain_rows.prompts)), retain_rows.pred_cond)
    expected = [erase_loss + retain_loss] if kind == "joint" else [erase_loss, retain_loss]
    assert [step.loss.item() for step in steps] == pytest.approx([loss.item() for loss in expected], rel=1e-5)


def test_the_embedding_tables_stay(model: StableDiffusion, tmp_path: Path) -> None:
    edit = erase(model, CAT, AdvUnlearn(**SMALL, steps=3, attack_steps=2, lr=1e-2), out=tmp_path / "run")  # type: ignore[arg-type]
    assert all(".embeddings." not in name for name in edit.moved_parameters())
    assert any(".layers." in name for name in edit.moved_parameters())
    assert all(name.startswith("text_encoder.") for name in edit.moved_parameters())


def test_the_attack_starts_where_the_last_one_ended(model: StableDiffusion) -> None:
    method = AdvUnlearn(**SMALL, attack_steps=1, attack_lr=1e-3, attack_init="latest")  # type: ignore[arg-type]
    context = context_of(model, method)
    first = method.find_adversarial_prefix(context, context.sample_rows("erase", 2))
    second = method.find_adversarial_prefix(context, context.sample_rows("erase", 2))
    assert (second - first).abs().max() < 0.01
    assert torch.equal(context.state["delta"], second)
