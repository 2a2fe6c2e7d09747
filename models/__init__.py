"""The Llama model and the plan that says which of its layers run. Knows torch only."""
