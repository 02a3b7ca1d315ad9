"""The check whether a model knows a concept: what it costs, what it caches, and that it depends on the model alone."""

import torch

from erasure.concept import Concept
from erasure.concept_check import ConceptCheck, check_concepts, concept_check_cost, describe_weakly_known
from erasure.families.cost import Cost
from erasure.families.stable_diffusion import StableDiffusion
from tests import tiny

NAMES = [Concept(name="cat", kind="object"), Concept(name="dog", kind="object"), Concept(name="sketch")]


def test_the_check_costs_what_is_forecast_and_then_8_forwards_a_concept(model: StableDiffusion) -> None:
    model.cost = Cost()
    check_concepts(model, NAMES)
    assert model.cost == concept_check_cost(model, NAMES)
    model.cost = Cost()
    check_concepts(model, NAMES)
    assert model.cost.unet_forwards == 8 * len(NAMES) and model.cost.text_forwards == len(NAMES)


def test_one_line_names_all_weakly_known_concepts() -> None:
    names = [f"word{i}" for i in range(12)]
    assert describe_weakly_known([ConceptCheck("word0", 0.001, 0.002)]) == (
        "the model hardly knows 'word0': the name moves its predictions by 0.0010, a nonsense word in its place by 0.0020; "
        "check the spelling, or read a high erasure rate with care."
    )
    message = describe_weakly_known([ConceptCheck(name, 0.001, 0.002) for name in names])
    assert "(and 11 more: 'word1', " in message and "'word8', ...)" in message and "word9" not in message


def test_cached_checks_belong_to_one_model(model: StableDiffusion) -> None:
    first = check_concepts(model, NAMES)
    with torch.no_grad():
        for p in model.pipe.unet.parameters():
            p.mul_(1.1)
    moved = check_concepts(model, NAMES)
    assert all(
        a.nonsense_influence != b.nonsense_influence and a.concept_influence != b.concept_influence
        for a, b in zip(first, moved, strict=True)
    )


def test_concepts_do_not_depend_on_each_other(model: StableDiffusion) -> None:
    assert check_concepts(model, NAMES)[1:2] == check_concepts(model, NAMES[1:2])


def test_the_influence_is_the_mean_square_of_the_difference(model: StableDiffusion) -> None:
    """Against a plain loop over the trajectories."""
    (check,) = check_concepts(model, NAMES[:1])
    cond, empty = model.encode(["cat"]), model.encode([""])
    moved = size = 0.0
    with torch.no_grad():
        for i in range(4):
            x = model.sample_noise([900_000 + i])
            model.schedule.scheduler.set_timesteps(8)
            for step, t in enumerate(model.schedule.scheduler.timesteps[:4].tolist()):
                named, unnamed = (model.predict(x, torch.tensor([t]), text) for text in (cond, empty))
                if step >= 2:
                    moved += (named - unnamed).square().mean().item()
                    size += unnamed.square().mean().item()
                x = model.schedule.scheduler.step(unnamed, t, x).prev_sample
    assert abs(check.concept_influence - moved / size) < 2e-6


def test_an_edit_counts_the_check(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from erasure.erasing import erase
    from erasure.methods.uce import UCE

    model = StableDiffusion(tiny.pipeline(), "tiny", "fp32")
    model.cost = Cost()
    edit = erase(model, NAMES[:1], UCE(), out=tmp_path / "run")
    assert edit.info.cost["unet_forwards"] == concept_check_cost(model, NAMES[:1]).unet_forwards == 32 + 8 * 9
