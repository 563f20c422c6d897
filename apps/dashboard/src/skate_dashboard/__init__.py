"""The API server of a cluster: REST and WebSocket."""
