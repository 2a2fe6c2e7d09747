"""Generation: plain, early exit, and lossless self-speculation. Never imports the trainer."""
