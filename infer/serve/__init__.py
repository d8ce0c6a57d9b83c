"""HTTP server in the shape of OpenAI's image API, on the engine."""
