"""How workers get started: providers of pilots."""
