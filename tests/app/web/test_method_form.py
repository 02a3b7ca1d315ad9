"""The options of a method on the page: words, the recipe, and what comes back."""

import json
from dataclasses import fields

import pytest

from app.web.method_form import PATH_FIELDS, options_of, read_form, render_form
from erasure.concept import Concept
from erasure.config.registry import list_modules, load_class
from erasure.errors import UserError
from erasure.families.base import DiffusionModel
from erasure.methods.base import Method
from erasure.recipes import configure_method


@pytest.mark.parametrize("name", list_modules("erasure.methods"))
def test_a_form_shows_every_field_and_its_recipe_comes_back_unchanged(name: str, pocket_sized_model: DiffusionModel) -> None:
    options = options_of(name, pocket_sized_model, "style", is_local=True)
    assert {option.name for option in options} == {field.name for field in fields(load_class("erasure.methods", name, Method))}
    html = render_form(name, pocket_sized_model, "style", is_local=True)
    assert all(f'name="{option.name}"' in html for option in options)
    typed = {option.name: option.value if option.kind == "checkbox" else option.shown for option in options}
    assert read_form(json.dumps({"method": name, **typed}), name, pocket_sized_model, "style", is_local=True) == {}


def test_what_differs_from_the_recipe_is_read(pocket_sized_model: DiffusionModel) -> None:
    recipe = configure_method(
        load_class("erasure.methods", "esd", Method), [Concept(name="neon", kind="style")], pocket_sized_model.family, {}
    )[0]
    typed = {"method": "esd", "steps": "20", "lr": str(recipe.lr), "region": "full"}
    assert read_form(json.dumps(typed), "esd", pocket_sized_model, "style", is_local=False) == {"steps": 20, "region": "full"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"steps": ""}', "Steps needs a number."),
        ('{"steps": "many"}', "Steps needs a number, not 'many'."),
        ('{"steps": "2.5"}', "Steps needs a whole number, not 2.5."),
        ('{"steps": "1e999"}', "Steps needs a number, not '1e999'."),
        ('{"region": "everything"}', "Weights to change has no choice 'everything'."),
        ('{"rank": "3"}', "Unknown option 'rank' of esd."),
        ('{"method": "uce"}', "still those of another method"),
        ("[1]", "not a JSON object"),
        ("{", "not a JSON object"),
    ],
)
def test_wrong_inputs_are_refused_in_words(text: str, complaint: str, pocket_sized_model: DiffusionModel) -> None:
    with pytest.raises(UserError, match=complaint.replace("(", r"\(")):
        read_form(text, "esd", pocket_sized_model, "style", is_local=True)


def test_a_public_studio_takes_no_path(pocket_sized_model: DiffusionModel) -> None:
    paths = {option.name for option in options_of("salun", pocket_sized_model, "style", is_local=True)} & set(PATH_FIELDS)
    assert paths and 'name="images"' not in render_form("salun", pocket_sized_model, "style", is_local=False)
    for path in paths:
        with pytest.raises(UserError, match="Unknown option"):
            read_form(json.dumps({path: "/etc"}), "salun", pocket_sized_model, "style", is_local=False)
