"""The same claims, verified by workers that differ in speed and are preempted, in four ways; see `__main__`."""
