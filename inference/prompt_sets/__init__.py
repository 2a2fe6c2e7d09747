"""Prompts with names and reference texts, from files and from well-known data sets."""
