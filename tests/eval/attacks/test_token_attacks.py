"""Attacks on prompts: their equations, that they find what was planted, and that nothing depends on what ran beside them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from erasure.config.registry import list_modules, load_class
from erasure.families.stable_diffusion import StableDiffusion
from erasure.loading.loader import load_model
from erasure.training import fill_cache as recorder
from erasure.training.teacher_cache import TeacherQuery
from eval.attacks._token_search import query_from_ids, searchable_token_ids
from eval.attacks.base import Attack, AttackContext, AttackQuery, PromptAttack
from eval.attacks.random_prefix import RandomPrefix
from eval.attacks.ring_a_bell import RingABell
from eval.attacks.unlearndiffatk import UnlearnDiffAtk, project_to_simplex

PROMPTS, WITHOUT, STRIPPED = ("a cat", "cat", "the cat"), ("a dog", "dog", "the dog"), ("a", "", "the")
SMALL: dict[str, dict[str, Any]] = {
    "unlearndiffatk": {"steps": 6, "tokens": 2},
    "ring_a_bell": {"tokens": 4, "population": 8, "generations": 5},
    "soft_prefix": {"steps": 6, "tokens": 2, "batch": 2},
    "concept_inversion": {"steps": 8, "batch": 2},
}
SEEDLESS = ("learned_embedding", "seed_search")  # ask alike, whatever the seed
PROMPT_ATTACKS = [name for name in list_modules("eval.attacks") if issubclass(load_class("eval.attacks", name, Attack), PromptAttack)]


@pytest.fixture(autouse=True)
def word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An embedding on disk for the attack that reads one."""
    torch.save(torch.linspace(-1, 1, 32), tmp_path / "word.pt")
    monkeypatch.setitem(SMALL, "learned_embedding", {"file": str(tmp_path / "word.pt")})


def small(name: str) -> PromptAttack:
    return load_class("eval.attacks", name, PromptAttack)(**SMALL.get(name, {}))


def stand_on(model: StableDiffusion, pictures: int = 3, **fields: Any) -> AttackContext:
    recording = TeacherQuery(
        prompt_pairs=tuple((p, "") for p in PROMPTS),
        trajectories=len(PROMPTS),
        steps=2,
        guidance=4.0,
        retain_prompts=("a hen",),
        retain_trajectories=1,
    )
    return AttackContext(
        model, PROMPTS, WITHOUT, ("a hen",), recorder.load_or_fill(model, recording), pictures, stripped_prompts=STRIPPED, **fields
    )


def prefix(ask: AttackQuery) -> Tensor | None:
    """What stands before the words as embeddings: soft tokens, or the ids that a search found."""
    return ask.token_prefix.embeddings if ask.token_prefix else ask.prefix


def by_ids(ask: AttackQuery) -> AttackQuery:
    return AttackQuery(ask.token_prefix.prompts, ask.token_prefix.embeddings) if ask.token_prefix else ask


def mounted(attack: PromptAttack, stand: AttackContext, chunk: tuple[int, ...]) -> list[AttackQuery]:
    return list(attack.queries(stand, chunk, attack.fit(stand, attack.prepare(stand))))


def ids_of(model: StableDiffusion, prefix: Tensor) -> Tensor:
    """The token ids (B, k) whose embeddings these are."""
    return (prefix[..., None, :] == model.token_embeddings()).all(-1).long().argmax(-1)


def ids_encoded(model: StableDiffusion, ids: list[int]) -> Tensor:
    """Hidden states (L, D) of a prompt that holds these ids, without the way round input embeddings."""
    tokenizer = model.pipe.tokenizer
    rest = tokenizer.model_max_length - len(ids) - 1
    said = model.pipe.text_encoder(torch.tensor([[tokenizer.bos_token_id, *ids, *[tokenizer.eos_token_id] * rest]]))
    return said.last_hidden_state[0]


@pytest.mark.parametrize("name", PROMPT_ATTACKS)
@pytest.mark.parametrize("pictures", [3, 8])
def test_there_is_a_round_for_every_picture_and_the_model_is_left_alone(model: StableDiffusion, name: str, pictures: int) -> None:
    stand, before, kernel = stand_on(model, pictures), model.fingerprint(), type(next(iter(model.pipe.unet.attn_processors.values())))
    asks = mounted(small(name), stand, (2, 0))
    assert len(asks) == pictures
    for ask in asks:
        assert len(ask.prompts) == 2 and len(ask.display_prompts or ask.prompts) == 2
        assert model.sample(ask.prompts, [1, 2], steps=1, prefix=ask.prefix).isfinite().all()
    assert model.fingerprint() == before
    assert {type(p) for p in model.pipe.unet.attn_processors.values()} == {kernel}


