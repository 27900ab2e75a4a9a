"""The verdict on a message: the numbered steps, and the order of what follows from them."""
