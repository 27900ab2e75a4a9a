"""What is on the wire: messages, claims, proofs, tokens and keys, read and written byte for byte."""
