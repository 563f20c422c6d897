"""Objects between nodes: serves this node's to others, and fetches what its processes need."""
