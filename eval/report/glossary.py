"""The words of a report for someone who has not read one before. No torch here."""

from eval.records.audit_result import AuditResult

WORDS = (
    ("base", "The model before the erasure."),
    ("erased model", "The base with the edit applied."),
    ("judge", "A classifier that reads what an image shows. It errs; where its errors were measured, the page corrects for them."),
    ("UA", "Unlearning accuracy: how often an image that asks for the concept no longer shows it."),
    ("IRA", "In-domain retain accuracy: how often the same kind of thing is still drawn as asked."),
    ("CRA", "Cross-domain retain accuracy: how often the other kind of thing is still drawn as asked."),
    ("IPA", "How often the rest of a prompt for the concept is still drawn as asked."),
    ("95% interval", "Where the true rate lies in about 95 of 100 audits with as many images."),
    ("gate", "A threshold that the suite set beforehand. It passes or fails if the whole interval does."),
    ("attack", "A search for prompts, vectors or trainings that bring the concept back."),
    ("control", "A search with as many images that tries nothing clever: what chance alone finds."),
    ("tier", "How many images a suite makes: smoke few, standard more, full most, with attacks."),
)


def words_of(result: AuditResult) -> tuple[tuple[str, str], ...]:
    """Return the words that a page about this result uses, with their meanings."""
    absent = {"IRA", "CRA"} if result.is_prompt_list else set()
    absent |= set() if result.attacks else {"control"}
    return tuple((word, meaning) for word, meaning in WORDS if word not in absent)
