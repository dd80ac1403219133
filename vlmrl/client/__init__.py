"""HTTP endpoints: requests, the cache of their replies, the budget."""
