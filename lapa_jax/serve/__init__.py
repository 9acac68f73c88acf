"""A policy behind a socket: messages, what they may hold, requests put together in batches, HTTP and websockets."""
