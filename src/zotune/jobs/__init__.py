"""Training jobs in a running SGLang server: asked for over HTTP, trained by its scheduler, served as they grow."""
