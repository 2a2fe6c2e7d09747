"""Pictures of decoding: acceptance, sweeps, exits by token."""
