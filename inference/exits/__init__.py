"""Which exit would have been enough, token by token: the command `exits`."""
