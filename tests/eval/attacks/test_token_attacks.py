"""Prompt attacks: their equations, that they find what was planted, and that no prompt depends on those beside it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from erasure.config.registry import list_modules, load_class
from erasure.errors import UserError
from erasure.families.conditioning import Conditioning
from erasure.families.stable_diffusion import StableDiffusion
from erasure.loading.loader import load_model
from erasure.training import fill_cache
from erasure.training.teacher_cache import TeacherQuery
from eval.attacks._token_search import query_from_ids, searchable_token_ids
from eval.attacks.base import Attack, AttackContext, AttackQuery, PromptAttack
from eval.attacks.random_prefix import RandomPrefix
from eval.attacks.ring_a_bell import RingABell
from eval.attacks.unlearndiffatk import UnlearnDiffAtk, project_to_simplex

PROMPTS, SUBSTITUTES, STRIPPED_PROMPTS = ("a cat", "cat", "the cat"), ("a dog", "dog", "the dog"), ("a", "", "the")
SMALL_FIELDS: dict[str, dict[str, Any]] = {
    "unlearndiffatk": {"steps": 6, "tokens": 2},
    "ring_a_bell": {"tokens": 4, "population": 8, "generations": 5},
    "soft_prefix": {"steps": 6, "tokens": 2, "batch": 2},
    "concept_inversion": {"steps": 8, "batch": 2},
}
SEEDLESS = ("learned_embedding", "seed_search")  # their queries do not depend on the seed
PROMPT_ATTACKS = [name for name in list_modules("eval.attacks") if issubclass(load_class("eval.attacks", name, Attack), PromptAttack)]


@pytest.fixture(autouse=True)
def word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An embedding on disk for the attack that needs one."""
    torch.save(torch.linspace(-1, 1, 32), tmp_path / "word.pt")
    monkeypatch.setitem(SMALL_FIELDS, "learned_embedding", {"file": str(tmp_path / "word.pt")})


def small_attack(name: str) -> PromptAttack:
    return load_class("eval.attacks", name, PromptAttack)(**SMALL_FIELDS.get(name, {}))


def make_context(model: StableDiffusion, images: int = 3, **fields: Any) -> AttackContext:
    query = TeacherQuery(
        prompt_pairs=tuple((p, "") for p in PROMPTS),
        trajectories=len(PROMPTS),
        steps=2,
        guidance=4.0,
        retain_prompts=("a hen",),
        retain_trajectories=1,
    )
    return AttackContext(
        model, PROMPTS, SUBSTITUTES, ("a hen",), fill_cache.load_or_fill(model, query), images, stripped_prompts=STRIPPED_PROMPTS, **fields
    )


def prefix_of(query: AttackQuery) -> Tensor | None:
    """The embeddings before the prompt: soft tokens, or those of the token ids that a search found."""
    return query.token_prefix.embeddings if query.token_prefix else query.prefix


def with_ids(query: AttackQuery) -> AttackQuery:
    """The query that gives the encoder token ids instead of text."""
    return AttackQuery(query.token_prefix.prompts, query.token_prefix.embeddings) if query.token_prefix else query


def run_attack(attack: PromptAttack, context: AttackContext, chunk: tuple[int, ...]) -> list[AttackQuery]:
    return list(attack.queries(context, chunk, attack.fit(context, attack.prepare(context))))


def ids_of(model: StableDiffusion, prefix: Tensor) -> Tensor:
    """The token ids (B, k) whose embeddings these are."""
    return (prefix[..., None, :] == model.token_embeddings()).all(-1).long().argmax(-1)


def encode_ids(model: StableDiffusion, ids: list[int]) -> Tensor:
    """Hidden states (L, D) of a prompt of these ids, without input embeddings."""
    tokenizer = model.pipe.tokenizer
    padding = tokenizer.model_max_length - len(ids) - 1
    output = model.pipe.text_encoder(torch.tensor([[tokenizer.bos_token_id, *ids, *[tokenizer.eos_token_id] * padding]]))
    return output.last_hidden_state[0]


@pytest.mark.parametrize("name", PROMPT_ATTACKS)
@pytest.mark.parametrize("images", [3, 8])
def test_there_is_a_query_for_every_image_and_the_model_is_unchanged(model: StableDiffusion, name: str, images: int) -> None:
    context, before = make_context(model, images), model.fingerprint()
    processor = type(next(iter(model.pipe.unet.attn_processors.values())))
    queries = run_attack(small_attack(name), context, (2, 0))
    assert len(queries) == images
    for query in queries:
        assert len(query.prompts) == 2 and len(query.display_prompts or query.prompts) == 2
        assert model.sample(query.prompts, [1, 2], steps=1, prefix=query.prefix).isfinite().all()
    assert model.fingerprint() == before
    assert {type(p) for p in model.pipe.unet.attn_processors.values()} == {processor}


