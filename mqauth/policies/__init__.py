"""Policies from outside: who may publish where is decided by a service, whose decisions are remembered."""
