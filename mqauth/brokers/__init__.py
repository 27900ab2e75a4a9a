"""Broker wrappers: thin leaves that translate native messages and carry out the verdict; they hold no rule."""