@pytest.mark.parametrize("name", PROMPT_ATTACKS)
def test_queries_depend_on_the_context_alone(model: StableDiffusion, name: str) -> None:
    attack, context = small_attack(name), make_context(model)
    fitted = attack.fit(context, attack.prepare(context))
    first = list(attack.queries(context, (0, 1), fitted))
    alone = list(attack.queries(context, (1,), fitted))
    repeated = run_attack(attack, make_context(model), (0, 1))
    assert [(query.prompts, query.display_prompts) for query in first] == [(query.prompts, query.display_prompts) for query in repeated]
    for query, same, single in zip(first, repeated, alone, strict=True):
        assert query.prompts[1] == single.prompts[0]
        assert (query.display_prompts or query.prompts)[1] == (single.display_prompts or single.prompts)[0]
        prefix, same_prefix, single_prefix = prefix_of(query), prefix_of(same), prefix_of(single)
        if prefix is not None and same_prefix is not None and single_prefix is not None:
            assert torch.equal(prefix, same_prefix)
            assert torch.equal(prefix if prefix.ndim == 2 else prefix[1:], single_prefix)
    if name not in SEEDLESS:
        shifted = run_attack(attack, make_context(model, seed=1), (0, 1))
        assert not all(torch.equal(prefix_of(a), prefix_of(b)) for a, b in zip(first, shifted, strict=True))  # type: ignore[arg-type]


def test_the_projection_is_the_nearest_point_of_the_simplex() -> None:
    rows = 3 * torch.randn(50, 200, generator=torch.Generator().manual_seed(0))
    rows[0], rows[1] = 1 / 200, -5
    projected = project_to_simplex(rows)
    assert torch.allclose(projected.sum(-1), torch.ones(50), atol=1e-5)
    assert projected.min() >= 0 and projected.max() <= 1
    assert torch.allclose(project_to_simplex(projected), projected, atol=1e-6)
    assert torch.allclose(projected[:2], torch.full((2, 200), 1 / 200), atol=1e-6)
    assert torch.equal(projected.argmax(-1)[2:], rows.argmax(-1)[2:])
    one_hot = torch.eye(200)
    assert torch.equal(project_to_simplex(one_hot), one_hot)
    # optimality: moving toward a vertex of the simplex never comes nearer to the row
    progress = ((rows - projected)[:, None] * (torch.eye(200) - projected[:, None])).sum(-1)
    assert progress.max() <= 1e-3


