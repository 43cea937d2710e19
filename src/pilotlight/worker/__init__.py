"""The worker's processes: the agent, its runtime servers, its replicas, and the guardian that cleans up after them."""
