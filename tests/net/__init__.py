"""Pools over several machines: network, process and host-name namespaces of this one."""