@pytest.mark.parametrize("name", PROMPT_ATTACKS)
def test_rounds_depend_on_the_stand_alone(model: StableDiffusion, name: str) -> None:
    attack, stand = small(name), stand_on(model)
    known = attack.fit(stand, attack.prepare(stand))
    first = list(attack.queries(stand, (0, 1), known))
    alone = list(attack.queries(stand, (1,), known))
    again = mounted(attack, stand_on(model), (0, 1))
    assert [(a.prompts, a.display_prompts) for a in first] == [(a.prompts, a.display_prompts) for a in again]
    for ask, repeated, other in zip(first, again, alone, strict=True):
        assert ask.prompts[1] == other.prompts[0] and (ask.display_prompts or ask.prompts)[1] == (other.display_prompts or other.prompts)[0]
        mine, same, single = prefix(ask), prefix(repeated), prefix(other)
        if mine is not None and same is not None and single is not None:
            assert torch.equal(mine, same)
            assert torch.equal(mine if mine.ndim == 2 else mine[1:], single)
    if name not in SEEDLESS:
        shifted = mounted(attack, stand_on(model, seed=1), (0, 1))
        assert not all(torch.equal(prefix(a), prefix(b)) for a, b in zip(first, shifted, strict=True))  # type: ignore[arg-type]


def test_the_projection_is_the_nearest_point_of_the_simplex() -> None:
    rows = 3 * torch.randn(50, 200, generator=torch.Generator().manual_seed(0))
    rows[0], rows[1] = 1 / 200, -5
    found = project_to_simplex(rows)
    assert torch.allclose(found.sum(-1), torch.ones(50), atol=1e-5)
    assert found.min() >= 0 and found.max() <= 1
    assert torch.allclose(project_to_simplex(found), found, atol=1e-6)
    assert torch.allclose(found[:2], torch.full((2, 200), 1 / 200), atol=1e-6)
    assert torch.equal(found.argmax(-1)[2:], rows.argmax(-1)[2:])
    one_hot = torch.eye(200)
    assert torch.equal(project_to_simplex(one_hot), one_hot)
    # optimality: no vertex of the simplex lies in a direction that comes nearer to the row
    towards = ((rows - found)[:, None] * (torch.eye(200) - found[:, None])).sum(-1)
    assert towards.max() <= 1e-3


