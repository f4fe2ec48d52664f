"""Scripted experts of the tabletop's five tasks."""
