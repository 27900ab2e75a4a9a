"""Dead letters: how they are written, where they come from, and how a reviewer releases them."""
