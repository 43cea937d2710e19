"""Fact verification, written on the public API only."""
