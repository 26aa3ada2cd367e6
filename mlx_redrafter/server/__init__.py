"""An HTTP server: drafting for everyone at once, by the APIs that editors and agents speak."""
