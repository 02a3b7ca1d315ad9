"""A word from a file: it is used without the concept's name; anything else in the file is refused, and none of its code runs."""

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
from tests.eval.factories import STRIPPED_PROMPTS, inversion_context


def save(path: Path, content: Any) -> str:
    (save_file if path.suffix == ".safetensors" else torch.save)(content, path)
    return str(path)


def test_a_word_that_was_learned_elsewhere_is_used_without_the_name(model: StableDiffusion, tmp_path: Path) -> None:
    context = inversion_context(model)
    word = ConceptInversion(tokens=2, steps=4, batch=2).fit(context, {})["vectors"][-1]
    attack = LearnedEmbedding(file=save(tmp_path / "neon.safetensors", {"emb_params": word}))
    fitted = attack.fit(context, attack.prepare(context))
    queries = list(attack.queries(context, (2, 0), fitted))
    assert [query.prompts for query in queries] == [[STRIPPED_PROMPTS[2], STRIPPED_PROMPTS[0]]] * context.rounds
    assert all(query.prefix is not None and torch.equal(query.prefix, word) for query in queries)
    assert queries[0].display_prompts == ["(the word of neon.safetensors) hen", "(the word of neon.safetensors) cat"]


@pytest.mark.parametrize("kind", [".bin", ".pt", ".safetensors"])
def test_the_layouts_in_which_words_are_shared(model: StableDiffusion, tmp_path: Path, kind: str) -> None:
    """The embedding of a word encodes as the word does."""
    row = model.token_embeddings()[model.tokenize("c")[0]]
    contents: list[Any] = [{"<c>": row}, {"<c>": row[None].half()}]
    if kind != ".safetensors":
        contents += [row, {"<c>": torch.nn.Parameter(row)}]
    for i, content in enumerate(contents):
        word = LearnedEmbedding(file=save(tmp_path / f"{i}{kind}", content)).prepare(inversion_context(model))["vectors"]
        assert word.shape == (1, 32) and word.dtype == torch.float32 and not word.requires_grad
        assert torch.allclose(model.encode([""], word).sequence, model.encode(["c"]).sequence, atol=1e-2)


class Trap:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", [".bin", ".pt"])
def test_a_pickle_with_code_is_refused_and_not_run(model: StableDiffusion, tmp_path: Path, kind: str) -> None:
    witness, context = tmp_path / "witness", inversion_context(model)
    for i, write in enumerate((torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)))):
        path = tmp_path / f"trap{i}{kind}"
        write({"<neon>": Trap(witness)}, path)
        with pytest.raises(UserError, match="more than tensors, which is never loaded") as caught:
            LearnedEmbedding(file=str(path)).prepare(context)
        assert "\n" not in str(caught.value) and not witness.exists()
    torch.load(path.with_name(f"trap0{kind}"), weights_only=False)
    assert witness.exists()  # the trap works


def test_files_without_an_embedding_of_this_model_are_refused(model: StableDiffusion, tmp_path: Path) -> None:
    context, row = inversion_context(model), torch.ones(32)
    broken = torch.full((2, 32), 0.5)
    broken[1, 3] = torch.nan
    for name, content, message in (
        ("wide.pt", torch.ones(2, 768), "have width 768, this model's have 32"),
        ("two.safetensors", {"a": row, "b": row.clone()}, "must hold one tensor"),
        ("two.pt", {"a": row, "step": 100}, "must hold one tensor"),
        ("list.pt", [row], "must hold one tensor"),
        ("ids.pt", torch.ones(32, dtype=torch.long), "must hold one tensor"),
        ("deep.pt", row[None, None], "must hold one tensor"),
        ("none.pt", torch.ones(0, 32), "must hold one tensor"),
        ("nan.pt", broken, "vectors with NaN or Inf"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            LearnedEmbedding(file=save(tmp_path / name, content)).prepare(context)
        assert not isinstance(caught.value, NotApplicable) and name in str(caught.value)
    save(tmp_path / "word.ckpt", row)
    for name in ("nowhere.pt", "word.ckpt", ""):
        with pytest.raises(UserError, match=r"does not exist or is not a \.safetensors, \.bin, \.pt file"):
            LearnedEmbedding(file=str(tmp_path / name)).prepare(context)
    with pytest.raises(NotApplicable, match="this suite does not say what its prompts are without it"):
        LearnedEmbedding(file=save(tmp_path / "good.pt", row)).prepare(replace(context, stripped_prompts=()))


def test_a_word_of_several_vectors_is_encoded_in_full(model: StableDiffusion, tmp_path: Path) -> None:
    vectors: Tensor = model.token_embeddings()[:3]
    attack = LearnedEmbedding(file=save(tmp_path / "three.pt", vectors))
    context = inversion_context(model)
    (query, *_) = attack.queries(context, (0,), attack.prepare(context))
    encoded = model.encode(query.prompts, query.prefix).sequence
    assert encoded.shape == (1, 16, 32) and not torch.allclose(encoded, model.encode(query.prompts).sequence)
