"""The pure heart: what Pilotlight believes and decides. Nothing here reads a clock, a file or a socket.

Read in this order: `model`, `transitions`, `events`, `decisions`, `state`, `scheduler` and `allocation` (the manager's
machine), `agent` (the worker's machine), `recovery`, and `policy/` for how the choices are made.
"""
