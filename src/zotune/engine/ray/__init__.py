"""Many machines: an engine whose workers are actors of Ray, each with an engine of another kind."""
