"""What carries messages between managers and workers."""
