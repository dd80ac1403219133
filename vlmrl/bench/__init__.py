"""Speed and cost beside replicated rows, loops and peers."""
