"""A workload's key in memory, with the WIT that vouches for it: given by hand, or renewed from an authority."""
