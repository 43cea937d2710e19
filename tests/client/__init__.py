"""Tests of the client, against a manager at the protocol's edge."""
