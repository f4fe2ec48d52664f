"""Policies behind one interface, a folder or a module per kind."""
