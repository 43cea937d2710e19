"""Model files on a machine's disk, and how they travel between machines. Agents and managers stand on it alike."""
