"""The libraries that run models, each behind `ports.Runtime`."""
