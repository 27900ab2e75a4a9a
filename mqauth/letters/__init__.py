"""Dead letters: how they are written, and how a reviewer releases them."""
