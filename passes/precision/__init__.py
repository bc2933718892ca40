"""Which layer gets how many bits: explicit plans, what fewer bits cost in accuracy, and the best choice under a budget."""
