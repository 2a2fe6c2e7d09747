"""A run, evaluated checkpoint by checkpoint as it saves them: the command `follow`."""
