"""The world in virtual time: machines that come and go, links that slow down, processes that die, around the real core.

`cluster` drives `core.scheduler`, `core.agent` and `core.recovery` themselves; what stands in for reality is here. Read
`spec` (what a world is made of), then `cluster`. Nothing in this package waits, and no two runs of a seed differ.
"""