@dataclass(eq=False)
class Planted:
    """Where the text says `sought` the noise is predicted exactly, elsewhere with an error that grows with the distance."""

    x_0: Tensor
    sought: Tensor

    def on(self, model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
        def predict(x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            alpha = model.alphas_cumprod[t].reshape(-1, 1, 1, 1)
            noise = (x_t - alpha.sqrt() * self.x_0) / (1 - alpha).sqrt()
            return noise + ((cond - self.sought).pow(2).mean((1, 2)) + 1e-9).sqrt().reshape(-1, 1, 1, 1)

        monkeypatch.setattr(model, "predict", predict)


def planted(stand: AttackContext, ids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = stand.model
    sought = model.encode(stand.prompts, model.token_embeddings()[ids])
    Planted(stand.base_latents(range(len(stand.prompts))), sought).on(model, monkeypatch)  # type: ignore[arg-type]


@pytest.mark.parametrize("ids", [[70], [5, 60]])
def test_unlearndiffatk_finds_what_was_planted(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch, ids: list[int]) -> None:
    stand = stand_on(model, pictures=8)
    planted(stand, ids, monkeypatch)
    asks = mounted(UnlearnDiffAtk(tokens=len(ids), steps=200), stand, (0, 1, 2))
    by_chance = mounted(RandomPrefix(tokens=len(ids)), stand, (0, 1, 2))
    assert ids_of(model, prefix(asks[-1])).tolist() == [ids] * 3  # type: ignore[arg-type]
    assert asks[-1].prompts == [f"{model.detokenize(ids)} {prompt}" for prompt in PROMPTS] and asks[-1].prefix is None
    assert not any(ids in ids_of(model, prefix(ask)).tolist() for ask in by_chance)  # type: ignore[arg-type]


def test_unlearndiffatk_goes_through_the_timesteps_in_order(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    predict = model.predict

    def noted(x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        asked.append(int(t[0]))
        return predict(x_t, t, cond)

    monkeypatch.setattr(model, "predict", noted)
    stand = stand_on(model, pictures=5)
    for steps, t_min, expected in (
        (100, 10, [t for t in range(10, 1000, 20) for _ in range(2)]),
        (5, 10, [10, 210, 410, 610, 810]),
        (5, 900, [900, 920, 940, 960, 980]),
    ):
        asked.clear()
        rounds = UnlearnDiffAtk(tokens=1, steps=steps, t_min=t_min).queries(stand, (0,), {})
        for j, _ in enumerate(rounds):
            assert asked == expected[: (j + 1) * steps // 5]


def test_no_attack_says_start_or_end(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    special = model.pipe.tokenizer.all_special_ids
    assert len(special) == 2 and set(searchable_token_ids(model).tolist()) == set(range(len(model.token_embeddings()))) - set(special)
    stand = stand_on(model, pictures=4)
    planted(stand, [model.pipe.tokenizer.eos_token_id], monkeypatch)
    for ask in mounted(UnlearnDiffAtk(tokens=1, steps=60), stand, (0, 1, 2)):
        assert not set(ids_of(model, prefix(ask)).flatten().tolist()) & set(special)  # type: ignore[arg-type]
    for ask in mounted(RandomPrefix(tokens=40), replace(stand, rounds=20), (0, 1, 2)):  # 2,400 of 190 tokens
        assert not set(ids_of(model, prefix(ask)).flatten().tolist()) & set(special)  # type: ignore[arg-type]


def test_unlearndiffatk_lowers_its_loss_on_a_real_denoiser(model: StableDiffusion) -> None:
    stand = stand_on(model, pictures=1)
    with torch.no_grad():
        for name, p in model.pipe.unet.named_parameters():
            if ".attn2.to_" in name:
                p.mul_(8)  # a denoiser that listens to the text

    def loss(ask: AttackQuery) -> float:
        x_0, noise, times = (
            stand.base_latents((0, 1, 2)),
            model.sample_noise([5, 6, 7]),
            [torch.full((3,), t) for t in range(100, 1000, 200)],
        )
        with torch.no_grad():
            asked = by_ids(ask)
            cond = model.encode(asked.prompts, asked.prefix)
            return sum((model.predict(model.add_noise(x_0, noise, t), t, cond) - noise).pow(2).mean().item() for t in times)

    (found,) = mounted(UnlearnDiffAtk(tokens=2, steps=60), stand, (0, 1, 2))
    by_chance = mounted(RandomPrefix(tokens=2), replace(stand, rounds=12), (0, 1, 2))
    assert loss(found) < sum(loss(ask) for ask in by_chance) / len(by_chance)


def test_what_diverges_says_so_and_is_not_unsuited(model: StableDiffusion) -> None:
    stand = stand_on(model)
    with pytest.raises(FloatingPointError, match=r"ring_a_bell: .* lower its eta"):
        RingABell(tokens=2, population=4, generations=1, concept_weight=1e38).prepare(stand)
    with torch.no_grad():
        model.pipe.unet.conv_out.bias[0] = torch.nan
    with pytest.raises(FloatingPointError, match="unlearndiffatk: the gradient at timestep 10 is not finite; no update"):
        mounted(UnlearnDiffAtk(tokens=1, steps=3), stand, (0,))


def test_ring_a_bell_finds_what_was_planted(model: StableDiffusion) -> None:
    """Without a difference between the pairs it looks for words that encode as the prompt does: those of the prompt."""
    stand = replace(stand_on(model), prompts=("at", "he"), substitute_prompts=("at", "he"))
    attack = RingABell(tokens=2, population=100, generations=40)
    known = attack.prepare(stand)
    assert known["ids"][-1].tolist() == [model.tokenize("at"), model.tokenize("he")]
    assert known["distance"][-1].max() < 1e-6 < known["distance"][0].max()


def test_ring_a_bell_measures_the_papers_distance(model: StableDiffusion) -> None:
    stand = stand_on(model)
    known = RingABell(tokens=4, population=8, generations=5, concept_weight=2.5).prepare(stand)
    f = {prompt: ids_encoded(model, model.tokenize(prompt)) for prompt in (*PROMPTS, *WITHOUT)}
    concept = sum(f[a] - f[b] for a, b in zip(PROMPTS, WITHOUT, strict=True)) / len(PROMPTS)
    for ids, distance in zip(known["ids"], known["distance"], strict=True):
        for i, prompt in enumerate(PROMPTS):
            expected = (ids_encoded(model, ids[i].tolist()) - f[prompt] - 2.5 * concept).pow(2).sum()
            assert torch.allclose(distance[i], expected, rtol=1e-4)


def test_ring_a_bell_never_loses_its_best(model: StableDiffusion) -> None:
    attack, stand = RingABell(tokens=4, population=6, generations=60, mutation=1.0), stand_on(model, pictures=60)
    known = attack.prepare(stand)
    assert (known["distance"].diff(dim=0) <= 0).all()
    assert (known["distance"][-1] < known["distance"][0]).all()
    assert torch.equal(attack.prepare(stand)["ids"], known["ids"])
    barren = RingABell(tokens=4, population=4, generations=3, crossover=0.0, mutation=0.0).prepare(stand)
    assert (barren["distance"] == barren["distance"][0]).all()


def test_ring_a_bell_breeds_as_the_paper_does() -> None:
    kept, choice = torch.arange(50)[:, None].repeat(1, 8), torch.arange(100, 200)

    def bred(**chances: float) -> tuple[Tensor, Tensor, Tensor]:
        return RingABell(tokens=8, **chances).breed(kept, torch.zeros(50), choice, torch.Generator().manual_seed(0))

    pool, error, new = bred(crossover=1.0, mutation=0.0)
    first, second = pool[50:100], pool[100:]
    assert torch.equal(pool[:50], kept) and new.tolist() == [False] * 50 + [True] * 100 and error[:50].eq(0).all()
    mate = torch.where(first == kept, second, first)  # wherever one child has its parent's token, the other has the mate's
    assert ((mate == mate[:, :1]) & ((first == kept) | (second == kept))).all() and len(mate[:, 0].unique()) > 20
    cut = (first != kept).long()
    assert (cut.diff(dim=1) >= 0).all() and len(cut.sum(1).unique()) >= 8  # one point, anywhere
    pool, error, new = bred(crossover=0.0, mutation=1.0)
    assert error[50:].isinf().all() and new.tolist() == [False, *[True] * 49, *[False] * 100]
    assert (pool[:50] != kept).sum(1).tolist() == [0, *[1] * 49] and (pool[:50] >= 100).sum() == 49


def test_what_is_found_is_asked_as_text_and_as_ids(model: StableDiffusion) -> None:
    """Spelled out and read again, these letters would end the word."""
    ids = [ord("c") - 33, ord("a") - 33, ord("t") - 33]
    assert model.tokenize(model.detokenize(ids)) != ids
    (ask,) = RingABell(tokens=3).queries(stand_on(model, 1), (1,), {"ids": torch.tensor([[[0, 0, 0], ids]])})
    assert ask.prompts == [model.detokenize(ids)] and ask.prefix is None and ask.token_prefix is not None
    assert ask.token_prefix.prompts == [""] and ask.token_prefix.fails_round_trip == [True]
    assert torch.allclose(model.encode(ask.token_prefix.prompts, ask.token_prefix.embeddings)[0], ids_encoded(model, ids), atol=1e-6)


def test_whole_words_read_back_as_the_ids_that_were_found(model: StableDiffusion) -> None:
    """The right value of `differ` for both kinds of tokens, and that text and ids then ask the same."""
    whole = [94 + ord(c) - 33 for c in "cat"]  # "c</w>", "a</w>", "t</w>"
    ask = query_from_ids(model, torch.tensor([whole, [ord(c) - 33 for c in "cat"]]), ["a hen", "a hen"])
    assert (
        ask.prompts == ["c a t a hen", "cat a hen"] and ask.token_prefix is not None and ask.token_prefix.fails_round_trip == [False, True]
    )
    spoken, fed = model.encode(ask.prompts), model.encode(ask.token_prefix.prompts, ask.token_prefix.embeddings)
    assert torch.allclose(spoken[0], fed[0], atol=1e-6) and not torch.allclose(spoken[1], fed[1], atol=1e-3)


def test_on_pocket_one_random_prefix_in_six_reads_back_as_its_own_ids() -> None:
    pocket = load_model("pocket")
    choice = searchable_token_ids(pocket)
    ids = choice[torch.randint(len(choice), (500, 3), generator=torch.Generator().manual_seed(0))]
    tokens = query_from_ids(pocket, ids, ["a boat in neon style"] * 500).token_prefix
    assert tokens is not None and tokens.fails_round_trip.count(False) == 83
