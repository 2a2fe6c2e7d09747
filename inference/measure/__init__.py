"""What decoding costs and gives on a set of prompts: figures, intervals, the command `bench`."""
