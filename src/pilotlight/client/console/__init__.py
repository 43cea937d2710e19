"""Following a job on a terminal: progress, signals, the summary at the end. Used by every command."""
