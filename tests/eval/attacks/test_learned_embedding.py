"""A word from a file: what was planted is asked without the concept's name; all else is refused, and nothing in it runs."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from eval.attacks.base import NotApplicable
from eval.attacks.concept_inversion import ConceptInversion
from eval.attacks.learned_embedding import LearnedEmbedding
from tests.eval.attacks.test_concept_inversion import STRIPPED, stand_on


def saved(path: Path, held: Any) -> str:
    (save_file if path.suffix == ".safetensors" else torch.save)(held, path)
    return str(path)


def test_a_word_that_was_learned_elsewhere_is_asked_without_the_name(model: StableDiffusion, tmp_path: Path) -> None:
    stand = stand_on(model)
    word = ConceptInversion(tokens=2, steps=4, batch=2).fit(stand, {})["word"][-1]
    attack = LearnedEmbedding(file=saved(tmp_path / "neon.safetensors", {"emb_params": word}))
    known = attack.fit(stand, attack.prepare(stand))
    asks = list(attack.queries(stand, (2, 0), known))
    assert [ask.prompts for ask in asks] == [[STRIPPED[2], STRIPPED[0]]] * stand.rounds
    assert all(ask.prefix is not None and torch.equal(ask.prefix, word) for ask in asks)
    assert asks[0].display_prompts == ["(the word of neon.safetensors) hen", "(the word of neon.safetensors) cat"]


@pytest.mark.parametrize("kind", [".bin", ".pt", ".safetensors"])
def test_the_layouts_in_which_words_are_shared(model: StableDiffusion, tmp_path: Path, kind: str) -> None:
    """The word's own embedding says what the word says."""
    row = model.token_embeddings()[model.tokenize("c")[0]]
    held: list[Any] = [{"<c>": row}, {"<c>": row[None].half()}]
    if kind != ".safetensors":
        held += [row, {"<c>": torch.nn.Parameter(row)}]
    for i, one in enumerate(held):
        word = LearnedEmbedding(file=saved(tmp_path / f"{i}{kind}", one)).prepare(stand_on(model))["word"]
        assert word.shape == (1, 32) and word.dtype == torch.float32 and not word.requires_grad
        assert torch.allclose(model.encode([""], word), model.encode(["c"]), atol=1e-2)


class Trap:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", [".bin", ".pt"])
def test_a_pickle_with_code_is_refused_and_not_run(model: StableDiffusion, tmp_path: Path, kind: str) -> None:
    sprung, stand = tmp_path / "sprung", stand_on(model)
    for i, save in enumerate((torch.save, lambda held, path: path.write_bytes(pickle.dumps(held, protocol=2)))):
        path = tmp_path / f"trap{i}{kind}"
        save({"<neon>": Trap(sprung)}, path)
        with pytest.raises(UserError, match="more than tensors, which is never loaded") as caught:
            LearnedEmbedding(file=str(path)).prepare(stand)
        assert "\n" not in str(caught.value) and not sprung.exists()
    torch.load(path.with_name(f"trap0{kind}"), weights_only=False)
    assert sprung.exists()  # the trap works


def test_what_is_no_embedding_of_this_model_is_refused(model: StableDiffusion, tmp_path: Path) -> None:
    stand, row = stand_on(model), torch.ones(32)
    broken = torch.full((2, 32), 0.5)
    broken[1, 3] = torch.nan
    for name, held, said in (
        ("wide.pt", torch.ones(2, 768), "have width 768, this model's have 32"),
        ("two.safetensors", {"a": row, "b": row.clone()}, "must hold one tensor"),
        ("two.pt", {"a": row, "step": 100}, "must hold one tensor"),
        ("list.pt", [row], "must hold one tensor"),
        ("ids.pt", torch.ones(32, dtype=torch.long), "must hold one tensor"),
        ("deep.pt", row[None, None], "must hold one tensor"),
        ("none.pt", torch.ones(0, 32), "must hold one tensor"),
        ("nan.pt", broken, "vectors that are no numbers"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            LearnedEmbedding(file=saved(tmp_path / name, held)).prepare(stand)
        assert not isinstance(caught.value, NotApplicable) and name in str(caught.value)
    saved(tmp_path / "word.ckpt", row)
    for name in ("nowhere.pt", "word.ckpt", ""):
        with pytest.raises(UserError, match=r"is no \.safetensors, \.bin, \.pt file that is there"):
            LearnedEmbedding(file=str(tmp_path / name)).prepare(stand)
    with pytest.raises(NotApplicable, match="nobody says what these prompts are without it"):
        LearnedEmbedding(file=saved(tmp_path / "good.pt", row)).prepare(replace(stand, stripped_prompts=()))


def test_a_word_of_many_vectors_takes_its_places(model: StableDiffusion, tmp_path: Path) -> None:
    words: Tensor = model.token_embeddings()[:3]
    attack = LearnedEmbedding(file=saved(tmp_path / "three.pt", words))
    (ask, *_) = attack.queries(stand := stand_on(model), (0,), attack.prepare(stand))
    said = model.encode(ask.prompts, ask.prefix)
    assert said.shape == (1, 16, 32) and not torch.allclose(said, model.encode(ask.prompts))
