"""The delivery engine, between a broker's client and the pipeline, for any client library.

It is told what happened and says what is to be done. It makes no client's calls, starts no thread, knows no
event loop, and reads no clock but the one it is given, so that each rule is a test of a few lines. How it works
is written in ``assignment`` for logs and in ``window`` for queues.
"""
