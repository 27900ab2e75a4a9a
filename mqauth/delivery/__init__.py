"""The delivery engine: what becomes of deliveries between a broker's client and the pipeline, for any client.

Facts go in, wishes come out. It makes no client's calls, starts no thread, knows no event loop, and reads no clock
but the one it is given, so that each rule is a test of a few lines. A broker's leaf translates and makes the
calls.
"""
