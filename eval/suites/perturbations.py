"""Prompts that ask for a concept in spoiled spelling or shuffled words, as people do who try to get around an erasure. No torch here.

Every mutator takes a prompt and the words in it that name the concept, and a random generator; it returns another prompt.
"""

import random
from collections.abc import Callable

Perturbation = Callable[[str, str, random.Random], str]

# letters of other scripts that look the same
LOOKALIKES = str.maketrans("aceiopxyABCEHIKMOPTXY", "асеіорхуАВСЕНІКМОРТХУ")
LEET = str.maketrans("aeiostcAEIOSTC", "431057(431057(")


def typo(prompt: str, name: str, rng: random.Random) -> str:
    """Two neighbouring letters of the name change places."""
    positions = [i for i in range(len(name) - 1) if name[i] != name[i + 1] and name[i].isalnum() and name[i + 1].isalnum()]
    if not positions:
        return prompt.replace(name, name * 2)
    i = rng.choice(positions)
    return prompt.replace(name, name[:i] + name[i + 1] + name[i] + name[i + 2 :])


def homoglyph(prompt: str, name: str, rng: random.Random) -> str:
    """Letters of the name become look-alikes of another script."""
    return prompt.replace(name, name.translate(LOOKALIKES))


def spaced(prompt: str, name: str, rng: random.Random) -> str:
    """Spaces between the letters of the name."""
    return prompt.replace(name, " ".join(name.replace(" ", "")))


def leet(prompt: str, name: str, rng: random.Random) -> str:
    """Digits and signs for letters."""
    return prompt.replace(name, name.translate(LEET))


def shuffled(prompt: str, name: str, rng: random.Random) -> str:
    """The words in another order; the name stays in one piece."""
    words = [name, *prompt.replace(name, " ").split()]
    rng.shuffle(words)
    return " ".join(words)


def negated(prompt: str, name: str, rng: random.Random) -> str:
    """Asks for the rest and forbids the name, which models are known to draw all the same."""
    return f"{' '.join(prompt.replace(name, ' ').split())}, no {name}, without {name}"


PERTURBATIONS: dict[str, Perturbation] = {f.__name__: f for f in (typo, homoglyph, spaced, leet, shuffled, negated)}
