"""Messages for the page, where nobody has a command line."""

import re

import gradio as gr

FLAG = re.compile(r"--([a-z][a-z-]*)")
OPTION_WORDS = {"tier": "tier", "region": "the option “Weights to change”", "lr": "the learning rate"}
SECONDS = 12.0  # how long a message stays


def for_page(text: str) -> str:
    """Return a message as a sentence of the page: options of the command line become words."""
    text = FLAG.sub(lambda match: OPTION_WORDS.get(match[1], f"“{match[1].replace('-', ' ')}”"), text).strip()
    first, _, _ = text.partition(" ")
    return text[:1].upper() + text[1:] if first.isalpha() and first.islower() else text


def page_error(error: Exception) -> gr.Error:
    """Return what a handler raises for a visitor's mistake: one message on the page, nothing in the terminal."""
    return gr.Error(for_page(str(error)), duration=SECONDS, title="That did not work", print_exception=False)
