"""What methods are called, and what they do, for people who do not type their names."""

from erasure.config.registry import read_summary
from erasure.errors import UserError


def title_of_method(name: str) -> str:
    """Return the name that papers give a method, such as "UCE" for uce; of an unknown method its own."""
    try:
        return read_summary("erasure.methods", name).partition(":")[0]
    except UserError:
        return name


def summary_of_method(name: str) -> str:
    """Return in a few words what a method does."""
    return read_summary("erasure.methods", name).partition(": ")[2].split("(")[0].rstrip(" .")
