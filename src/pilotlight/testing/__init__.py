"""Conformance kits: whoever writes an adapter for a port runs its kit."""
