"""Replays inputs of one target without atheris: seeds, kept inputs, and those of a folder."""

from __future__ import annotations

import sys
from pathlib import Path

from integration.fuzz import corpus
from integration.fuzz.targets import TARGETS


def main() -> None:
    """Run the target that the first argument names; the second, if there is one, is a folder of inputs."""
    name, *folders = sys.argv[1:]
    inputs = [*TARGETS[name].seeds(), *corpus.kept(name)]
    for folder in map(Path, folders):
        inputs += [path.read_bytes() for path in folder.iterdir()]
    for one in dict.fromkeys(inputs):
        TARGETS[name].run(one)


if __name__ == "__main__":
    main()
