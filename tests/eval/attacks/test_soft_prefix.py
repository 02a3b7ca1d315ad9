"""The soft prefix: it lowers its loss, a shorter fit is the beginning of a longer one, and the model is unchanged."""

import pytest
import torch
import torch.nn.functional as F

from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.training import fill_cache
from erasure.training.teacher_cache import TeacherQuery
from eval.attacks.soft_prefix import SoftPrefix


def test_the_fit_lowers_its_loss_and_keeps_its_snapshots(model: StableDiffusion) -> None:
    cache = fill_cache.load_or_fill(model, TeacherQuery(prompt_pairs=(("cat", ""), ("a cat", "")), trajectories=2, steps=3, guidance=4.0))
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.pipe.text_encoder.parameters():
            p.add_(0.3 * torch.randn_like(p))  # another encoder, so that there is a prefix to find
    before = model.fingerprint()
    attack = SoftPrefix(tokens=2, steps=40, lr=0.1, batch=4)
    prefixes = attack.fit_prefixes(model, cache, seed=3, snapshot_steps=(10,))
    assert sorted(prefixes) == [10, 40] and model.cost.unet_backwards == 40 * 4
    assert model.fingerprint() == before
    assert torch.equal(SoftPrefix(tokens=2, steps=10, lr=0.1, batch=4).fit_prefixes(model, cache, seed=3)[10], prefixes[10])
    batch = cache.gather_batch(cache.rows("erase"), model.device)

    def loss(prefix: torch.Tensor) -> float:
        with torch.no_grad():
            return F.mse_loss(model.predict(batch.x_t, batch.t, model.encode(batch.prompts, prefix)), batch.pred_cond).item()

    assert loss(prefixes[40]) < loss(prefixes[10]) < loss(attack.initial_prefix(model, 3))


def test_a_fit_that_diverges_is_named(model: StableDiffusion) -> None:
    cache = fill_cache.load_or_fill(model, TeacherQuery(prompt_pairs=(("cat", ""),), trajectories=1, steps=1, guidance=4.0))
    with pytest.raises(FloatingPointError, match="the loss is nan at step 2; the updates have grown too large, so lower its lr"):
        SoftPrefix(tokens=2, steps=4, lr=float("inf"), batch=1).fit_prefixes(model, cache, 0)


def test_wrong_budgets_are_refused(model: StableDiffusion) -> None:
    with pytest.raises(UserError, match="--tokens must be positive"):
        SoftPrefix(tokens=0)
    cache = fill_cache.load_or_fill(model, TeacherQuery(prompt_pairs=(("cat", ""),), trajectories=1, steps=1, guidance=4.0))
    with pytest.raises(UserError, match="the fit has 5 steps"):
        SoftPrefix(steps=5).fit_prefixes(model, cache, 0, snapshot_steps=(9,))
