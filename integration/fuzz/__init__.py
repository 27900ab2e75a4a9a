"""Fuzzing: hostile bytes into all that reads messages, tokens, keys and letters, with oracles beyond crashes.

``python -m integration.fuzz TARGET --seconds N`` runs one target under atheris, which is no dependency of mqauth
and is installed by hand. ``test_fuzz.py`` replays the kept corpus without it.
"""
