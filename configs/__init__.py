"""YAML configs, and the one function that loads them."""
