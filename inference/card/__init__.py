"""The model card: what is known of an exported model, gathered and written beside it."""