@dataclass(eq=False)
class PlantedDenoiser:
    """Predicts the noise exactly where the encoded text is `sought`, elsewhere with an error that grows with the distance."""

    x_0: Tensor
    sought: Tensor

    def install(self, model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
        def predict(x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
            alpha = model.schedule.alphas_cumprod[t].reshape(-1, 1, 1, 1)
            noise = (x_t - alpha.sqrt() * self.x_0) / (1 - alpha).sqrt()
            return noise + ((cond.sequence - self.sought).pow(2).mean((1, 2)) + 1e-9).sqrt().reshape(-1, 1, 1, 1)

        monkeypatch.setattr(model, "predict", predict)


def plant_ids(context: AttackContext, ids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the denoiser of the context's model know the concept only after a prefix of these token ids."""
    model = context.model
    sought = model.encode(context.prompts, model.token_embeddings()[ids]).sequence
    PlantedDenoiser(context.base_latents(range(len(context.prompts))), sought).install(model, monkeypatch)  # type: ignore[arg-type]


@pytest.mark.parametrize("ids", [[70], [5, 60]])
def test_unlearndiffatk_finds_what_was_planted(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch, ids: list[int]) -> None:
    context = make_context(model, images=8)
    plant_ids(context, ids, monkeypatch)
    queries = run_attack(UnlearnDiffAtk(tokens=len(ids), steps=200), context, (0, 1, 2))
    random_queries = run_attack(RandomPrefix(tokens=len(ids)), context, (0, 1, 2))
    assert ids_of(model, prefix_of(queries[-1])).tolist() == [ids] * 3  # type: ignore[arg-type]
    assert queries[-1].prompts == [f"{model.detokenize(ids)} {prompt}" for prompt in PROMPTS] and queries[-1].prefix is None
    assert not any(ids in ids_of(model, prefix_of(query)).tolist() for query in random_queries)  # type: ignore[arg-type]


def test_unlearndiffatk_goes_through_the_timesteps_in_order(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    timesteps: list[int] = []
    predict = model.predict

    def record_timestep(x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        timesteps.append(int(t[0]))
        return predict(x_t, t, cond)

    monkeypatch.setattr(model, "predict", record_timestep)
    context = make_context(model, images=5)
    with pytest.raises(UserError, match="t_min is a timestep from 0 to 999, got 1000"):
        next(UnlearnDiffAtk(tokens=1, steps=5, t_min=1000).queries(context, (0,), {}))
    backwards = model.cost.unet_backwards
    for steps, t_min, expected in (
        (100, 10, [t for t in range(10, 1000, 20) for _ in range(2)]),
        (5, 10, [10, 210, 410, 610, 810]),
        (5, 900, [900, 920, 940, 960, 980]),
    ):
        timesteps.clear()
        queries = UnlearnDiffAtk(tokens=1, steps=steps, t_min=t_min).queries(context, (0,), {})
        for j, _ in enumerate(queries):
            assert timesteps == expected[: (j + 1) * steps // 5]
    assert model.cost.unet_backwards - backwards == 100 + 5 + 5  # of one prompt each


def test_no_attack_uses_special_tokens(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    special = model.pipe.tokenizer.all_special_ids
    assert len(special) == 2 and set(searchable_token_ids(model).tolist()) == set(range(len(model.token_embeddings()))) - set(special)
    context = make_context(model, images=4)
    plant_ids(context, [model.pipe.tokenizer.eos_token_id], monkeypatch)
    for query in run_attack(UnlearnDiffAtk(tokens=1, steps=60), context, (0, 1, 2)):
        assert not set(ids_of(model, prefix_of(query)).flatten().tolist()) & set(special)  # type: ignore[arg-type]
    for query in run_attack(RandomPrefix(tokens=40), replace(context, rounds=20), (0, 1, 2)):  # 2,400 of 190 tokens
        assert not set(ids_of(model, prefix_of(query)).flatten().tolist()) & set(special)  # type: ignore[arg-type]


def test_unlearndiffatk_lowers_its_loss_on_a_real_denoiser(model: StableDiffusion) -> None:
    context = make_context(model, images=1)
    with torch.no_grad():
        for name, p in model.pipe.unet.named_parameters():
            if ".attn2.to_" in name:
                p.mul_(8)  # a denoiser that depends strongly on the text

    def loss(query: AttackQuery) -> float:
        x_0, noise = context.base_latents((0, 1, 2)), model.sample_noise([5, 6, 7])
        timesteps = [torch.full((3,), t) for t in range(100, 1000, 200)]
        with torch.no_grad():
            by_ids = with_ids(query)
            cond = model.encode(by_ids.prompts, by_ids.prefix)
            return sum((model.predict(model.add_noise(x_0, noise, t), t, cond) - noise).pow(2).mean().item() for t in timesteps)

    (query,) = run_attack(UnlearnDiffAtk(tokens=2, steps=60), context, (0, 1, 2))
    random_queries = run_attack(RandomPrefix(tokens=2), replace(context, rounds=12), (0, 1, 2))
    assert loss(query) < sum(map(loss, random_queries)) / len(random_queries)


def test_divergence_is_named_and_is_not_taken_for_not_applicable(model: StableDiffusion) -> None:
    context = make_context(model)
    with pytest.raises(FloatingPointError, match=r"ring_a_bell: .* lower its concept_weight"):
        RingABell(tokens=2, population=4, generations=1, concept_weight=1e38).prepare(context)
    with torch.no_grad():
        model.pipe.unet.conv_out.bias[0] = torch.nan
    with pytest.raises(FloatingPointError, match="unlearndiffatk: the gradient at timestep 10 is not finite; no update"):
        run_attack(UnlearnDiffAtk(tokens=1, steps=3), context, (0,))


def test_ring_a_bell_finds_what_was_planted(model: StableDiffusion) -> None:
    """Without a difference between the pairs it searches for tokens that encode as the prompt does: those of the prompt."""
    context = replace(make_context(model), prompts=("at", "he"), substitute_prompts=("at", "he"))
    attack = RingABell(tokens=2, population=100, generations=40)
    prepared = attack.prepare(context)
    assert prepared["ids"][-1].tolist() == [model.tokenize("at"), model.tokenize("he")]
    assert prepared["errors"][-1].max() < 1e-6 < prepared["errors"][0].max()


def test_ring_a_bell_minimizes_the_papers_error(model: StableDiffusion) -> None:
    context = make_context(model)
    prepared = RingABell(tokens=4, population=8, generations=5, concept_weight=2.5).prepare(context)
    hidden = {prompt: encode_ids(model, model.tokenize(prompt)) for prompt in (*PROMPTS, *SUBSTITUTES)}
    concept = sum(hidden[a] - hidden[b] for a, b in zip(PROMPTS, SUBSTITUTES, strict=True)) / len(PROMPTS)
    for ids, errors in zip(prepared["ids"], prepared["errors"], strict=True):
        for i, prompt in enumerate(PROMPTS):
            expected = (encode_ids(model, ids[i].tolist()) - hidden[prompt] - 2.5 * concept).pow(2).sum()
            assert torch.allclose(errors[i], expected, rtol=1e-4)


def test_ring_a_bell_never_loses_its_best(model: StableDiffusion) -> None:
    attack, context = RingABell(tokens=4, population=6, generations=60, mutation=1.0), make_context(model, images=60)
    prepared = attack.prepare(context)
    assert (prepared["errors"].diff(dim=0) <= 0).all()
    assert (prepared["errors"][-1] < prepared["errors"][0]).all()
    assert torch.equal(attack.prepare(context)["ids"], prepared["ids"])
    unchanged = RingABell(tokens=4, population=4, generations=3, crossover=0.0, mutation=0.0).prepare(context)
    assert (unchanged["errors"] == unchanged["errors"][0]).all()


def test_ring_a_bell_breeds_as_the_paper_does() -> None:
    parents, choice = torch.arange(50)[:, None].repeat(1, 8), torch.arange(100, 200)

    def breed(crossover: float, mutation: float) -> tuple[Tensor, Tensor, Tensor]:
        return RingABell(tokens=8, crossover=crossover, mutation=mutation).breed(
            parents, torch.zeros(50), choice, torch.Generator().manual_seed(0)
        )

    pool, errors, new = breed(crossover=1.0, mutation=0.0)
    first, second = pool[50:100], pool[100:]
    assert torch.equal(pool[:50], parents) and new.tolist() == [False] * 50 + [True] * 100 and errors[:50].eq(0).all()
    mate = torch.where(first == parents, second, first)  # where one child has its parent's token, the other has the mate's
    assert ((mate == mate[:, :1]) & ((first == parents) | (second == parents))).all() and len(mate[:, 0].unique()) > 20
    crossed = (first != parents).long()
    assert (crossed.diff(dim=1) >= 0).all() and len(crossed.sum(1).unique()) >= 8  # one crossover point, anywhere
    pool, errors, new = breed(crossover=0.0, mutation=1.0)
    assert errors[50:].isinf().all() and new.tolist() == [False, *[True] * 49, *[False] * 100]
    assert (pool[:50] != parents).sum(1).tolist() == [0, *[1] * 49] and (pool[:50] >= 100).sum() == 49


def test_found_ids_are_tried_as_text_and_as_ids(model: StableDiffusion) -> None:
    """As text, these letters would be tokenized with the end of a word."""
    ids = [ord("c") - 33, ord("a") - 33, ord("t") - 33]
    assert model.tokenize(model.detokenize(ids)) != ids
    (query,) = RingABell(tokens=3).queries(make_context(model, 1), (1,), {"ids": torch.tensor([[[0, 0, 0], ids]])})
    assert query.prompts == [model.detokenize(ids)] and query.prefix is None and query.token_prefix is not None
    assert query.token_prefix.prompts == [""] and query.token_prefix.fails_round_trip == [True]
    assert torch.allclose(
        model.encode(query.token_prefix.prompts, query.token_prefix.embeddings).sequence[0], encode_ids(model, ids), atol=1e-6
    )


def test_whole_words_tokenize_to_the_ids_that_were_found(model: StableDiffusion) -> None:
    """The value of `fails_round_trip` for both kinds of tokens, and that text and ids encode alike if it is False."""
    words = [94 + ord(c) - 33 for c in "cat"]  # "c</w>", "a</w>", "t</w>"
    query = query_from_ids(model, torch.tensor([words, [ord(c) - 33 for c in "cat"]]), ["a hen", "a hen"])
    assert query.prompts == ["c a t a hen", "cat a hen"]
    assert query.token_prefix is not None and query.token_prefix.fails_round_trip == [False, True]
    by_text = model.encode(query.prompts).sequence
    by_ids = model.encode(query.token_prefix.prompts, query.token_prefix.embeddings).sequence
    assert torch.allclose(by_text[0], by_ids[0], atol=1e-6) and not torch.allclose(by_text[1], by_ids[1], atol=1e-3)


def test_on_pocket_one_random_prefix_in_six_survives_the_round_trip() -> None:
    pocket = load_model("pocket")
    choice = searchable_token_ids(pocket)
    ids = choice[torch.randint(len(choice), (500, 3), generator=torch.Generator().manual_seed(0))]
    tokens = query_from_ids(pocket, ids, ["a boat in neon style"] * 500).token_prefix
    assert tokens is not None and tokens.fails_round_trip.count(False) == 83
