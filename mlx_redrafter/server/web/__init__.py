"""HTTP, with Starlette: routes, streams, keys and hosts."""
