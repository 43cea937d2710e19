"""Sources of rows and sinks of results: files, their order, and what survives a crash."""
