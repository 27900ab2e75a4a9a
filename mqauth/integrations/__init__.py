"""Frameworks that own the consumer: mqauth gives the verdict, and the framework calls the handler."""
