"""The gate of a pool: its one TCP port, and what who comes from another machine must show there."""
