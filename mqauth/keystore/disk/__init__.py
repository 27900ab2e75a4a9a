"""A producer's keys on disk: the folder, its document, and the rotation of the keys in it."""
