"""Fact verification: an application on the client (its API, and its console for commands) and the readers in `io`.

Nothing below knows of it, and it knows nothing of manager, workers and runtimes.
"""
