"""The manager process: an event loop around `core.scheduler`, the jobs' files, and the clients' connections."""
