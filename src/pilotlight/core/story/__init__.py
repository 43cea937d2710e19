"""Stories: what happened to a worker, context, job, lease or row, told from a run's records. `telling.tell` does it."""
