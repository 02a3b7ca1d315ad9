"""`erasure methods`: what there is to erase with."""

from erasure.discover import names, summary


def main(argv: list[str]) -> int:
    for name in names("erasure.methods"):
        print(f"{name:<12} {summary('erasure.methods', name)}")
    return 0
