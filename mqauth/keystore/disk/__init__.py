"""The keys of a producer on the disk: the folder, the states of its keys, and the key that signs now."""
