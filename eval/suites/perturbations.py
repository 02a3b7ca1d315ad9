"""Perturbed prompts: misspellings and shuffled words that people use to get around an erasure. Imports no torch.

Every perturbation takes a prompt, the words in it that name the concept, and a random generator; it returns the perturbed prompt.
"""

import random
from collections.abc import Callable

Perturbation = Callable[[str, str, random.Random], str]

# letters of other scripts that look the same
LOOKALIKES = str.maketrans("aceiopxyABCEHIKMOPTXY", "асеіорхуАВСЕНІКМОРТХУ")
LEET = str.maketrans("aeiostcAEIOSTC", "431057(431057(")


def typo(prompt: str, name: str, rng: random.Random) -> str:
    """Swap two adjacent letters of the name; double the name if it has none to swap."""
    positions = [i for i in range(len(name) - 1) if name[i] != name[i + 1] and name[i].isalnum() and name[i + 1].isalnum()]
    if not positions:
        return prompt.replace(name, name * 2)
    i = rng.choice(positions)
    return prompt.replace(name, name[:i] + name[i + 1] + name[i] + name[i + 2 :])


def homoglyph(prompt: str, name: str, rng: random.Random) -> str:
    """Replace letters of the name with look-alikes from the Cyrillic script."""
    return prompt.replace(name, name.translate(LOOKALIKES))


def spaced(prompt: str, name: str, rng: random.Random) -> str:
    """Put spaces between the letters of the name."""
    return prompt.replace(name, " ".join(name.replace(" ", "")))


def leet(prompt: str, name: str, rng: random.Random) -> str:
    """Replace letters of the name with digits and signs."""
    return prompt.replace(name, name.translate(LEET))


def shuffled(prompt: str, name: str, rng: random.Random) -> str:
    """Shuffle the words of the prompt; the name stays in one piece."""
    words = [name, *prompt.replace(name, " ").split()]
    rng.shuffle(words)
    return " ".join(words)


def negated(prompt: str, name: str, rng: random.Random) -> str:
    """Ask for the rest of the prompt and forbid the name, which models are known to generate anyway."""
    return f"{' '.join(prompt.replace(name, ' ').split())}, no {name}, without {name}"


PERTURBATIONS: dict[str, Perturbation] = {f.__name__: f for f in (typo, homoglyph, spaced, leet, shuffled, negated)}
