"""The public Python API and the client's side of the wire."""
